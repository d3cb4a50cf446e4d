"""How short memory is now, for callers that ask at every request."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_router.domain import MLXMemory, Pressure
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.memory.probe import MemorySnapshot, Probe


class ResourceMonitor:
    """A probe, read at most once in ``max_age`` seconds, and the policy that judges it.

    ``mlx_memory`` tells what MLX holds; None, or an answer of None: nothing. Safe on any thread:
    two threads that ask at once may both read, and both answers are right. ``policy`` may be
    replaced at any time.
    """

    def __init__(
        self,
        probe: Probe,
        policy: MemoryPolicy,
        *,
        mlx_memory: Callable[[], MLXMemory | None] | None = None,
        max_age: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._probe = probe
        self._mlx_memory = mlx_memory
        self._max_age = max_age
        self._clock = clock
        self._level = Pressure.NORMAL
        self._last: tuple[float, MemorySnapshot] | None = None

    def snapshot(self) -> MemorySnapshot:
        """The memory, at most ``max_age`` seconds old."""
        now = self._clock()
        last = self._last
        if last is None or now - last[0] > self._max_age:
            last = (now, self._read())
            self._last = last
        return last[1]

    def fresh(self) -> MemorySnapshot:
        """The memory now: for decisions after something was loaded or freed."""
        self._last = None
        return self.snapshot()

    def pressure(self) -> Pressure:
        """The pressure now, by :meth:`snapshot`: it rises at once, and falls with a little delay
        (see :meth:`MemoryPolicy.level`), so that it does not flutter where memory hovers around a
        limit."""
        self._level = self.policy.level(self.snapshot(), self._level)
        return self._level

    def _read(self) -> MemorySnapshot:
        snapshot = self._probe.snapshot()
        mlx = self._mlx_memory() if self._mlx_memory is not None else None
        return snapshot if mlx is None else snapshot.with_mlx(mlx)
