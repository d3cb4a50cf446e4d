"""How many tokens to draft: as many as make the most tokens a second, or none."""

from __future__ import annotations

import statistics
from collections import deque

MOST = 8  # drafted tokens; more are seldom accepted

_SAMPLES = 5
_PLAIN_EVERY = 32  # steps: how fast plain decoding is changes, as the context grows
_FORGET_AFTER = 256  # steps: a size that was slow once is tried again
_WORTH = 1.2  # times faster than plain decoding: below it, changing over costs more than it brings


class Pace:
    """How long a step takes with so many drafted tokens, and what follows from it. One for all
    sequences of a model that draft in the same way.

    If each drafted token is right with probability p, a step that drafts k of them yields
    1 + p + … + p**k tokens. What such a step costs differs from device to device: a pass over nine
    tokens may take hardly longer than one over a single token, or nine times as long. So it is
    measured: the median of the last few steps of each size (the first of a size is left out, since
    it compiles kernels). A size of which nothing is known is taken to be as fast as the sizes
    around it suggest, which is how it comes to be tried.

    Has no clock of its own.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}  # the step of each size
        self._steps = 0

    @property
    def measured(self) -> bool:
        """Whether it is known how long a plain step takes."""
        return bool(self._seconds.get(0))

    def record(self, drafted: int, seconds: float) -> None:
        """A step with so many drafted tokens took so long, drafting included; 0 is a plain one."""
        self._steps += 1
        self._last[drafted] = self._steps
        if drafted in self._seconds:
            self._seconds[drafted].append(seconds)
        else:
            self._seconds[drafted] = deque(maxlen=_SAMPLES)
        for size, last in self._last.items():
            if size and self._steps - last > _FORGET_AFTER:
                self._seconds[size].clear()

    def count(self, likely: float) -> int:
        """How many tokens to draft if each is right with probability ``likely``; 0 where plain
        decoding is faster, and now and then to measure that."""
        if self._steps - self._last.get(0, 0) >= _PLAIN_EVERY:
            return 0
        return self._best(likely)[0]

    def gain(self, likely: float) -> float:
        """How many times faster than plain decoding the best is; 1 if none is, or none is known."""
        return self._best(likely)[1]

    def worth(self, likely: float) -> bool:
        """Whether it is so much faster that a sequence should change over to it."""
        return self.gain(likely) >= _WORTH

    def _best(self, likely: float) -> tuple[int, float]:
        known = {size: statistics.median(each) for size, each in self._seconds.items() if each}
        best, gain, tokens = 0, 1.0, 1.0
        if 0 in known:
            for drafted in range(1, MOST + 1):
                tokens += likely**drafted
                faster = tokens * known[0] / _between(known, drafted)
                if faster > gain:
                    best, gain = drafted, faster
        return best, gain


def _between(known: dict[int, float], drafted: int) -> float:
    """The seconds of a step: measured, or on the line between those measured around it."""
    below = max(size for size in known if size <= drafted)
    above = min((size for size in known if size >= drafted), default=below)
    if above == below:
        return known[below]
    share = (drafted - below) / (above - below)
    return known[below] + share * (known[above] - known[below])
