"""How much memory there is, and what may be done with it."""

from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import LoadVerdict, MemoryPolicy, TokenLimits
from mlx_router.memory.probe import FakeProbe, MemorySnapshot, Probe, SystemProbe

__all__ = [
    "FakeProbe",
    "LoadVerdict",
    "MemoryPolicy",
    "MemorySnapshot",
    "Probe",
    "ResourceMonitor",
    "SystemProbe",
    "TokenLimits",
]
