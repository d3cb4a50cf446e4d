"""Models that draft and models that check, for tests of speculative decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlx_router.engine.base import Sampling
from mlx_router.engine.sampling import Sampler, make_sampler
from mlx_router.engine.speculation.draft import DraftModel
from mlx_router.engine.speculation.loop import Drafter, Speculation
from mlx_router.engine.speculation.pace import Pace
from tests.models import VOCAB_SIZE, make_model

GREEDY = Sampling()
LENGTH = 24
PROMPT = [5, 90, 41, 7, 300, 20, 41, 8]


class Counted:
    """A model, and how many forward passes it made."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.layers
        self.passes = 0

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        self.passes += 1
        logits: mx.array = self.model(ids, cache=cache)
        return logits


class Always(Pace):
    """Drafts as many tokens as it is told to."""

    def __init__(self, drafted: int) -> None:
        super().__init__()
        self._drafted = drafted

    def count(self, likely: float) -> int:
        return self._drafted


class Parrot:
    """Drafts what it was given."""

    likely = 1.0

    def __init__(self, answer: Sequence[int], start: int) -> None:
        self._answer = list(answer)
        self._start = start

    def observe(self, token: int) -> None: ...

    def draft(self, context: Sequence[int], count: int, sampler: Sampler | None) -> list[int]:
        done = len(context) - self._start
        return self._answer[done : done + count]


class Models:
    """Small random models, made when they are first asked for."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.folder = cache(self._folder)
        self.get = cache(self._get)

    def _folder(self, kind: str = "llama", seed: int = 0, **changes: int) -> Path:
        name = "-".join(map(str, (kind, seed, *changes.values())))
        return make_model(kind, self._home / name, seed=seed, changes=changes)

    def _get(self, kind: str = "llama", seed: int = 0, **changes: int) -> Any:
        return load_model(self.folder(kind, seed, **changes))[0]


def draft_model(
    model: Any,
    vocab_size: int = VOCAB_SIZE,
    own_size: int = VOCAB_SIZE,
    cls: type[DraftModel] = DraftModel,
) -> DraftModel:
    return cls(model, vocab_size=vocab_size, own_size=own_size, prefill_step_size=64)


def plain(model: Any, prompt: list[int], sampling: Sampling = GREEDY, n: int = LENGTH) -> list[int]:
    steps = generate_step(
        mx.array(prompt), model, max_tokens=n, sampler=make_sampler(sampling), prefill_step_size=64
    )
    return [int(token) for token, _ in steps]


def filled(model: Any, tokens: Sequence[int], layers: list[Any] | None = None) -> list[Any]:
    """A cache that holds ``tokens``."""
    layers = layers or make_prompt_cache(model)
    if tokens:
        model(mx.array([list(tokens)]), cache=layers)
        mx.eval([layer.state for layer in layers])
    return layers


def begin(
    model: Any,
    drafter: Drafter,
    prompt: list[int],
    *,
    sampling: Sampling = GREEDY,
    drafted: int = 4,
    layers: list[Any] | None = None,
    stop_ids: frozenset[int] = frozenset(),
    remaining: int = LENGTH,
) -> Speculation:
    return Speculation(
        model,
        filled(model, prompt[:-1], layers),
        prompt,
        0,
        sampling,
        drafter,
        stop_ids=stop_ids,
        remaining=remaining,
        pace=Always(drafted),
    )


def run(speculation: Speculation) -> list[int]:
    found: list[int] = []
    while speculation.finish is None:
        new = speculation.step()
        assert new
        found += new
    return found


class Held:
    """A layer that remembers the tokens it was given."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []

    def trim(self, count: int) -> int:
        assert 0 <= count <= len(self.tokens)
        if count:
            del self.tokens[-count:]
        return count


class Script:
    """A model whose next token depends on all tokens so far; its passes take ``seconds``."""

    def __init__(self, seconds: Callable[[int], float] = lambda tokens: 1.0) -> None:
        self._seconds = seconds
        self.now = 0.0
        self.passes = 0

    def __call__(self, ids: mx.array, cache: list[Held]) -> mx.array:
        rows = []
        for token in ids[0].tolist():  # type: ignore[union-attr]
            cache[0].tokens.append(token)
            rows.append([float(each == self.next(cache[0].tokens)) for each in range(10)])
        self.passes += 1
        self.now += self._seconds(len(rows))
        return mx.array([rows])

    @staticmethod
    def next(tokens: Sequence[int]) -> int:
        return hash(tuple(tokens)) % 10

    def answer(self, prompt: list[int], length: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(length):
            tokens.append(self.next(tokens))
        return tokens[len(prompt) :]
