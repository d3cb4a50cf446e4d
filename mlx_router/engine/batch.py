"""Continuous batching on mlx-lm's BatchGenerator."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, StopSequences

from mlx_router.engine.base import Job, StepResult
from mlx_router.engine.device import WiredLimit, apply_wired_limit, settle
from mlx_router.engine.prefix import Key, Prefix, PrefixCache, text_key
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler

log = logging.getLogger(__name__)


class BatchRunner:
    """All sequences of a model in one BatchGenerator. ``prefixes``: where computed prompts are
    kept, and looked for; it outlives the runner."""

    def __init__(
        self,
        model: Any,
        *,
        prefill_step_size: int,
        max_batch_size: int,
        wired_limit: WiredLimit,
        prefixes: PrefixCache,
    ) -> None:
        self._wired_limit = wired_limit
        self._prefixes = prefixes
        self._generator = BatchGenerator(
            model,
            completion_batch_size=max_batch_size,
            prefill_batch_size=min(8, max_batch_size),
            prefill_step_size=prefill_step_size,
            stream=mx.default_stream(mx.default_device()),  # its own would be one more a thread
        )
        apply_wired_limit(wired_limit)
        self._live: dict[int, LiveSequence] = {}
        self._uids: dict[int, int] = {}
        self._stops: dict[frozenset[int], StopSequences] = {}
        # Jobs whose prompt is not computed yet, and who waits for it.
        self._forks: dict[int | None, list[LiveSequence]] = {}

    def insert(self, sequence: LiveSequence) -> None:
        waiting = self._forks.get(sequence.job.fork_of)
        if waiting is not None and not sequence.tokens:
            waiting.append(sequence)
        else:
            found = self._prefix(sequence)
            if found is None:
                self._insert(sequence, sequence.context)
            else:
                self._go_on(sequence, found.cache, found.tokens)

    def remove(self, job_id: int) -> None:
        forks = self._forks.pop(job_id, [])
        uid = self._uids.pop(job_id, None)
        if uid is not None:
            sequence = self._live.pop(uid)
            worth_keeping = self._prefixes.enabled and bool(sequence.tokens)
            found = self._generator.remove([uid], return_prompt_caches=worth_keeping)
            if uid in found:
                self._keep(sequence, *found[uid])
        for waiting in self._forks.values():
            waiting[:] = [sequence for sequence in waiting if sequence.job.id != job_id]
        for sequence in forks:
            self.insert(sequence)

    def step(self) -> list[StepResult]:
        prompts, responses = self._generator.next()
        for prompt in prompts:
            if prompt.end_of_segment and not prompt.end_of_prompt:
                self._fork(prompt.uid)
        results = []
        for response in responses:
            sequence = self._live[response.uid]
            results.append(
                sequence.result(response.token, response.logprobs, response.finish_reason)
            )
            if response.finish_reason is not None:
                del self._live[response.uid]
                del self._uids[sequence.job.id]
                self._keep(sequence, response.prompt_cache, response.all_tokens)
        return results

    def _prompt_key(self, job: Job) -> Key:
        return text_key(job.prompt)

    def _prefix(self, sequence: LiveSequence) -> Prefix | None:
        """What is known of the context of a sequence."""
        if not self._prefixes.enabled:
            return None
        job = sequence.job
        key = np.concatenate([self._prompt_key(job), text_key(sequence.tokens)])
        found = self._prefixes.find(job.cache_scope, key)
        sequence.cached = min(found.tokens, len(job.prompt)) if found is not None else 0
        return found

    def _keep(self, sequence: LiveSequence, cache: list[Any], tokens: Sequence[int]) -> None:
        """Keep the cache of a sequence that has ended; it holds ``tokens``."""
        if not self._prefixes.enabled:
            return
        generated = tokens[len(sequence.job.prompt) :]
        key = np.concatenate([self._prompt_key(sequence.job), text_key(generated)])
        key = key[: len(tokens)]  # less than the prompt, if it was being computed again
        try:
            self._prefixes.keep(sequence.job.cache_scope, key, cache)
        except Exception:  # out of memory, say: the answer is there, and the next one costs more
            log.exception("a computed prompt could not be kept")
            self._prefixes.clear()

    def _go_on(self, sequence: LiveSequence, cache: list[Any], cached: int) -> None:
        """Compute the rest of a context whose first ``cached`` tokens are in ``cache``."""
        context = sequence.context
        self._insert(sequence, context[cached:], context[:cached], cache)

    def _insert(
        self,
        sequence: LiveSequence,
        tokens: Sequence[int],
        cached: Sequence[int] = (),
        cache: list[Any] | None = None,
    ) -> None:
        """``tokens`` are to be computed, after ``cached``, which are in ``cache``."""
        job = sequence.job
        stops = self._stops.get(job.stop_ids)
        if stops is None:
            stops = self._stops[job.stop_ids] = StopSequences([(i,) for i in job.stop_ids])
        (uid,) = self._generator.insert(
            [list(tokens)],
            max_tokens=[sequence.remaining],
            caches=[cache],
            all_tokens=[list(cached)],
            samplers=[make_sampler(job.sampling, position=len(sequence.tokens))],
            logits_processors=[sequence.processors()],
            stop_sequences=[stops],
        )
        self._live[uid] = sequence
        self._uids[job.id] = uid
        if len(tokens) > 1 and not sequence.tokens:
            self._forks[job.id] = []

    def _fork(self, uid: int) -> None:
        """The prompt of ``uid`` is computed, but for its last token: those that wait for it go on
        from a copy of its cache."""
        leader = self._live[uid].job
        forks = self._forks.pop(leader.id, [])
        if not forks:
            return
        with mx.stream(self._generator.stream):
            cache, _ = self._generator.extract_cache([uid])[uid]
            # Unevaluated, it would keep the cache of the whole batch.
            mx.eval([layer.state for layer in cache])
            for sequence in forks:
                prompt = sequence.job.prompt
                self._insert(sequence, prompt[-1:], prompt[:-1], copy.deepcopy(cache))

    def close(self) -> None:
        self._live.clear()
        self._uids.clear()
        self._forks.clear()
        settle()  # else the generator's close may raise what a failed step left behind
        self._generator.close()
        del self._generator
        apply_wired_limit(self._wired_limit)
