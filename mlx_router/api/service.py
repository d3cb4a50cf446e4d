"""What the API needs of the manager; :class:`MLXModelManager` has it, and so can a fake."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from starlette.requests import Request

from mlx_router.config.settings import Settings
from mlx_router.domain import GenerationEvent, GenerationRequest
from mlx_router.runtime.status import ModelInfo, RouterStatus


class RouterService(Protocol):
    """See :class:`~mlx_router.runtime.manager.MLXModelManager` for the contracts."""

    @property
    def settings(self) -> Settings: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]: ...

    def models(self) -> list[ModelInfo]: ...

    def model(self, name: str) -> ModelInfo: ...

    def status(self) -> RouterStatus: ...

    async def astart(self) -> None: ...

    async def aclose(self) -> None: ...


def service_of(request: Request) -> RouterService:
    """The manager behind the app that serves this request."""
    service: RouterService = request.app.state.service
    return service
