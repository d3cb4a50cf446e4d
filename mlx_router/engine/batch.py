"""Continuous batching on mlx-lm's BatchGenerator."""

from __future__ import annotations

from typing import Any

from mlx_lm.generate import BatchGenerator, StopSequences

from mlx_router.engine.base import StepResult
from mlx_router.engine.device import WiredLimit, apply_wired_limit
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_processors, make_sampler


class BatchRunner:
    """All sequences of a model in one BatchGenerator."""

    def __init__(
        self, model: Any, *, prefill_step_size: int, max_batch_size: int, wired_limit: WiredLimit
    ) -> None:
        self._wired_limit = wired_limit
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_batch_size,
            prefill_batch_size=min(8, max_batch_size),
            prefill_step_size=prefill_step_size,
        )
        apply_wired_limit(wired_limit)
        self._live: dict[int, LiveSequence] = {}
        self._uids: dict[int, int] = {}
        self._stops: dict[frozenset[int], StopSequences] = {}

    def insert(self, sequence: LiveSequence) -> None:
        job = sequence.job
        stops = self._stops.get(job.stop_ids)
        if stops is None:
            stops = self._stops[job.stop_ids] = StopSequences([(i,) for i in job.stop_ids])
        (uid,) = self._generator.insert(
            [sequence.context],
            max_tokens=[sequence.remaining],
            samplers=[make_sampler(job.sampling, position=len(sequence.tokens))],
            logits_processors=[make_processors(job.sampling, job.prompt, sequence.tokens)],
            stop_sequences=[stops],
        )
        self._live[uid] = sequence
        self._uids[job.id] = uid

    def remove(self, job_id: int) -> None:
        uid = self._uids.pop(job_id, None)
        if uid is not None:
            del self._live[uid]
            self._generator.remove([uid])

    def step(self) -> list[StepResult]:
        _, responses = self._generator.next()
        results = []
        for response in responses:
            sequence = self._live[response.uid]
            results.append(
                sequence.result(response.token, response.logprobs, response.finish_reason)
            )
            if response.finish_reason is not None:
                del self._live[response.uid]
                del self._uids[sequence.job.id]
        return results

    def close(self) -> None:
        self._live.clear()
        self._uids.clear()
        self._generator.close()
        del self._generator
        apply_wired_limit(self._wired_limit)
