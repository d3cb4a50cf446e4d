"""Prompts on their way into a KV cache, slice by slice, between the decoding steps of others."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_router.engine.prefix.cache import NOTHING, Prefix
from mlx_router.engine.prefix.layers import Layers, cuttable, evaluate, mark
from mlx_router.engine.runner import LiveSequence

WAITING_SECONDS = 0.02  # that a step with nothing else to do waits for the disk

_SLICE_SECONDS = 0.25
_STEPS_PER_SLICE = 4
_MOST_SHARES = 4  # slices' worth of short prompts computed together
_READ_SECONDS = 2.0
_READ_RATE = 1000.0  # tokens a second, and the seconds above: more is not waited for
_WORTH_A_MARK = 128  # tokens
_FIRST = 128  # tokens of a slice beside streams, before anything was measured
_FEWEST = 32  # tokens of a slice; less is hardly faster


class Prefill:
    """The context of a sequence, all but its last token, on its way into a KV cache of its own.

    ``sequences`` share it: the choices of one request. ``marks``: what was put by of layers that
    cannot be cut back, by number of tokens.
    """

    def __init__(
        self, model: Any, sequence: LiveSequence, make_cache: Callable[[], list[Any]]
    ) -> None:
        self.sequences = [sequence]
        self.prefix: Prefix | None = None
        self.cache: list[Any] = []
        self.done = 0
        self.marks: dict[int, Layers] = {}
        self._model = model
        self._make_cache = make_cache
        self._context = sequence.context
        self._stops: list[int] = []
        self._read_until = 0.0

    @property
    def total(self) -> int:
        """Tokens of the context."""
        return len(self._context)

    @property
    def left(self) -> int:
        """Tokens still to be computed, but for the last one."""
        return self.total - 1 - self.done

    @property
    def begun(self) -> bool:
        return self.prefix is not None

    def waits_for(self) -> Future[list[Any] | None] | None:
        """What is being read of it from disk. Once that is there, it goes on from it; a disk that
        takes longer than computing would is not waited for."""
        found = self.prefix
        if found is None or found.reading is None:
            return None
        if not found.reading.done():
            if time.monotonic() < self._read_until:
                return found.reading
            found.reading.cancel()
        layers = found.reading.result() if _has_result(found.reading) else None
        if layers is None:
            self.begin(replace(found, reading=None))
        else:
            self.begin(Prefix(found.on_disk, layers, found.fork))
        return None

    @property
    def has_marks_to_make(self) -> bool:
        """Whether layers that cannot be cut back are to be put by on its way."""
        return bool(self._stops) and self._stops[-1] >= _WORTH_A_MARK

    def shared_with(self, sequence: LiveSequence) -> bool:
        """Whether a sequence is one more choice of this prompt; then it is computed for it too."""
        leader = self.sequences[0]
        if sequence.tokens or leader.tokens or leader.job.id != sequence.job.fork_of:
            return False
        sequence.cached = leader.cached
        self.sequences.append(sequence)
        return True

    def remove(self, job_id: int) -> None:
        """Forget a sequence; the prompt is of no use without any."""
        self.sequences = [each for each in self.sequences if each.job.id != job_id]
        if not self.sequences and self.prefix is not None and self.prefix.reading is not None:
            self.prefix.reading.cancel()

    def begin(self, prefix: Prefix = NOTHING) -> None:
        """Go on from what is known of the context."""
        self.prefix = prefix
        if prefix.reading is not None:
            self._read_until = time.monotonic() + _READ_SECONDS + prefix.on_disk / _READ_RATE
            return
        self.cache = self._make_cache() if prefix.cache is None else prefix.cache
        self.done = prefix.tokens
        self.marks = dict(prefix.marks)
        for sequence in self.sequences:
            sequence.cached = min(prefix.tokens, len(sequence.job.prompt))
        if not all(map(cuttable, self.cache)):
            stops = {*self.sequences[0].job.boundaries, prefix.fork}
            self._stops = sorted(stop for stop in stops if self.done < stop < self.total)

    def advance(self, tokens: int) -> bool:
        """Compute up to so many tokens; True if all but the last one is in the cache."""
        end = self.done + min(tokens, self.left)
        next_stop = bisect_right(self._stops, self.done)
        if next_stop < len(self._stops):
            end = min(end, self._stops[next_stop])
        if end > self.done:
            self._compute(self.done, end)
            self.done = end
            mx.clear_cache()  # slices differ in length: their buffers fit nothing that follows
            if end in self._stops:
                self.marks[end] = mark(self.cache)
        return self.left == 0

    def _compute(self, start: int, end: int) -> None:
        """Put these tokens of the context into the cache."""
        self._model(mx.array([self._context[start:end]]), cache=self.cache)
        evaluate(self.cache)


class SliceSize:
    """How many tokens of a prompt are computed between two decoding steps: as many as take a
    quarter of a second, or as long as four steps, whichever is longer, and never more than
    ``most``. So streams go on, and a prompt beside them takes about a quarter longer than alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens_per_second: float | None = None
        self._step_seconds = 0.0

    def tokens(self, *, others_decode: bool) -> int:
        if not others_decode:
            return self._most
        if self._tokens_per_second is None:
            return min(_FIRST, self._most)
        seconds = max(_SLICE_SECONDS, _STEPS_PER_SLICE * self._step_seconds)
        fitting = int(seconds * self._tokens_per_second)
        return max(min(fitting, self._most), min(_FEWEST, self._most))

    def together(self, size: int, waiting: int, decoding: int) -> int:
        """The tokens of short prompts that are computed together, where one alone has ``size``:
        more, where many wait for few; within a second still."""
        if decoding == 0 or self._tokens_per_second is None:
            return size
        share = min(waiting / decoding, _MOST_SHARES)
        return max(size, min(int(share * _SLICE_SECONDS * self._tokens_per_second), self._most))

    def slice_took(self, tokens: int, seconds: float) -> None:
        if tokens >= min(_FEWEST, self._most) and seconds > 0:
            rate, before = tokens / seconds, self._tokens_per_second
            # Slower at once, faster by and by: the further a prompt is, the longer a token takes.
            self._tokens_per_second = rate if before is None else min(rate, (rate + before) / 2)

    def step_took(self, seconds: float) -> None:
        """A decoding step beside which no prompt was computed."""
        self._step_seconds = (
            seconds if not self._step_seconds else (0.2 * seconds + 0.8 * self._step_seconds)
        )


def _has_result(reading: Future[list[Any] | None]) -> bool:
    return reading.done() and not reading.cancelled() and reading.exception() is None
