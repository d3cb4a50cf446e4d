"""How short memory is now, for callers that ask at every request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from mlx_router.domain import Pressure
from mlx_router.memory.policy import ORDER, MemoryPolicy
from mlx_router.memory.probe import MemorySnapshot, Probe

_RECOVERY_SHARE = 0.95  # of the available memory must do for a lower level


class ResourceMonitor:
    """A probe, read at most once in ``max_age`` seconds, and the policy that judges it.

    Safe on any thread: two threads that ask at once may both read, and both answers are right.
    ``policy`` may be replaced at any time.
    """

    def __init__(
        self,
        probe: Probe,
        policy: MemoryPolicy,
        *,
        max_age: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._probe = probe
        self._max_age = max_age
        self._clock = clock
        self._level = Pressure.NORMAL
        self._last: tuple[float, MemorySnapshot] | None = None

    def snapshot(self) -> MemorySnapshot:
        """The memory, at most ``max_age`` seconds old."""
        now = self._clock()
        last = self._last
        if last is None or now - last[0] > self._max_age:
            last = (now, self._probe.snapshot())
            self._last = last
        return last[1]

    def fresh(self) -> MemorySnapshot:
        """The memory now: for decisions after something was loaded or freed."""
        self._last = None
        return self.snapshot()

    def pressure(self) -> Pressure:
        """The pressure now, by :meth:`snapshot`.

        It rises at once, and falls when there is a little more memory than the lower level asks
        for, so that it does not flutter where memory hovers around a limit.
        """
        snapshot = self.snapshot()
        level = self.policy.level(snapshot)
        if ORDER.index(level) < ORDER.index(self._level):
            cautious = replace(snapshot, available=int(snapshot.available * _RECOVERY_SHARE))
            level = min(self.policy.level(cautious), self._level, key=ORDER.index)
        self._level = level
        return level
