"""POST /admin/…: what changes the server itself. The guard decides who may."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from mlx_router.api.body import read_json
from mlx_router.api.generation import model_name
from mlx_router.api.openapi import errors, json_body
from mlx_router.api.routers.models import model_object
from mlx_router.api.schemas.admin import ModelAction, PinAction
from mlx_router.api.schemas.answers import ConfigReload, Shutdown
from mlx_router.api.schemas.status import ModelObject
from mlx_router.api.service import service_of
from mlx_router.api.validation import parse
from mlx_router.api.wire import dumps
from mlx_router.errors import ConfigError, InvalidRequest
from mlx_router.runtime.status import ModelInfo

router = APIRouter(tags=["admin"])

_MODEL = {"demo": {"model": "demo"}}
_MODEL_ERRORS = errors(400, 401, 403, 404, 500, 503, 504)


@router.post(
    "/admin/models/load",
    summary="Load a model",
    operation_id="load_model",
    response_class=Response,
    responses={200: {"model": ModelObject}, **_MODEL_ERRORS},
    openapi_extra=json_body(ModelAction, _MODEL),
)
async def load_model(request: Request) -> Response:
    """Brings a model into memory as a request for it would, and answers when it is ready."""
    action = parse(ModelAction, await read_json(request.receive))
    return await _of_model(service_of(request).aload(_name(action)))


@router.post(
    "/admin/models/unload",
    summary="Unload a model",
    operation_id="unload_model",
    response_class=Response,
    responses={200: {"model": ModelObject}, **_MODEL_ERRORS},
    openapi_extra=json_body(ModelAction, _MODEL),
)
async def unload_model(request: Request) -> Response:
    """Frees a model's memory when its answers are done, and answers when it is free. Requests that
    come meanwhile wait for it to be loaded again. A model that only waits for its turn is not in
    memory: nothing happens."""
    service = service_of(request)
    action = parse(ModelAction, await read_json(request.receive))
    await service.aunload(_name(action))
    return _json(model_object(service.model(_name(action))))


@router.post(
    "/admin/models/pin",
    summary="Pin a model",
    operation_id="pin_model",
    response_class=Response,
    responses={200: {"model": ModelObject}, **_MODEL_ERRORS},
    openapi_extra=json_body(PinAction, {"demo": {"model": "demo", "pinned": True}}),
)
async def pin_model(request: Request) -> Response:
    """A pinned model stays in memory once it is loaded. Holds until the server ends; for longer,
    set `pinned` in the model's entry of the config."""
    action = parse(PinAction, await read_json(request.receive))
    return await _of_model(service_of(request).apin(_name(action), action.pinned))


@router.post(
    "/admin/reload",
    summary="Read the config again",
    operation_id="reload_config",
    response_class=Response,
    responses={200: {"model": ConfigReload}, **errors(400, 401, 403, 503)},
)
async def reload_config(request: Request) -> Response:
    """Acts on what changed in the config, as `mlx-router reload` and SIGHUP do. A file with a fault
    changes nothing: the answer is a 400 that says where it is. Answers under way go on, and models
    in memory stay as they were loaded."""
    try:
        found = await service_of(request).areload()
    except ConfigError as error:
        raise InvalidRequest(error.message, code=error.code) from None
    changes = [
        {
            "setting": change.setting,
            "before": change.before,
            "after": change.after,
            "takes_effect": change.takes_effect,
        }
        for change in found
    ]
    return _json({"object": "config.reload", "changes": changes})


@router.post(
    "/admin/shutdown",
    summary="End the server",
    operation_id="shutdown",
    response_class=Response,
    responses={200: {"model": Shutdown}, **errors(400, 401, 403)},
)
async def shutdown(request: Request) -> Response:
    """As SIGTERM: new requests are refused, answers under way have `grace_seconds`, then the
    process ends with exit code 0. A service manager that restarts crashed servers leaves it off.
    To ask again changes nothing. A program that has the router in it is not ended: a 400."""
    service, state = service_of(request), request.app.state
    body = {"object": "server.shutdown", "grace_seconds": service.settings.server.grace_seconds}
    if state.end is None:
        raise InvalidRequest(
            "This router is part of a program, and only that program can end it.",
            code="not_a_server",
        )
    # A second signal would end the answers under way at once.
    again = service.status().stopping or getattr(state, "told_to_end", False)
    state.told_to_end = True
    return _json(body, None if again else BackgroundTask(state.end))


def _name(action: ModelAction) -> str:
    return model_name(action.model) or ""


async def _of_model(work: Coroutine[Any, Any, ModelInfo]) -> Response:
    return _json(model_object(await work))


def _json(body: dict[str, Any], background: BackgroundTask | None = None) -> Response:
    return Response(dumps(body), media_type="application/json", background=background)
