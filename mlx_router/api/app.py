"""Puts the HTTP API together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from mlx_router.api.docs import install_docs
from mlx_router.api.errors import install_error_handlers
from mlx_router.api.guard import Guard
from mlx_router.api.openapi import install_openapi
from mlx_router.api.routers import (
    admin,
    chat,
    completions,
    embeddings,
    health,
    hub,
    metrics,
    models,
    tokens,
)
from mlx_router.api.service import RouterService
from mlx_router.api.stream import offer_abort
from mlx_router.config.settings import Settings
from mlx_router.version import __version__

_DESCRIPTION = """\
Every MLX model on this machine behind one port, in OpenAI's words: point any OpenAI client at
`/v1`. Routes answer without the `/v1` prefix, too. Errors are OpenAI's error objects.
"""

_TAGS = [
    {"name": "chat", "description": "Answers from a model, whole or streamed."},
    {"name": "completions", "description": "Raw text, continued."},
    {"name": "embeddings", "description": "Texts to vectors."},
    {"name": "tokens", "description": "Text to token ids and back."},
    {"name": "models", "description": "Which models there are."},
    {"name": "health", "description": "How the server is doing."},
    {"name": "hub", "description": "What the status page shows; the page is at /hub/."},
    {"name": "admin", "description": "From this machine, or with an API key."},
]


class App(FastAPI):
    """FastAPI that remembers how to drop a connection, before any middleware hides it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        offer_abort(scope, send)
        await super().__call__(scope, receive, send)


def create_app(
    manager: RouterService, settings: Settings, *, end: Callable[[], object] | None = None
) -> FastAPI:
    """The ASGI app that serves ``manager``; its lifespan starts and closes the manager.

    ``settings`` are those to start with; the app follows ``manager.settings`` from then on.
    ``end`` begins to end the process, if POST /admin/shutdown may do that.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await manager.astart()
        try:
            yield
        finally:
            await manager.aclose()

    app = App(
        title="MLX Router",
        version=__version__,
        summary="OpenAI-compatible server for MLX models",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        license_info={"name": "MIT", "identifier": "MIT"},
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = manager
    app.state.watch = hub.Watch(manager)
    app.state.end = end
    install_error_handlers(app)
    app.add_middleware(Guard, source=manager)
    for module in (chat, completions, embeddings, tokens, models):
        app.include_router(module.router, prefix="/v1")
        app.include_router(module.router, include_in_schema=False)
    app.include_router(health.router)
    app.include_router(hub.router)
    app.include_router(admin.router)
    app.include_router(metrics.router)
    install_docs(app)
    install_openapi(app)
    return app
