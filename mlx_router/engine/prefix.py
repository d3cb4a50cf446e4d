"""KV caches of prompts that were computed before, for prompts that begin in the same way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

Key = np.ndarray[Any, np.dtype[np.int64]]  # [tokens]: ids, and negative numbers for what is seen

_SHORTEST = 16  # tokens: less is computed as fast as it is copied


@dataclass(frozen=True, slots=True)
class Prefix:
    """A cache that holds the first ``tokens`` tokens of a prompt, to go on from. ``lost_images``:
    it held more, of another prompt, and there were images in it."""

    tokens: int
    cache: list[Any]
    lost_images: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    scope: str
    key: Key
    cache: list[Any]
    size: int  # bytes


class PrefixCache:
    """The caches that were used last, of ``max_bytes`` together; 0: none. Lives on the model's
    thread.

    A ``scope`` sees its own entries only. A layer that cannot be cut back (a sliding window that
    was exceeded, a recurrent state) is reused only for a prompt that begins with all it has seen.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[_Entry] = []  # the one used last comes last

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    @property
    def nbytes(self) -> int:
        return sum(entry.size for entry in self._entries)

    def find(self, scope: str, key: Key) -> Prefix | None:
        """The longest prefix that can be reused; at least one token is left to be computed."""
        best, best_shared = None, _SHORTEST - 1
        for entry in self._entries:
            if entry.scope != scope:
                continue
            shared = min(_shared(entry.key, key), len(key) - 1)
            if shared > best_shared and (shared == len(entry.key) or _can_cut(entry.cache)):
                best, best_shared = entry, shared
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        excess = len(best.key) - best_shared
        cache = copy.deepcopy(best.cache)  # shares the arrays until one of the two is written to
        if excess:
            for layer in cache:
                layer.trim(excess)
        return Prefix(best_shared, cache, bool((best.key[best_shared:] < 0).any()))

    def keep(self, scope: str, key: Key, cache: list[Any]) -> None:
        """Keep the cache of all of ``key``. It is no longer the caller's."""
        size = sum(layer.nbytes for layer in cache)
        if len(key) < _SHORTEST or size > self._max_bytes:
            return
        # Unevaluated, it would keep the caches of the whole batch that it was taken from.
        mx.eval([layer.state for layer in cache])
        replaceable = _can_cut(cache)  # then what it begins with can be had from it
        self._entries = [
            entry
            for entry in self._entries
            if entry.scope != scope
            or not (replaceable or len(entry.key) == len(key))
            or _shared(entry.key, key) < len(entry.key)
        ]
        self._entries.append(_Entry(scope, key, cache, size))
        while self.nbytes > self._max_bytes:
            del self._entries[0]

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


def _can_cut(cache: list[Any]) -> bool:
    return all(layer.is_trimmable() for layer in cache)
