"""One sequence after the other, for models whose cache cannot be merged into a batch."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlx_router.engine.base import StepResult
from mlx_router.engine.prefill import WAITING_SECONDS, Prefill
from mlx_router.engine.prefix.keeper import Keeper
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler
from mlx_router.engine.speculation.drafting import Drafting, Solo

log = logging.getLogger(__name__)


class SerialRunner:
    """Sequences take turns as a whole: each is decoded to its end before the next begins. A step is
    a slice of a prompt, or a token."""

    def __init__(
        self,
        model: Any,
        *,
        make_cache: Callable[[], list[Any]],
        prefill_step_size: int,
        keeper: Keeper,
        drafting: Drafting | None = None,
    ) -> None:
        self._model = model
        self._make_cache = make_cache
        self._prefill_step_size = prefill_step_size
        self._keeper = keeper
        self._drafting = drafting or Drafting(model)
        self._solo: Solo | None = None  # decodes in place of _tokens
        self._queue: deque[Prefill] = deque()
        self._tokens: Iterator[tuple[int, mx.array]] | None = None
        self._cache: list[Any] = []  # of the sequence that is being decoded

    def insert(self, sequence: LiveSequence) -> None:
        if not any(prefill.shared_with(sequence) for prefill in self._queue):
            self._queue.append(self._prefill_of(sequence))

    def remove(self, job_id: int) -> None:
        decoding = self._solo is not None or self._tokens is not None
        if decoding and self._sequence.job.id == job_id:
            sequence = self._sequence
            if len(sequence.tokens) > sequence.joined_with:
                # generate_step is one token ahead: the cache holds all that it gave.
                held = (self._cache, sequence.tokens) if self._solo is None else self._solo.end()
                self._keeper.keep(sequence, *held)
            self._end()
            return
        for prefill in self._queue:
            if [each.job.id for each in prefill.sequences] == [job_id]:
                self._keeper.keep_begun(prefill)
            prefill.remove(job_id)
        self._queue = deque(prefill for prefill in self._queue if prefill.sequences)

    def step(self) -> list[StepResult]:
        if not self._queue:
            return []
        try:
            return self._step()
        except Exception:
            if not self._sequence.retried:
                raise
            log.exception("a sequence failed again")
            return self._fail()

    def _step(self) -> list[StepResult]:
        if self._solo is not None:
            return self._step_with_drafts(self._solo)
        if self._tokens is None:
            prefill = self._queue[0]
            if not prefill.begun:
                prefill.begin(self._keeper.find(prefill.sequences[0]))
            if (read := prefill.waits_for()) is not None:
                wait([read], WAITING_SECONDS)
                return []
            if not prefill.advance(self._prefill_step_size):
                return []
            self._start(prefill)
            return []
        sequence = self._sequence
        token, logprobs = next(self._tokens)
        finish = "length" if sequence.remaining == 1 else None
        if token in sequence.job.stop_ids:
            finish = "stop"
        result = sequence.result(token, logprobs, finish)
        if finish is not None:
            # generate_step is one token ahead: the cache holds this one too.
            self._keeper.keep(sequence, self._cache, [*sequence.tokens, token])
            self._end()
        return [result]

    def close(self) -> None:
        self._queue.clear()
        self._solo = self._tokens = self._model = None
        self._cache = []

    @property
    def _sequence(self) -> LiveSequence:
        return self._queue[0].sequences[0]

    def _fail(self) -> list[StepResult]:
        """Give up the sequence that is being computed, and nobody else."""
        failed = self._queue[0].sequences[:]
        if self._solo is not None or self._tokens is not None:
            self._end()
            del failed[1:]  # the others have the prompt's own cache
        else:
            self._queue.popleft()
        message = "The model failed while it computed this answer; the log has the reason."
        return [StepResult(each.job.id, None, error=message) for each in failed]

    def _end(self) -> None:
        """Let go of the sequence that was being decoded."""
        self._solo = self._tokens = None  # a live generator would keep its KV cache
        self._cache = []
        sequences = self._queue[0].sequences
        del sequences[0]
        if not sequences:
            self._queue.popleft()

    def _prefill_of(self, sequence: LiveSequence) -> Prefill:
        return Prefill(self._model, sequence, self._make_cache)

    def _start(self, prefill: Prefill) -> None:
        """Decode the first sequence of a prompt whose last token alone is not computed."""
        sequence = prefill.sequences[0]
        sequence.marks, sequence.joined_with = prefill.marks, len(sequence.tokens)
        self._cache = prefill.cache
        if len(prefill.sequences) > 1:
            self._cache = copy.deepcopy(self._cache)
        self._solo = self._drafting.solo(sequence)
        if self._solo is not None:
            self._solo.begin(self._cache)
        else:
            self._tokens = self._generate(sequence)

    def _step_with_drafts(self, solo: Solo) -> list[StepResult]:
        results = solo.step()
        if results[-1].finish is not None:
            self._keeper.keep(solo.sequence, *solo.end())
            self._end()
        return results

    def _generate(self, sequence: LiveSequence) -> Iterator[tuple[int, mx.array]]:
        job = sequence.job
        tokens: Iterator[tuple[int, mx.array]] = generate_step(
            mx.array(sequence.context[-1:]),
            self._model,
            max_tokens=sequence.remaining,
            sampler=make_sampler(job.sampling, position=len(sequence.tokens)),
            logits_processors=sequence.processors(),
            prompt_cache=self._cache,
            stream=mx.default_stream(mx.default_device()),
        )
        return tokens
