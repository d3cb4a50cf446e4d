"""Continuous batching on mlx-lm's BatchGenerator."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from mlx_router.engine.base import StepResult
from mlx_router.engine.device import WiredLimit, apply_wired_limit, settle
from mlx_router.engine.prefill import WAITING_SECONDS, Prefill, SliceSize
from mlx_router.engine.prefix.keeper import Keeper
from mlx_router.engine.prefix.layers import evaluate
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler
from mlx_router.engine.speculation.drafting import Drafting, Solo

log = logging.getLogger(__name__)


class BatchRunner:
    """All sequences of a model in one BatchGenerator. ``keeper``: where computed prompts are kept,
    and looked for; it outlives the runner.

    A step computes a slice of one prompt, in a cache of its own, and a token for every sequence
    that decodes. A prompt joins them with its last token. Short prompts that nothing is known of
    join at once, as many as fit in a slice: the generator computes them together.
    """

    def __init__(
        self,
        model: Any,
        *,
        prefill_step_size: int,
        max_batch_size: int,
        wired_limit: WiredLimit,
        keeper: Keeper,
        drafting: Drafting | None = None,
    ) -> None:
        self._model = model
        self._wired_limit = wired_limit
        self._keeper = keeper
        self._drafting = drafting or Drafting(model)
        self._solo: Solo | None = None  # of the sequence that is alone
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_batch_size,
            prefill_batch_size=max_batch_size,
            prefill_step_size=prefill_step_size,
            stream=mx.default_stream(mx.default_device()),  # its own would be one more a thread
        )
        apply_wired_limit(wired_limit)
        self._room = max_batch_size
        self._slices = SliceSize(prefill_step_size)
        self._prefills: deque[Prefill] = deque()
        self._shortest_is_next = False
        self._put_off = 0  # steps
        self._joined = 0  # tokens that the generator is to compute in its next step
        self._failed: list[StepResult] = []
        self._live: dict[int, LiveSequence] = {}  # in the generator
        self._uids: dict[int, int] = {}
        self._stops: dict[frozenset[int], StopSequences] = {}

    def insert(self, sequence: LiveSequence) -> None:
        if not any(prefill.shared_with(sequence) for prefill in self._prefills):
            self._prefills.append(self._prefill_of(sequence))

    def remove(self, job_id: int) -> None:
        for prefill in self._prefills:
            if [each.job.id for each in prefill.sequences] == [job_id]:
                self._keeper.keep_begun(prefill)
            prefill.remove(job_id)
        self._prefills = deque(prefill for prefill in self._prefills if prefill.sequences)
        if self._solo is not None and self._solo.sequence.job.id == job_id:
            solo, self._solo = self._solo, None
            if solo.decodes:
                self._keeper.keep(solo.sequence, *solo.end())
        uid = self._uids.pop(job_id, None)
        if uid is not None:
            sequence = self._live.pop(uid)
            # Before its first token here, its cache lacks the last one of the context.
            worth_keeping = self._keeper.enabled and len(sequence.tokens) > sequence.joined_with
            found = self._generator.remove([uid], return_prompt_caches=worth_keeping)
            if uid in found:
                self._keeper.keep(sequence, found[uid][0], sequence.tokens)

    def step(self) -> list[StepResult]:
        if self._alone():
            assert self._solo is not None
            return self._step_alone(self._solo)
        prefilling = bool(self._prefills) and len(self._live) < self._room
        if prefilling:
            self._prefill()
        results = self._decode(beside_prefill=prefilling)
        failed, self._failed = self._failed, []
        return failed + results

    def close(self) -> None:
        self._solo = None
        self._prefills.clear()
        self._live.clear()
        self._uids.clear()
        settle()  # else the generator's close may raise what a failed step left behind
        self._generator.close()
        del self._generator
        apply_wired_limit(self._wired_limit)

    # --- prompts ----------------------------------------------------------------------------

    def _prefill_of(self, sequence: LiveSequence) -> Prefill:
        return Prefill(self._model, sequence, lambda: make_prompt_cache(self._model))

    def _prefill(self) -> None:
        """Compute a slice of one prompt, or hand short ones to the generator. A fault here touches
        nobody else: the cache is the prompt's own."""
        reads = {prefill: prefill.waits_for() for prefill in self._prefills}
        ready = [prefill for prefill, read in reads.items() if read is None]
        if not ready:
            if not self._live:  # nothing else to do
                wait([read for read in reads.values() if read is not None], WAITING_SECONDS)
            return
        size = self._slices.tokens(others_decode=bool(self._live))
        prefill = self._next_prefill(ready)
        try:
            if not prefill.begun:
                prefill.begin(self._keeper.find(prefill.sequences[0]))
                if prefill.waits_for() is not None:
                    return
            if self._can_join_at_once(prefill, size):
                self._join_together(prefill, size)
            elif self._first_tokens_are_due():
                self._shortest_is_next = not self._shortest_is_next  # it keeps its turn
            elif self._advance(prefill, size):
                self._prefills.remove(prefill)
                self._join(prefill)
        except Exception:
            log.exception("a prompt could not be computed")
            if prefill in self._prefills:
                self._prefills.remove(prefill)
            for sequence in prefill.sequences:
                if sequence.job.id not in self._uids:
                    self._fail(sequence)

    def _next_prefill(self, ready: Sequence[Prefill]) -> Prefill:
        """In turns the oldest, and the one with the least to do: a short prompt does not wait for
        the long one that came before it, and that one is not put off for ever."""
        self._shortest_is_next = not self._shortest_is_next
        if self._shortest_is_next:
            return min(ready, key=lambda prefill: prefill.left)
        return ready[0]

    def _first_tokens_are_due(self) -> bool:
        """Whether a slice is put off, two steps at most, for those that have just joined: so long
        it takes the generator to give them a first token."""
        waiting = any(each.joined_with == len(each.tokens) for each in self._live.values())
        self._put_off = self._put_off + 1 if waiting and self._put_off < 2 else 0
        return self._put_off > 0

    def _advance(self, prefill: Prefill, size: int) -> bool:
        start, done = time.perf_counter(), prefill.done
        complete = prefill.advance(size)
        self._slices.slice_took(prefill.done - done, time.perf_counter() - start)
        return complete

    def _can_join_at_once(self, prefill: Prefill, size: int) -> bool:
        (first, *others) = prefill.sequences
        # After a failed step each is computed by itself: one that fails again is alone then.
        if others or first.retried or prefill.has_marks_to_make:
            return False
        return prefill.done == 0 and prefill.total <= size

    def _join_together(self, first: Prefill, size: int) -> None:
        """The generator pads prompts to the longest of them."""
        joining, longest = [first], first.total
        size = self._slices.together(size, len(self._prefills), len(self._live))
        for prefill in self._prefills:
            room = self._room - len(self._live) - len(joining)
            if prefill is first or prefill.begun or room <= 0:
                continue
            length = max(longest, prefill.total)
            if length * (len(joining) + 1) > size or not self._can_join_at_once(prefill, size):
                continue
            prefill.begin(self._keeper.find(prefill.sequences[0]))
            if prefill.waits_for() is None and self._can_join_at_once(prefill, size):
                joining.append(prefill)
                longest = length
        self._joined = longest * len(joining)
        for prefill in joining:
            self._prefills.remove(prefill)
        for prefill in joining:
            self._insert(prefill.sequences[0], prefill.sequences[0].context)

    def _join(self, prefill: Prefill) -> None:
        if not prefill.sequences[0].tokens:
            self._keeper.keep_begun(prefill)
        *others, last = prefill.sequences
        for sequence in others:
            self._go_on(sequence, copy.deepcopy(prefill.cache), prefill)
        self._go_on(last, prefill.cache, prefill)

    def _go_on(self, sequence: LiveSequence, cache: list[Any], prefill: Prefill) -> None:
        """Decode a sequence, all of whose context but the last token is in ``cache``."""
        if sequence is not prefill.sequences[0]:
            sequence.cached = prefill.done
        sequence.marks = prefill.marks
        self._insert(sequence, sequence.context[-1:], cache)

    def _insert(
        self, sequence: LiveSequence, tokens: Sequence[int], cache: list[Any] | None = None
    ) -> None:
        """``tokens`` are to be computed, after those in ``cache``. A sequence that the generator
        does not take fails, and no other does."""
        job = sequence.job
        stops = self._stops.get(job.stop_ids)
        if stops is None:
            stops = self._stops[job.stop_ids] = StopSequences([(i,) for i in job.stop_ids])
        try:
            (uid,) = self._generator.insert(
                [list(tokens)],
                max_tokens=[sequence.remaining],
                caches=[cache],
                samplers=[make_sampler(job.sampling, position=len(sequence.tokens))],
                logits_processors=[sequence.processors()],
                stop_sequences=[stops],
            )
        except Exception:
            log.exception("a sequence was not taken")
            self._fail(sequence)
        else:
            sequence.joined_with = len(sequence.tokens)
            self._live[uid] = sequence
            self._uids[job.id] = uid

    def _fail(self, sequence: LiveSequence) -> None:
        message = "The model failed on this prompt; the log has the reason."
        self._failed.append(StepResult(sequence.job.id, None, error=message))

    # --- a sequence that is alone ---------------------------------------------------------------

    def _alone(self) -> bool:
        """Whether there is a single sequence, which decodes by itself; it does so where drafting
        helps, and until others come."""
        solo = self._solo
        if solo is not None and solo.decodes:
            if not self._prefills and solo.helps:
                return True
            cache, _ = solo.end()
            self._insert(solo.sequence, solo.sequence.context[-1:], cache)
        if self._prefills or len(self._live) != 1:
            self._solo = None
            return False
        ((uid, sequence),) = self._live.items()
        if solo is None or solo.sequence is not sequence:
            solo = self._solo = self._drafting.solo(sequence)
        if solo is None or not solo.worth:
            return False
        cache, _ = self._generator.remove([uid], return_prompt_caches=True)[uid]
        evaluate(cache)
        for layer in cache:
            layer.trim(1)  # of its last token the logits are needed again
        solo.begin(cache)
        del self._live[uid], self._uids[sequence.job.id]
        return True

    def _step_alone(self, solo: Solo) -> list[StepResult]:
        results = solo.step()
        if results[-1].finish is not None:
            self._solo = None
            self._keeper.keep(solo.sequence, *solo.end())
        return results

    # --- answers ----------------------------------------------------------------------------

    def _decode(self, *, beside_prefill: bool = False) -> list[StepResult]:
        start = time.perf_counter()
        _, responses = self._generator.next()
        seconds = time.perf_counter() - start
        joined, self._joined = self._joined, 0
        if joined and not responses:  # else it took a step of the others as well
            self._slices.slice_took(joined, seconds)
        if responses and not beside_prefill:
            self._slices.step_took(seconds)
            if len(self._live) == 1:
                self._drafting.plain_step_took(seconds)
        results = []
        for response in responses:
            sequence = self._live[response.uid]
            results.append(
                sequence.result(response.token, response.logprobs, response.finish_reason)
            )
            if response.finish_reason is not None:
                del self._live[response.uid]
                del self._uids[sequence.job.id]
                self._keeper.keep(
                    sequence, response.prompt_cache, [*sequence.tokens, response.token]
                )
        return results
