"""What the API needs of the manager; :class:`MLXModelManager` has it, and so can a fake."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from mlx_router.config.changes import Change
from mlx_router.config.settings import Settings
from mlx_router.domain import GenerationEvent, GenerationRequest, ModelCard, Prompt
from mlx_router.runtime.embedding import EmbeddingRequest, Embeddings
from mlx_router.runtime.status import ModelInfo, RouterStatus
from mlx_router.telemetry.activity import Activity


class RouterService(Protocol):
    """See :class:`~mlx_router.runtime.manager.MLXModelManager` for the contracts."""

    @property
    def settings(self) -> Settings: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]: ...

    async def embed_request(self, request: EmbeddingRequest) -> Embeddings: ...

    async def atokenize(
        self, model: str | None, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> list[int]: ...

    async def adetokenize(self, model: str | None, ids: Sequence[int]) -> str: ...

    async def atoken_texts(self, model: str | None, ids: Sequence[int]) -> list[str]: ...

    async def afind(self, model: str | None = None) -> ModelCard: ...

    def models(self) -> list[ModelInfo]: ...

    def model(self, name: str) -> ModelInfo: ...

    def status(self) -> RouterStatus: ...

    @property
    def activity(self) -> Activity: ...

    async def aload(self, model: str) -> ModelInfo: ...

    async def aunload(self, model: str) -> None: ...

    async def apin(self, model: str, pinned: bool = True) -> ModelInfo: ...

    async def areload(self) -> list[Change]: ...

    async def astart(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the answer depends on it. ``cache_scope``: computed prompts are reused
    among requests of the same scope only."""

    request_id: str = ""
    cache_scope: str = ""


ANONYMOUS = Caller()


def caller_of(request: Request) -> Caller:
    """Who sent this request, as the guard found."""
    scope = request.scope
    # How soon an answer begins tells whether its prompt was computed before: so every API key has
    # a scope of its own, by its name.
    key = scope.get("mlx_router.key_name")
    return Caller(scope.get("mlx_router.request_id", ""), key or "")


def may_control(request: Request) -> bool:
    """Whether who sent this request may change the server, as the guard found."""
    return bool(request.scope.get("mlx_router.control", False))


def service_of(request: Request) -> RouterService:
    """The manager behind the app that serves this request."""
    service: RouterService = request.app.state.service
    return service
