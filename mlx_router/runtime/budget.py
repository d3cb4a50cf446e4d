"""Memory as the scheduler sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_router.domain import GIB, Pressure
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.memory.probe import MemorySnapshot


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory policy at one moment. ``pressure`` is the monitor's, with its hysteresis."""

    policy: MemoryPolicy
    snapshot: MemorySnapshot
    pressure: Pressure

    @classmethod
    def of(cls, monitor: ResourceMonitor, *, fresh: bool = False) -> MemoryBudget:
        """``fresh``: of this very moment, where the monitor's view may be a little old. Raises
        OSError if the memory cannot be read."""
        snapshot = monitor.fresh() if fresh else monitor.snapshot()
        return cls(monitor.policy, snapshot, monitor.pressure())

    @property
    def system_pressure(self) -> Pressure:
        """What swap and the kernel say."""
        return self.policy.system_level(self.snapshot)

    def refusal(self, need_bytes: int, reclaimable_bytes: int) -> str | None:
        """Why a load does not fit, or must not begin now; None if it may. Bytes."""
        return self.refusals(reclaimable_bytes)(need_bytes)

    def refusals(self, reclaimable_bytes: int) -> Callable[[int], str | None]:
        """As :meth:`refusal`, for many loads: what is the same for all is worked out once."""
        critical = self.policy.refuses_loads(self.snapshot, reclaimable_bytes, self.pressure)

        def refusal(need_bytes: int) -> str | None:
            verdict = self.policy.check_load(need_bytes, self.snapshot, reclaimable_bytes)
            if verdict.allowed and critical:
                return (
                    f"Memory pressure is critical ({self.snapshot.available / GIB:.1f} GB "
                    f"available, {self.snapshot.swap_percent:.0f} % of swap in use): no model is "
                    "loaded until it eases. Close other programs, or try again later."
                )
            return None if verdict.allowed else verdict.reason

        return refusal
