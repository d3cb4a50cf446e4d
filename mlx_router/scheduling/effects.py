"""All that the scheduler can cause. The runtime carries effects out in the order given."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mlx_router.errors import RouterError


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model; answer with on_loaded or on_load_failed."""

    model: str


class Reason(StrEnum):
    """Why a model is unloaded: somebody asked for it, its ``ttl_seconds`` are over, the limits were
    lowered, memory is short, or another model is wanted in its place."""

    ASKED = "asked"
    IDLE = "idle"
    LIMITS = "limits"
    PRESSURE = "pressure"
    SWAP = "swap"


@dataclass(frozen=True, slots=True)
class Unload:
    """Free this model, which nobody uses; answer with on_unloaded."""

    model: str
    reason: Reason = field(default=Reason.SWAP, compare=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use its model, until on_done."""

    request: int
    model: str


@dataclass(frozen=True, slots=True)
class Reject:
    """The request will not be served."""

    request: int
    error: RouterError


@dataclass(frozen=True, slots=True)
class DropCaches:
    """Memory is short: every loaded model frees what it keeps only to be faster."""


Effect = Load | Unload | Grant | Reject | DropCaches
