"""What drives a loaded model: sequences in, tokens out. Two implementations share this contract.

:class:`~mlx_router.engine.batch.BatchRunner` decodes all sequences together;
:class:`~mlx_router.engine.serial.SerialRunner` one after the other, for models that cannot batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import mlx.core as mx

from mlx_router.domain import FinishReason
from mlx_router.engine.base import Job, StepResult
from mlx_router.engine.grammar.mask import GrammarMask
from mlx_router.engine.prefix.layers import Marks
from mlx_router.engine.sampling import Processor, RawLogits, make_processors


@dataclass(slots=True)
class LiveSequence:
    """A job and how far it has come. After a failed step it goes on from ``tokens``; ``retried``:
    it has, and no token has come of it since. ``cached``: prompt tokens that were reused;
    ``marks``: what was put by of its cache while the prompt was computed; ``joined_with``: how many
    tokens it had when it joined the batch."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    retried: bool = False
    cached: int = 0
    marks: Marks = field(default_factory=dict)
    joined_with: int = 0
    _raw: RawLogits | None = None
    _mask: GrammarMask | None = None

    @property
    def context(self) -> list[int]:
        """Prompt and generated ids: what must be in the KV cache to go on."""
        return [*self.job.prompt, *self.tokens]

    @property
    def remaining(self) -> int:
        return self.job.max_tokens - len(self.tokens)

    def processors(self) -> list[Processor]:
        """Fresh ones, for a runner that takes the sequence from where it is."""
        found = make_processors(self.job, self.tokens)
        self._mask = next((each for each in found if isinstance(each, GrammarMask)), None)
        # mlx-lm's log-probabilities are after processors, and in the model's precision, often half.
        self._raw = RawLogits() if self.job.logprobs is not None else None
        return [self._raw, *found] if self._raw is not None else found

    def result(self, token: int, logprobs: mx.array, finish: str | None) -> StepResult:
        """What a step found; ``logprobs`` [V], after processors, are read only if the job asks for
        them. The token is recorded by whoever delivers the result, so that a step that fails loses
        none."""
        own = logprobs if self._raw is None else self._raw.take()
        chosen, top = _logprobs(own, token, self.job.logprobs)
        return StepResult(
            job_id=self.job.id,
            token=token,
            finish=FinishReason(finish) if finish else None,
            incomplete=self._mask is not None and self._mask.broken,
            logprob=chosen,
            top_logprobs=top,
            cached_tokens=0 if self.tokens else self.cached,
        )


class Runner(Protocol):
    """All calls come from the model's own thread."""

    def insert(self, sequence: LiveSequence) -> None: ...

    def remove(self, job_id: int) -> None:
        """Drop a sequence before the next step; unknown ids are ignored."""

    def step(self) -> list[StepResult]:
        """One step. May raise; then the runner is of no further use but for close(). A sequence
        that failed by itself has a result with ``error``, and is gone."""

    def close(self) -> None: ...


def _logprobs(
    row: mx.array, token: int, alternatives: int | None
) -> tuple[float | None, Sequence[tuple[int, float]]]:
    if alternatives is None:
        return None, ()
    values = row.astype(mx.float32)
    count = min(alternatives, values.size)
    likeliest = mx.argpartition(-values, kth=max(count - 1, 0))[:count]
    wanted = mx.concatenate([mx.array([token], dtype=likeliest.dtype), likeliest])
    ids = cast(list[int], wanted.tolist())
    chosen, *others = cast(list[float], values[wanted].tolist())
    return chosen, sorted(zip(ids[1:], others, strict=True), key=lambda pair: -pair[1])
