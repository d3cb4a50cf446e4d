"""Who gets a model when: a pure state machine. No I/O, no clock, no logging."""

from mlx_router.scheduling.effects import Effect, Grant, Load, Reject, Unload
from mlx_router.scheduling.scheduler import Budget, Scheduler, Wanted

__all__ = ["Budget", "Effect", "Grant", "Load", "Reject", "Scheduler", "Unload", "Wanted"]
