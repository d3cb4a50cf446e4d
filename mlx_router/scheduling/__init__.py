"""Who gets a model when: a pure state machine. No I/O, no clock, no logging."""

from mlx_router.scheduling.effects import DropCaches, Effect, Grant, Load, Reason, Reject, Unload
from mlx_router.scheduling.scheduler import Budget, Limits, Scheduler
from mlx_router.scheduling.slot import Wanted

__all__ = [
    "Budget",
    "DropCaches",
    "Effect",
    "Grant",
    "Limits",
    "Load",
    "Reason",
    "Reject",
    "Scheduler",
    "Unload",
    "Wanted",
]
