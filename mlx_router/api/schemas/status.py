"""What the API tells about models and memory, for the OpenAPI description only, as in
:mod:`mlx_router.api.schemas.answers`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_router.api.schemas.answers import Answer

# --- models ---------------------------------------------------------------------------------


class Capabilities(Answer):
    chat: bool
    tools: bool
    vision: bool
    reasoning: bool
    embeddings: bool


class MemoryRequirements(Answer):
    required_gb: float
    can_load_now: bool
    load_status_reason: str


class PressureTokens(Answer):
    normal: int
    moderate: int
    high: int
    critical: int


class ModelParameters(Answer):
    max_tokens: int = Field(description="Of one answer, before memory pressure.")
    max_tokens_now: int = Field(description="Of an answer that begins now.")
    memory_pressure_max_tokens: PressureTokens = Field(description="Of one answer, by pressure.")
    chat_template: str | None


class ModelObject(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_window: int
    kind: Literal["text", "vision", "embedding", "reranker"]
    capabilities: Capabilities
    state: str
    aliases: list[str]
    pinned: bool
    quantization: str | None
    size_bytes: int
    memory_requirements: MemoryRequirements
    parameters: ModelParameters
    problem: str | None = Field(None, description="Why it cannot be used, if so.")


class MemoryStatus(Answer):
    available_gb: float
    pressure: Literal["normal", "moderate", "high", "critical"]
    recommended_model: str | None


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelObject]
    memory_status: MemoryStatus


# --- health ---------------------------------------------------------------------------------


class Memory(Answer):
    total_gb: float
    available_gb: float
    used_gb: float
    used_percent: float
    free_gb: float
    buffers_gb: float
    cached_gb: float
    swap_total_gb: float
    swap_used_gb: float
    swap_percent: float
    fragmentation_score: float


class MemoryHealth(Answer):
    fragmentation_score: float
    swap_pressure: Literal["low", "high"]
    can_load_models: list[str]


class LoadedModelOut(Answer):
    id: str
    state: str
    memory_gb: float
    active_requests: int
    waiting_requests: int
    idle_seconds: float


class PressureShares(Answer):
    normal: float
    moderate: float
    high: float
    critical: float


class MemoryLimits(Answer):
    """By what memory pressure is judged: by the memory that is available, and by swap in use."""

    memory_threshold_gb: float
    moderate_below_gb: float
    high_below_gb: float
    critical_below_gb: float
    swap_high_percent: float
    swap_critical_percent: float
    safety_margin: float
    max_tokens_shares: PressureShares = Field(
        description="Of a model's configured max_tokens, where it has no limits of its own."
    )


class RouterMemory(Answer):
    """What the system counts as the router's own, and MLX's account of it."""

    process_gb: float
    mlx_active_gb: float
    mlx_cache_gb: float = Field(description="Kept for reuse; part of memory.available_gb.")
    mlx_peak_gb: float
    kernel_pressure: Literal["normal", "moderate", "high", "critical"] | None = Field(
        description="What the kernel itself says; null where it says nothing."
    )


class Health(Answer):
    status: Literal["healthy", "warning", "degraded", "critical"]
    version: str
    current_model: str | None
    uptime_seconds: float | None = None
    request_count: int | None = None
    memory: Memory | None = None
    memory_pressure: Literal["normal", "moderate", "high", "critical"] | None = None
    memory_health: MemoryHealth | None = None


class HealthDetails(Health):
    loaded_models: list[LoadedModelOut]
    memory_limits: MemoryLimits
    router_memory: RouterMemory
