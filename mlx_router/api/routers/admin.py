"""POST /admin/reload: what changes the server itself. The guard decides who may."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.answers import ConfigReload
from mlx_router.api.service import service_of
from mlx_router.api.wire import dumps
from mlx_router.errors import ConfigError, InvalidRequest

router = APIRouter(tags=["admin"])


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
    body = {
        "object": "config.reload",
        "changes": [
            {
                "setting": change.setting,
                "before": change.before,
                "after": change.after,
                "takes_effect": change.takes_effect,
            }
            for change in found
        ],
    }
    return Response(dumps(body), media_type="application/json")
