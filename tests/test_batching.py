"""Where a batch differs from a single sequence, the difference is mlx-lm's, and it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.generate import BatchGenerator, generate_step

from tests.models import ARCHITECTURES
from tests.test_text_engine import make_gemma2

PROMPTS = [[5, 6], [9] * 20, [300, 20, 41, 7, 8, 100], list(range(50, 130))]
STEPS = 12


def alone(model: Any, prompt: list[int]) -> list[mx.array]:
    """The rows of log-probabilities that mlx-lm computes for one greedy answer."""
    steps = generate_step(mx.array(prompt), model, max_tokens=STEPS)
    return [row for (_, row), _ in zip(steps, range(STEPS), strict=False)]


def together(model: Any, prompts: list[list[int]]) -> list[list[mx.array]]:
    """The same for a batch, by mlx-lm's own BatchGenerator."""
    generator = BatchGenerator(model, max_tokens=STEPS)
    rows: dict[int, list[mx.array]] = {uid: [] for uid in generator.insert(prompts)}
    while any(len(got) < STEPS for got in rows.values()):
        for response in generator.next_generated():
            rows[response.uid].append(response.logprobs)
    generator.close()
    return list(rows.values())


def gap(model: Any, prompts: list[list[int]]) -> float:
    """The largest difference of a log-probability, while both have chosen the same tokens."""
    largest = 0.0
    for prompt, in_batch in zip(prompts, together(model, prompts), strict=True):
        for one, other in zip(alone(model, prompt), in_batch, strict=True):
            largest = max(largest, float(mx.abs(one - other).max().item()))  # type: ignore[arg-type]
            if mx.argmax(one).item() != mx.argmax(other).item():
                break
    return largest


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_batch_is_rounded_like_a_single_sequence(kind: str, tiny_models: Path) -> None:
    """So that greedy answers can be the same, token for token: far below any usual margin."""
    model, _ = mlx_lm.load(str(tiny_models / "tiny" / kind))
    assert gap(model, PROMPTS) < 1e-3


def test_gemma2_differs_in_the_library_itself(tiny_models: Path, tmp_path: Path) -> None:
    """Which is why mlx_router/engine/probe.py tries a model before it batches it: with as many
    rows as key heads the rows are mixed up without a word, with any other number it raises."""
    folder = make_gemma2(tmp_path / "gemma2", tiny_models / "tiny" / "llama")
    model, _ = mlx_lm.load(str(folder))
    assert gap(model, PROMPTS[1:3]) > 0.1
    with pytest.raises(ValueError, match="broadcast"):
        together(model, PROMPTS[:3])
