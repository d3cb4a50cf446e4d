"""Several choices of one prompt, which is computed once; and log-probabilities of the model's own.

On real models, through the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.engine.batch import BatchRunner
from mlx_router.engine.prefix.cache import PrefixCache
from mlx_router.engine.prefix.keeper import Keeper
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.serial import SerialRunner
from tests.engine_support import Driver, tokens
from tests.models import ARCHITECTURES
from tests.stepping import Watched

PROMPT = [(7 * i + 11) % 500 for i in range(61)]


def choices(n: int, tokens: int = 12, **sampling: Any) -> list[Job]:
    """The jobs of a request with n choices."""
    leader = Job(id=1, prompt=PROMPT, max_tokens=tokens, sampling=Sampling(**sampling))
    seed = leader.sampling.seed
    return [leader] + [
        replace(
            leader,
            id=1 + i,
            fork_of=1,
            sampling=leader.sampling
            if seed is None
            else Sampling(**{**sampling, "seed": seed + i}),
        )
        for i in range(1, n)
    ]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_choices_are_the_same_as_alone_and_the_prompt_is_computed_once(
    drive: Callable[[Path], Driver],
    tiny_models: Path,
    kind: str,
) -> None:
    driver = drive(tiny_models / "tiny" / kind)
    (alone,) = tokens(driver.run(choices(1))).values()
    model = Watched(driver.engine._model)
    together = tokens(driver.run(choices(4)))
    assert list(together.values()) == [alone] * 4
    # Those of prompts come several at once.
    assert sum(rows * tokens for rows, tokens in model.passes if tokens > 1) == len(PROMPT) - 1


def test_seeds_and_neighbours_do_not_matter(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "qwen3")
    wanted = choices(3, temperature=1.0, seed=5, frequency_penalty=0.5)
    alone = {job.id: tokens(driver.run([replace(job, fork_of=None)]))[job.id] for job in wanted}
    neighbour = Job(id=50, prompt=[9] * 200, max_tokens=20, sampling=Sampling())
    expected = tokens(driver.run([neighbour]))[50]
    together = tokens(driver.run([neighbour, *wanted]))
    assert together.pop(50) == expected
    assert together == alone
    assert len(set(map(tuple, alone.values()))) == 3


def test_a_prompt_of_one_token(drive: Callable[[Path], Driver], tiny_models: Path) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    jobs = [replace(job, prompt=[7]) for job in choices(3)]
    results = tokens(driver.run(jobs))
    assert results[1] == results[2] == results[3]
    assert len(results[1]) == 12


class Steps:
    """A batch runner, stepped by hand on this thread."""

    def __init__(self, folder: Path) -> None:
        model, _ = mlx_lm.load(str(folder))
        self.runner = BatchRunner(
            model,
            prefill_step_size=8,
            max_batch_size=8,
            wired_limit="off",
            keeper=Keeper(PrefixCache(0)),
        )

    def run(self) -> dict[int, list[StepResult]]:
        results: dict[int, list[StepResult]] = {}
        for _ in range(100):
            for result in self.runner.step():
                results.setdefault(result.job_id, []).append(result)
            if not self.runner._live and not self.runner._prefills:
                break
        return results


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_when_the_first_choice_is_dropped_the_others_go_on(tiny_models: Path, steps: int) -> None:
    by_hand = Steps(tiny_models / "tiny" / "llama")
    leader, *others = choices(3, tokens=6)
    by_hand.runner.insert(LiveSequence(leader))
    expected = tokens(by_hand.run())[1]
    for job in (leader, *others):
        by_hand.runner.insert(LiveSequence(job))
    for _ in range(steps):  # in the middle of its prompt
        assert by_hand.runner.step() == []
    by_hand.runner.remove(leader.id)
    assert tokens(by_hand.run()) == {2: expected, 3: expected}
    by_hand.runner.close()


def test_a_choice_that_waits_for_the_prompt_can_be_dropped(tiny_models: Path) -> None:
    by_hand = Steps(tiny_models / "tiny" / "llama")
    for job in choices(3, tokens=6):
        by_hand.runner.insert(LiveSequence(job))
    by_hand.runner.step()
    by_hand.runner.remove(2)
    assert set(by_hand.run()) == {1, 3}
    by_hand.runner.close()


def test_a_failed_step_does_not_lose_choices(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    expected = tokens(driver.run(choices(3)))
    runner: Any = driver.engine._runner
    whole_step = runner.step
    calls = iter(range(100))

    def step() -> list[StepResult]:
        results: list[StepResult] = whole_step()
        if next(calls) == 0:
            raise RuntimeError("injected")
        return results

    runner.step = step
    assert tokens(driver.run(choices(3))) == expected


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_next"])
def test_choices_that_are_served_one_by_one_share_their_prompt_too(
    tiny_models: Path, kind: str
) -> None:
    model, _ = mlx_lm.load(str(tiny_models / "tiny" / kind))
    watched = Watched(model)
    runner = SerialRunner(
        model,
        make_cache=lambda: make_prompt_cache(model),
        prefill_step_size=16,
        keeper=Keeper(PrefixCache(0)),
    )

    def run(jobs: list[Job]) -> dict[int, list[int]]:
        live = {job.id: LiveSequence(job) for job in jobs}
        for sequence in live.values():
            runner.insert(sequence)
        left = sum(job.max_tokens for job in jobs)
        for _ in range(left + len(PROMPT)):
            for result in runner.step():
                assert result.token is not None
                live[result.job_id].tokens.append(result.token)
                left -= 1
        assert left == 0
        return {job_id: list(sequence.tokens) for job_id, sequence in live.items()}

    expected = run(choices(1))[1]
    watched.passes.clear()
    assert run(choices(3)) == {1: expected, 2: expected, 3: expected}
    # Each computes the prompt's last token, and one step ahead of its last one.
    assert sum(rows * tokens for rows, tokens in watched.passes) <= len(PROMPT) - 1 + 3 * (
        len(expected) + 1
    )
    assert not runner._queue
    runner.close()


@pytest.mark.parametrize(
    "sampling",
    [
        {"logit_bias": {3: 50.0, 9: -100.0}},
        {"frequency_penalty": 1.5, "presence_penalty": 1.0, "repetition_penalty": 1.5},
        {"temperature": 0.8, "top_k": 5, "seed": 1, "logit_bias": {7: 2.0}},
    ],
)
def test_logprobs_are_those_of_the_model_whatever_has_a_say_in_the_choice(
    drive: Callable[[Path], Driver], tiny_models: Path, sampling: dict[str, Any]
) -> None:
    folder = tiny_models / "tiny" / "llama"
    driver = drive(folder)
    job = Job(id=1, prompt=PROMPT[:5], max_tokens=5, sampling=Sampling(**sampling), logprobs=4)
    neighbour = Job(id=2, prompt=[9] * 9, max_tokens=9, sampling=Sampling())
    results = driver.run([job, neighbour])[1]
    model, _ = mlx_lm.load(str(folder))
    context = list(PROMPT[:5])
    for result in results:
        assert result.token is not None
        logits = model(mx.array([context]))[0, -1]
        expected = logits - mx.logsumexp(logits)
        assert result.logprob == pytest.approx(expected[result.token].item(), abs=1e-4)
        for token, value in result.top_logprobs:
            assert value == pytest.approx(expected[token].item(), abs=1e-4)
        best = mx.argsort(-expected)[:4].tolist()
        assert [token for token, _ in result.top_logprobs] == best
        context.append(result.token)
