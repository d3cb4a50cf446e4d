"""Samplers and logits processors for one row of a batch.

They run inside a step, where an exception would poison the whole batch: they never raise. None but
a grammar waits for the device: every value stays a lazy array. All see their row one step ahead
of the token that is reported, since mlx-lm computes a step while it hands out the last one.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.grammar.mask import GrammarConstraint

Processor = Callable[[mx.array, mx.array], mx.array]

_GREEDY_BELOW = 1e-5
_MASK_64 = (1 << 64) - 1


class Sampler:
    """Draws a token from each row of log-probabilities [n, V], with random numbers of its own; the
    rows are of consecutive tokens, the first one the ``position``-th.

    The number for the i-th token depends on the seed and on i alone, so that a request gets the
    same text alone, in any batch, and when it is recomputed from the middle.
    Filters act before temperature, as in mlx-lm: top_k, top_p, min_p, then temperature.
    """

    def __init__(self, sampling: Sampling, position: int = 0) -> None:
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8))
        self._seed = seed & _MASK_64
        self.position = position
        self._scale = 1.0 / sampling.temperature
        self._top_p = max(sampling.top_p, 1e-9)
        self._top_k = sampling.top_k
        self._min_p = mx.log(mx.array(sampling.min_p)) if sampling.min_p > 0 else None

    def __call__(self, logprobs: mx.array) -> mx.array:
        scores = logprobs.astype(mx.float32)
        ids = None
        if 0 < self._top_k < scores.shape[-1]:
            ids = mx.argpartition(-scores, kth=self._top_k - 1, axis=-1)[..., : self._top_k]
            scores = mx.take_along_axis(scores, ids, axis=-1)
        if self._top_p < 1:
            order = mx.argsort(-scores, axis=-1)
            scores = mx.take_along_axis(scores, order, axis=-1)
            ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
            before = mx.cumsum(mx.exp(scores), axis=-1, inclusive=False)
            scores = mx.where(before < self._top_p, scores, -mx.inf)
        if self._min_p is not None:
            least = scores.max(axis=-1, keepdims=True) + self._min_p
            scores = mx.where(scores < least, -mx.inf, scores)
        rows = mx.split(scores * self._scale, scores.shape[0])
        chosen = mx.concatenate([mx.random.categorical(row, key=self._next_key()) for row in rows])
        if ids is not None:
            chosen = mx.take_along_axis(ids, mx.expand_dims(chosen, -1), axis=-1).squeeze(-1)
        return chosen

    def sharper(self, factor: float) -> Sampler:
        """A copy that draws with the same random numbers, at ``factor`` of the temperature."""
        copied = copy.copy(self)
        copied._scale = self._scale / factor
        return copied

    def _next_key(self) -> mx.array:
        # The increment and the multiplier are those of splitmix64: neighbours do not correlate.
        mixed = (self._seed + (self.position + 1) * 0x9E3779B97F4A7C15) & _MASK_64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        self.position += 1
        key: mx.array = mx.random.key(mixed)
        return key


def make_sampler(sampling: Sampling, position: int = 0) -> Sampler | None:
    """A sampler, or None for greedy: rows without one share a single argmax."""
    return None if sampling.temperature < _GREEDY_BELOW else Sampler(sampling, position)


class LogitBias:
    """Adds a constant to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = mx.array(list(bias), dtype=mx.uint32)
        self._values = mx.array(list(bias.values()), dtype=mx.float32)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, self._ids].add(self._values.astype(logits.dtype))


class Penalties:
    """Presence and frequency penalties over the generated tokens, as OpenAI defines them, and a
    repetition penalty over prompt and generated tokens, as in Hugging Face transformers."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int] = ()
    ) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._generated = generated
        self._counts: mx.array | None = None
        self._seen: mx.array | None = None

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        counts = self._count(tokens, logits.shape[-1])
        scores = logits
        repetition = self._sampling.repetition_penalty
        if repetition != 1.0:
            seen = counts > 0 if self._seen is None else (counts > 0) | self._seen
            lowered = mx.where(scores > 0, scores / repetition, scores * repetition)
            scores = mx.where(seen, lowered, scores)
        if self._sampling.frequency_penalty:
            scores = scores - self._sampling.frequency_penalty * counts
        if self._sampling.presence_penalty:
            scores = scores - self._sampling.presence_penalty * (counts > 0)
        return scores.astype(logits.dtype)

    def _count(self, tokens: mx.array, vocab_size: int) -> mx.array:
        if self._counts is None:  # the newest token is the prompt's last, or already counted
            zeros = mx.zeros((1, vocab_size))
            self._counts = _scatter(zeros, self._generated)
            if self._sampling.repetition_penalty != 1.0:
                self._seen = _scatter(zeros, self._prompt) > 0
        else:
            self._counts = self._counts.at[:, tokens[-1:]].add(1.0)
        return self._counts


def _scatter(counts: mx.array, ids: Sequence[int]) -> mx.array:
    return counts.at[:, mx.array(list(ids), dtype=mx.uint32)].add(1.0) if len(ids) else counts


class RawLogits:
    """Changes nothing, and keeps the model's own logits for the log-probabilities of tokens that
    other processors have a say in."""

    def __init__(self) -> None:
        self._rows: deque[mx.array] = deque()

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self._rows.append(logits)
        return logits

    def take(self) -> mx.array:
        """Log-probabilities [V] of the oldest step that was not taken."""
        row = self._rows.popleft()[0].astype(mx.float32)
        return row - mx.logsumexp(row)


def _has_penalties(sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty
        or sampling.presence_penalty
    )


def needs_processors(job: Job) -> bool:
    """Whether anything stands between the logits of ``job`` and its sampler."""
    penalised = _has_penalties(job.sampling)
    return penalised or bool(job.sampling.logit_bias) or job.constraint is not None


def make_processors(job: Job, generated: Sequence[int] = ()) -> list[Processor]:
    """The logits processors that ``job`` asks for; usually none."""
    sampling = job.sampling
    processors: list[Processor] = []
    if _has_penalties(sampling):
        processors.append(Penalties(sampling, job.prompt, generated))
    if sampling.logit_bias:
        processors.append(LogitBias(sampling.logit_bias))
    if job.constraint is not None:
        assert isinstance(job.constraint, GrammarConstraint)
        processors.append(job.constraint.processor(job.max_tokens, generated))
    return processors
