"""MLX Router: every MLX model on a machine, behind one port or in your program.

::

    from mlx_router import MLXModelManager

    with MLXModelManager(demo=True) as manager:
        print(manager.chat("Hello!"))

Names are imported when they are first used, so that ``import mlx_router`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_router.version import __version__

if TYPE_CHECKING:
    from mlx_router.client import async_openai_client, openai_client
    from mlx_router.config import Settings, load_settings
    from mlx_router.domain import (
        Completed,
        Delta,
        Finished,
        FinishReason,
        GenerationEvent,
        GenerationRequest,
        Message,
        ModelCard,
        ModelKind,
        ModelState,
        Preparing,
        SamplingOptions,
        Started,
        Tool,
        ToolCall,
        Usage,
    )
    from mlx_router.errors import RouterError
    from mlx_router.runtime.chat import ChatOptions, ChatResult
    from mlx_router.runtime.embedding import Embeddings
    from mlx_router.runtime.manager import MLXModelManager
    from mlx_router.runtime.status import ModelInfo, RouterStatus

__all__ = [
    "MLXModelManager",
    "openai_client",
    "async_openai_client",
    "ChatResult",
    "ChatOptions",
    "Embeddings",
    "ModelInfo",
    "RouterStatus",
    "Settings",
    "load_settings",
    "RouterError",
    "Message",
    "Tool",
    "ToolCall",
    "SamplingOptions",
    "GenerationRequest",
    "GenerationEvent",
    "Preparing",
    "Started",
    "Delta",
    "Finished",
    "Completed",
    "FinishReason",
    "Usage",
    "ModelCard",
    "ModelKind",
    "ModelState",
    "__version__",
]

_HOMES = {
    "MLXModelManager": "runtime.manager",
    "openai_client": "client",
    "async_openai_client": "client",
    "ChatResult": "runtime.chat",
    "ChatOptions": "runtime.chat",
    "Embeddings": "runtime.embedding",
    "ModelInfo": "runtime.status",
    "RouterStatus": "runtime.status",
    "Settings": "config",
    "load_settings": "config",
    "RouterError": "errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'mlx_router' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mlx_router.{_HOMES.get(name, 'domain')}"), name)
