"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.status import ModelList, ModelObject
from mlx_router.api.service import service_of
from mlx_router.api.wire import dumps
from mlx_router.domain import GIB, ModelKind, ModelState
from mlx_router.runtime.status import ModelInfo

router = APIRouter(tags=["models"])

_WRITES_TEXT = (ModelKind.TEXT, ModelKind.VISION)


@router.get(
    "/models",
    summary="List the models",
    operation_id="list_models",
    response_class=Response,
    responses={200: {"model": ModelList}, **errors(401, 403)},
)
async def list_models(request: Request) -> Response:
    """Every model that can be used, loaded or not. OpenAI's fields, and what this machine can do
    with each of them now."""
    service = service_of(request)
    status = service.status()
    body = {
        "object": "list",
        "data": [
            model_object(info) for info in service.models() if info.state is not ModelState.UNUSABLE
        ],
        "memory_status": {
            "available_gb": round(status.memory.available / GIB, 2),
            "pressure": status.pressure,
            "recommended_model": status.recommended_model,
        },
    }
    return Response(dumps(body), media_type="application/json")


@router.get(
    "/models/{model:path}",
    summary="Look up a model",
    operation_id="retrieve_model",
    response_class=Response,
    responses={200: {"model": ModelObject}, **errors(401, 403, 404)},
)
async def retrieve_model(request: Request, model: str) -> Response:
    """One model, by its id, an alias, or its name without the organisation."""
    if not model.strip("/"):
        return await list_models(request)
    info = service_of(request).model(model)
    return Response(dumps(model_object(info)), media_type="application/json")


def model_object(info: ModelInfo) -> dict[str, Any]:
    """A model as OpenAI describes it, with extensions. ``created`` is the time of its files."""
    card = info.card
    described = {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "mlx-router",
        "context_window": card.context_length,
        "kind": card.kind,
        "capabilities": {
            "chat": card.kind in _WRITES_TEXT,
            "tools": card.supports_tools,
            "vision": card.supports_vision,
            "reasoning": card.supports_reasoning,
            "embeddings": card.kind is ModelKind.EMBEDDING,
        },
        "state": info.state,
        "aliases": list(info.aliases),
        "pinned": info.pinned,
        "quantization": card.quantization,
        "size_bytes": card.size_bytes,
        "memory_requirements": {
            "required_gb": round(card.required_bytes / GIB, 3),
            "can_load_now": info.can_load_now,
            "load_status_reason": info.load_status_reason,
        },
        "parameters": {
            "max_tokens": info.max_tokens,
            "max_tokens_now": info.max_tokens_now,
            "memory_pressure_max_tokens": info.token_limits,
            "chat_template": info.chat_template,
        },
    }
    if card.problem is not None:
        described["problem"] = card.problem
    return described
