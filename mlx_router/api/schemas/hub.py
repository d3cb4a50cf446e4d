"""What GET /hub/status and /hub/logs answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_router.api.schemas.answers import Answer
from mlx_router.api.schemas.status import HealthDetails, ModelObject


class ModelInUse(ModelObject):
    last_used: float | None = Field(description="Seconds since the epoch; null: not yet.")
    memory_gb: float = Field(description="What unloading it would give back; 0 if not loaded.")
    active_requests: int
    waiting_requests: int


class RequestUnderWay(Answer):
    number: int = Field(description="Its own, since the start: clients may use an id again.")
    id: str = Field(description="The X-Request-ID of its answer.")
    kind: Literal["chat", "completion", "embedding"]
    model: str | None
    phase: Literal["waiting", "prefill", "decoding"]
    detail: str = Field(description="What it waits for, where that takes long: a download.")
    began: float = Field(description="Seconds since the epoch.")
    seconds: float
    prompt_tokens: int
    max_tokens: int = Field(description="Of all choices together.")
    completion_tokens: int
    tokens_per_second: float


class StatusSnapshot(HealthDetails):
    object: Literal["router.status"]
    time: float = Field(description="Seconds since the epoch.")
    stopping: bool
    control: bool = Field(description="Whether the caller may use /admin and read the log.")
    recommended_model: str | None
    models: list[ModelInUse]
    requests: list[RequestUnderWay]
    tokens_per_second: float = Field(description="Of all answers under way together.")
    completion_tokens: int = Field(description="Generated since the start.")


class LogLineOut(Answer):
    number: int = Field(description="Counts up from line to line.")
    time: float
    level: str
    request_id: str
    text: str


class LogPage(Answer):
    object: Literal["log.page"]
    lines: list[LogLineOut]
