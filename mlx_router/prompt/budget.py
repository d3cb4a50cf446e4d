"""What rendering one template may cost. A template comes with a model: it is not to be trusted."""

from __future__ import annotations

import time
from collections.abc import Iterable

# A prompt of a million tokens has about five million characters.
MAX_CHARACTERS = 16_000_000
MAX_CHARACTERS_MADE = 256_000_000
MAX_SECONDS = 1.0

_STEPS_PER_LOOK = 8
_CHARACTERS_PER_STEP = 100_000


class TooExpensive(Exception):
    """The template was stopped; the message says at which limit."""


class Budget:
    """One rendering's allowance; used by one thread.

    Time is this thread's own, so that a busy machine fails no honest template. The weight of a
    value is about the number of characters it takes to print it; no value may weigh more than
    ``MAX_CHARACTERS``.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._deadline = time.thread_time() + seconds
        self._steps = _STEPS_PER_LOOK
        self._made = 0
        # By id; the value is kept so that its id stays its own. Templates cannot change containers,
        # so a weight stays true. It makes weighing linear where a value holds another many times.
        self._weights: dict[int, tuple[object, int]] = {}

    def spend(self, steps: int = 1) -> None:
        """Count steps of work; raises TooExpensive when the time is up."""
        self._steps -= steps
        if self._steps <= 0:
            self._steps = _STEPS_PER_LOOK
            if time.thread_time() > self._deadline:
                raise TooExpensive("it ran too long")

    def make(self, characters: int) -> None:
        """Allow a value of this weight to be made; raises TooExpensive for one too large."""
        self._made += characters
        if characters > MAX_CHARACTERS or self._made > MAX_CHARACTERS_MADE:
            raise TooExpensive("it makes too much text")
        self.spend(1 + characters // _CHARACTERS_PER_STEP)

    def weigh_all(self, values: Iterable[object]) -> int:
        return sum(map(self.weigh, values))

    def weigh(self, value: object) -> int:
        """The value's weight; raises TooExpensive as soon as it is known to be too large."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if not isinstance(value, list | tuple | dict):
            return 10
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        self.spend(1 + len(value) // 1000)
        weight = 8 + 8 * len(value)  # a list of nothing takes memory as well
        if weight <= MAX_CHARACTERS:
            weight += self.weigh_all(value)
        if isinstance(value, dict):
            weight += self.weigh_all(value.values())
        if weight > MAX_CHARACTERS:
            raise TooExpensive("it makes too much text")
        self._weights[id(value)] = (value, weight)
        return weight
