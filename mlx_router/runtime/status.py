"""What the manager tells about itself: for /v1/models, /health and the library."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_router.domain import ModelCard, ModelState, Pressure
from mlx_router.memory.policy import MemoryPolicy, TokenLimits
from mlx_router.memory.probe import MemorySnapshot


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model and its present state. ``max_tokens``: of one answer, before memory pressure;
    ``token_limits``: under each pressure; ``max_tokens_now``: under the present one.
    ``last_used``: seconds since the epoch, None if not since the start."""

    card: ModelCard
    state: ModelState
    max_tokens: int
    token_limits: TokenLimits
    max_tokens_now: int
    chat_template: str | None
    can_load_now: bool
    load_status_reason: str
    last_used: float | None = None
    pinned: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedInfo:
    """A model that is in memory, or on its way in or out."""

    id: str
    state: ModelState
    memory_bytes: int
    active: int
    waiting: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """``policy`` has the limits by which ``pressure`` was judged. ``stopping``: new requests are
    refused."""

    version: str
    pressure: Pressure
    policy: MemoryPolicy
    uptime_seconds: float
    request_count: int
    current_model: str | None
    loaded: list[LoadedInfo]
    memory: MemorySnapshot
    recommended_model: str | None
    can_load_models: list[str]
    stopping: bool = False
