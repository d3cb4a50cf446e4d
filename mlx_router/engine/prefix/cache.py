"""KV caches of prompts that were computed before, for prompts that begin in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from mlx_router.engine.prefix.layers import (
    Key,
    Layers,
    Marks,
    cuttable,
    evaluate,
    restore,
    size,
    still_cuttable,
)

_SHORTEST = 16  # tokens: less is computed as fast as it is copied
_MOST_MARKS = 16  # of an entry
_MOST_ENTRIES = 512  # all are looked at for every prompt


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What is known of the beginning of a prompt: ``cache`` holds its first ``tokens`` tokens, to
    go on from; None: nothing is known.

    ``fork``: how many tokens it shares with a prompt that is kept, which may be more, since not
    every cache can be cut back to them. ``marks`` of the cache, for those who keep what becomes of
    it. ``lost_images``: it held more, of another prompt, and there were images in it.

    ``reading``: a cache of the first ``on_disk`` tokens, which are more, if it can be read.
    """

    tokens: int = 0
    cache: list[Any] | None = None
    fork: int = 0
    marks: Marks = field(default_factory=dict)
    lost_images: bool = False
    reading: Future[list[Any] | None] | None = None
    on_disk: int = 0


NOTHING = Prefix()


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """``parts_at``: a prompt that begins with so many of its tokens has taken its place: what
    comes after them is the answer, and what asks for one."""

    scope: str
    key: Key
    parts_at: int
    cache: list[Any]
    marks: Marks
    nbytes: int

    def restorable(self, shared: int) -> int:
        """To how many tokens, at most ``shared``, the cache can be cut back."""
        if shared == len(self.key) or all(map(still_cuttable, self.cache)):
            return shared
        return max((tokens for tokens in self.marks if tokens <= shared), default=0)

    def marks_until(self, shared: int) -> dict[int, Layers]:
        """What can be gone on from within the first ``shared`` tokens, besides cutting."""
        marks = {tokens: layers for tokens, layers in self.marks.items() if tokens <= shared}
        if shared == len(self.key):
            loose = {i: layer for i, layer in enumerate(self.cache) if not cuttable(layer)}
            if loose:
                marks[shared] = loose
        return marks


class PrefixCache:
    """The caches that were used last, of ``max_bytes`` together; 0: none. Lives on the model's
    thread.

    A ``scope`` sees its own entries only. Tokens are compared one by one. A layer that cannot be
    cut back (a sliding window that is full, a recurrent state) is reused as it was at the end of
    its prompt, or at a mark: a number of tokens for which it was put by.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # the one used last comes last

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def find(self, scope: str, key: Key) -> Prefix:
        """The longest prefix that can be reused; at least one token is left to be computed."""
        best, best_tokens, fork = None, _SHORTEST - 1, 0
        for entry in self._entries:
            if entry.scope != scope:
                continue
            shared = min(_shared(entry.key, key), len(key) - 1)
            fork = max(fork, shared)
            if shared <= best_tokens:
                continue
            tokens = entry.restorable(shared)
            if tokens > best_tokens:
                best, best_tokens = entry, tokens
        if best is None:
            return Prefix(fork=fork)
        self._entries.remove(best)
        self._entries.append(best)
        marks = best.marks_until(best_tokens)
        excess = len(best.key) - best_tokens
        return Prefix(
            best_tokens,
            restore(best.cache, marks.get(best_tokens, {}), excess),
            fork,
            marks,
            lost_images=bool((best.key[best_tokens:] < 0).any()),
        )

    def keep(
        self, scope: str, key: Key, cache: list[Any], marks: Marks, parts_at: int | None = None
    ) -> bool:
        """Keep the cache of all of ``key``. It is no longer the caller's, and the layers of
        ``marks`` are evaluated. ``parts_at``: how much of it another prompt is likely to begin
        with; None: all of it. False: it is not worth it, or too large."""
        room = self._max_bytes - size(cache)
        if len(key) < _SHORTEST or room < 0:
            return False
        evaluate(cache)
        kept = dict(marks)
        parts_at = len(key) if parts_at is None else parts_at
        entries = []
        for entry in self._entries:
            shared = _shared(entry.key, key) if entry.scope == scope else 0
            if shared >= min(entry.parts_at, len(entry.key)) > 0:
                kept = entry.marks_until(shared) | kept
            else:
                entries.append(entry)
        kept = {tokens: layers for tokens, layers in kept.items() if tokens < len(key)}
        kept = dict(_thinned(kept, room))
        nbytes = size(cache) + _marks_size(kept)
        self._entries = entries
        self._entries.append(_Entry(scope, key, parts_at, cache, kept, nbytes))
        held = self.nbytes
        while held > self._max_bytes or len(self._entries) > _MOST_ENTRIES:
            held -= self._entries.pop(0).nbytes
        return True

    def clear(self) -> None:
        self._entries.clear()


def text_key(ids: Sequence[int]) -> Key:
    """The key of a prompt without images."""
    return np.asarray(ids, dtype=np.int64)


def _shared(one: Key, other: Key) -> int:
    """How many tokens two keys have in common at their beginning."""
    count = min(len(one), len(other))
    different = np.flatnonzero(one[:count] != other[:count])
    return int(different[0]) if len(different) else count


def _thinned(marks: Marks, room: int) -> Marks:
    """As many marks as there is room for: the first, where the messages begin, and the latest."""
    left = dict(sorted(marks.items()))
    while len(left) > _MOST_MARKS or (left and _marks_size(left) > room):
        del left[list(left)[1 if len(left) > 1 else 0]]
    return left


def _marks_size(marks: Marks) -> int:
    return size(list(chain.from_iterable(layers.values() for layers in marks.values())))
