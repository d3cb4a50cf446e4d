"""GET /health and GET /v1/health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.status import Health, HealthDetails
from mlx_router.api.service import service_of
from mlx_router.api.status import health_basics, health_body, health_details_body
from mlx_router.api.wire import dumps

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    summary="Is it up?",
    operation_id="health",
    response_class=Response,
    responses={200: {"model": Health}, **errors(403)},
)
async def health(request: Request) -> Response:
    """For monitors: answered without an API key, then with status, version and current model
    only."""
    status = service_of(request).status()
    trusted = request.scope.get("mlx_router.trusted", True)
    return _json(health_body(status) if trusted else health_basics(status))


@router.head("/v1/health", include_in_schema=False)
@router.get(
    "/v1/health",
    summary="Health in detail",
    operation_id="health_details",
    response_class=Response,
    responses={200: {"model": HealthDetails}, **errors(401, 403)},
)
async def health_details(request: Request) -> Response:
    """Memory, pressure and the limits it is judged by, what is loaded, and which models could be
    loaded now."""
    return _json(health_details_body(service_of(request).status()))


def _json(body: dict[str, Any]) -> Response:
    return Response(dumps(body), media_type="application/json")
