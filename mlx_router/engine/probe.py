"""Does a model compute the same in a batch as alone? Found out at load, by doing it.

That a model's caches can be merged does not say so: some models (gemma2) raise in a batch, or, for
some numbers of rows, silently mix the rows up.
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.engine.runner import LiveSequence, Runner

_LENGTHS = (2, 5, 9)  # unequal, so that rows are padded
_ALTERNATIVES = 20
_TOLERANCE = 0.5  # nats; rounding in bf16 or 4 bit stays far below, a wrong mask far above


def check_batching(
    make_batch: Callable[[], Runner], make_serial: Callable[[], Runner], vocab_size: int
) -> str | None:
    """None if the first tokens of a small batch have the likelihoods that they have alone; else
    what is different. Raises only if the model fails alone."""
    jobs = [
        Job(
            id=-1 - row,
            prompt=[(13 * row + 7 * i + 3) % vocab_size for i in range(length)],
            max_tokens=1,
            sampling=Sampling(),
            logprobs=min(_ALTERNATIVES, vocab_size),
        )
        for row, length in enumerate(_LENGTHS)
    ]
    alone = _run(make_serial(), jobs)  # a model that cannot even do this fails to load
    try:
        together = _run(make_batch(), jobs)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    for job in jobs:
        gap = _gap(together[job.id], alone[job.id])
        if not gap <= _TOLERANCE:  # NaN is no agreement
            return f"likelihoods in a batch are off by up to {gap:.2f}"
    return None


def _run(runner: Runner, jobs: list[Job]) -> dict[int, StepResult]:
    try:
        for job in jobs:
            runner.insert(LiveSequence(job))
        results: dict[int, StepResult] = {}
        while len(results) < len(jobs):
            results |= {result.job_id: result for result in runner.step()}
        return results
    finally:
        runner.close()


def _gap(one: StepResult, other: StepResult) -> float:
    """The largest difference of a token's log-probability; infinite if the likely tokens are not
    even the same ones."""
    first, second = dict(one.top_logprobs), dict(other.top_logprobs)
    shared = first.keys() & second.keys()
    if len(shared) < len(first) / 2:
        return float("inf")
    return max(abs(first[token] - second[token]) for token in shared)
