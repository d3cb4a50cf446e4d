"""Prompt lookup: what followed the last time that the latest tokens were seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_router.engine.sampling import Sampler

_LENGTHS = (3, 2)  # of what is looked for: a longer match is more often right
_WEIGHT = 1 / 8  # of the newest token in `likely`
_PRIME = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


class Lookup:
    """Implements :class:`mlx_router.engine.speculation.loop.Drafter` for one sequence, from its own
    ``context``, without a second model. Where nothing repeats itself it drafts nothing.

    It counts all the time, also while nothing is drafted, how often its guess of the next token is
    right, which costs some ten microseconds a token: so it is known when an answer begins to copy.

    The index is a table of places by hash: a place that another n-gram has taken since is lost, one
    that is found is checked.
    """

    def __init__(self, context: Sequence[int]) -> None:
        self._tokens = list(context)
        bits = (4 * len(context) + 4096).bit_length()
        self._shift = 64 - bits
        self._places = {length: np.zeros(1 << bits, dtype=np.int32) for length in _LENGTHS}
        self._slots: dict[int, int] = {}  # of the latest tokens
        self._likely = 0.0
        ids = np.array(self._tokens, dtype=np.uint64)
        for length, places in self._places.items():
            count = len(ids) - length  # of n-grams that something follows
            if count > 0:
                hashed = np.zeros(count, dtype=np.uint64)
                for start in range(length):
                    hashed = (hashed + ids[start : start + count]) * np.uint64(_PRIME)
                places[hashed >> np.uint64(self._shift)] = np.arange(length, len(ids))
        self._found = self._find()

    @property
    def likely(self) -> float:
        return self._likely

    def observe(self, token: int) -> None:
        hit = self._found is not None and self._tokens[self._found] == token
        self._likely += _WEIGHT * (hit - self._likely)
        for length, slot in self._slots.items():
            self._places[length][slot] = len(self._tokens)
        self._tokens.append(token)
        self._found = self._find()

    def draft(
        self, context: Sequence[int], count: int, sampler: Sampler | None = None
    ) -> list[int]:
        for token in context[len(self._tokens) :]:
            self.observe(token)
        if self._found is None:
            return []
        # Text that repeats itself goes on to do so: past the end it begins anew.
        period = len(self._tokens) - self._found
        return [self._tokens[self._found + each % period] for each in range(count)]

    def _find(self) -> int | None:
        """The place after the last occurrence of the latest tokens, but for the latest itself."""
        found = None
        for length, places in self._places.items():
            latest = self._tokens[-length:]
            if len(latest) == length:
                hashed = 0
                for token in latest:
                    hashed = (hashed + token) * _PRIME & _MASK_64
                slot = self._slots[length] = hashed >> self._shift
                place = int(places[slot])
                if found is None and place and self._tokens[place - length : place] == latest:
                    found = place
        return found
