"""One sequence after the other, for models whose cache cannot be merged into a batch."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlx_router.engine.base import StepResult
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler


class SerialRunner:
    """Sequences take turns as a whole: each is decoded to its end before the next begins.

    A prompt is prefilled within one step, so an abort during prefill takes effect after it.
    """

    def __init__(self, model: Any, *, prefill_step_size: int) -> None:
        self._model = model
        self._prefill_step_size = prefill_step_size
        self._queue: deque[LiveSequence] = deque()
        self._tokens: Iterator[tuple[int, mx.array]] | None = None
        # A prompt that more sequences of the queue share, and its cache: all but its last token.
        self._shared: tuple[Sequence[int], list[Any]] | None = None

    def insert(self, sequence: LiveSequence) -> None:
        self._queue.append(sequence)

    def remove(self, job_id: int) -> None:
        if self._queue and self._queue[0].job.id == job_id:
            self._next()
        else:
            self._queue = deque(s for s in self._queue if s.job.id != job_id)

    def step(self) -> list[StepResult]:
        if not self._queue:
            return []
        sequence = self._queue[0]
        if self._tokens is None:
            self._tokens = self._generate(sequence)
        token, logprobs = next(self._tokens)
        finish = "length" if sequence.remaining == 1 else None
        if token in sequence.job.stop_ids:
            finish = "stop"
        if finish is not None:
            self._next()
        return [sequence.result(token, logprobs, finish)]

    def close(self) -> None:
        self._queue.clear()
        self._tokens = self._shared = None
        self._model = None

    def _next(self) -> None:
        self._queue.popleft()
        self._tokens = None  # a live generator would keep its KV cache
        if self._shared is not None and not self._is_shared(self._shared[0]):
            self._shared = None

    def _generate(self, sequence: LiveSequence) -> Iterator[tuple[int, mx.array]]:
        job = sequence.job
        cache, rest = self._cached(sequence)
        tokens: Iterator[tuple[int, mx.array]] = generate_step(
            mx.array(list(rest)),
            self._model,
            max_tokens=sequence.remaining,
            sampler=make_sampler(job.sampling, position=len(sequence.tokens)),
            logits_processors=sequence.processors(),
            prefill_step_size=self._prefill_step_size,
            prompt_cache=cache,
            stream=mx.default_stream(mx.default_device()),
        )
        return tokens

    def _cached(self, sequence: LiveSequence) -> tuple[list[Any] | None, Sequence[int]]:
        """A cache to go on from, and the tokens that are not in it. None: there is no cache."""
        prompt = sequence.job.prompt
        if self._shared is None or self._shared[0] is not prompt:
            others = len(prompt) > 1 and self._is_shared(prompt, besides=sequence)
            if sequence.tokens or not others:
                return None, sequence.context
            cache = make_prompt_cache(self._model)
            for start in range(0, len(prompt) - 1, self._prefill_step_size):
                end = min(start + self._prefill_step_size, len(prompt) - 1)
                self._model(mx.array(list(prompt[start:end]))[None], cache=cache)
                mx.eval([layer.state for layer in cache])
            self._shared = (prompt, cache)
        return copy.deepcopy(self._shared[1]), [prompt[-1], *sequence.tokens]

    def _is_shared(self, prompt: Sequence[int], besides: LiveSequence | None = None) -> bool:
        return any(s.job.prompt is prompt for s in self._queue if s is not besides)
