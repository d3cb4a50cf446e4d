"""Does a model compute the same in a batch as alone? Found out by doing it.

That a model's caches can be merged does not say so: some models (gemma2) raise in a batch, or, for
some numbers of rows, silently mix the rows up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

from mlx_router.engine import device
from mlx_router.engine.base import BatchTrial, Job, Sampling
from mlx_router.engine.runner import LiveSequence, Runner

log = logging.getLogger(__name__)

_LENGTHS = (2, 5, 9)  # unequal, so that rows are padded
_ALTERNATIVES = 20
_TOLERANCE = 0.5  # nats; rounding in bf16 or 4 bit stays far below, a wrong mask far above
# What a model raises for shapes that do not fit, or for a cache that cannot do this. The other
# errors (out of memory, for one) are of the moment.
_LASTING = (ValueError, TypeError, AttributeError, LookupError, NotImplementedError)

Likely = dict[int, float]  # the likeliest tokens, and their log-probabilities


def try_batching(model: Any, make_batch: Callable[[], Runner], vocab_size: int) -> BatchTrial:
    """Whether the first tokens of a small batch have the likelihoods that they have alone. Six
    passes of the model; a batch that fails for a reason that may pass is computed once more.
    Raises only if the model fails alone."""
    prompts = [
        [(13 * row + 7 * i + 3) % vocab_size for i in range(length)]
        for row, length in enumerate(_LENGTHS)
    ]
    count = min(_ALTERNATIVES, vocab_size)
    alone = [_alone(model, prompt, count) for prompt in prompts]
    reason, lasting = _compare(make_batch, prompts, alone)
    if not lasting:
        log.warning("a trial to compute in a batch failed, and is made again (%s)", reason)
        device.give_memory_back()
        reason, lasting = _compare(make_batch, prompts, alone)
    return BatchTrial(reason is None, reason, device.versions(), lasting)


def _compare(
    make_batch: Callable[[], Runner], prompts: list[list[int]], alone: list[Likely]
) -> tuple[str | None, bool]:
    """What is different in a batch, None if nothing is; and whether it always will be."""
    try:
        together = _together(make_batch(), prompts, len(alone[0]))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return reason, isinstance(error, _LASTING)
    for one, other in zip(together, alone, strict=True):
        gap = _gap(one, other)
        if not gap <= _TOLERANCE:  # NaN is no agreement
            return f"likelihoods in a batch are off by up to {gap:.2f}", True
    return None, True


def _alone(model: Any, prompt: list[int], count: int) -> Likely:
    from mlx_lm.models.cache import make_prompt_cache  # takes seconds to import

    logits = model(mx.array([prompt]), cache=make_prompt_cache(model))[0, -1].astype(mx.float32)
    likeliest = mx.argpartition(-logits, kth=count - 1)[:count]
    logprobs = (logits - mx.logsumexp(logits))[likeliest]
    ids, values = cast(list[int], likeliest.tolist()), cast(list[float], logprobs.tolist())
    return dict(zip(ids, values, strict=True))


def _together(runner: Runner, prompts: list[list[int]], count: int) -> list[Likely]:
    try:
        for row, prompt in enumerate(prompts):
            job = Job(id=row, prompt=prompt, max_tokens=1, sampling=Sampling(), logprobs=count)
            runner.insert(LiveSequence(job))
        found: dict[int, Likely] = {}
        while len(found) < len(prompts):
            found |= {result.job_id: dict(result.top_logprobs) for result in runner.step()}
        return [found[row] for row in range(len(prompts))]
    finally:
        runner.close()


def _gap(one: Likely, other: Likely) -> float:
    """The largest difference of a token's log-probability; infinite if the likely tokens are not
    even the same ones."""
    shared = one.keys() & other.keys()
    if len(shared) < len(one) / 2:
        return float("inf")
    return max(abs(one[token] - other[token]) for token in shared)
