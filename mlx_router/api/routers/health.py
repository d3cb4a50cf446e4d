"""GET /health and GET /v1/health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.answers import Health, HealthDetails
from mlx_router.api.service import service_of
from mlx_router.api.wire import dumps
from mlx_router.domain import GIB, Pressure
from mlx_router.memory.probe import MemorySnapshot
from mlx_router.runtime.status import LoadedInfo, RouterStatus

router = APIRouter(tags=["health"])

_HIGH_SWAP_PERCENT = 20
_STATUS = {
    Pressure.NORMAL: "healthy",
    Pressure.MODERATE: "warning",
    Pressure.HIGH: "degraded",
    Pressure.CRITICAL: "critical",
}


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
    return _json(_all(status) if trusted else _basics(status))


@router.head("/v1/health", include_in_schema=False)
@router.get(
    "/v1/health",
    summary="Health in detail",
    operation_id="health_details",
    response_class=Response,
    responses={200: {"model": HealthDetails}, **errors(401, 403)},
)
async def health_details(request: Request) -> Response:
    """Memory, pressure, what is loaded, and which models could be loaded now."""
    status = service_of(request).status()
    loaded = [_loaded(info) for info in status.loaded]
    return _json({**_all(status), "loaded_models": loaded})


def _json(body: dict[str, Any]) -> Response:
    return Response(dumps(body), media_type="application/json")


def _basics(status: RouterStatus) -> dict[str, Any]:
    return {
        "status": _STATUS[status.pressure],
        "version": status.version,
        "current_model": status.current_model,
    }


def _all(status: RouterStatus) -> dict[str, Any]:
    memory = status.memory
    return {
        **_basics(status),
        "uptime_seconds": round(status.uptime_seconds, 3),
        "request_count": status.request_count,
        "memory": _memory(memory),
        "memory_pressure": status.pressure,
        "memory_health": {
            "fragmentation_score": round(memory.fragmentation_score, 4),
            "swap_pressure": "high" if memory.swap_percent > _HIGH_SWAP_PERCENT else "low",
            "can_load_models": status.can_load_models,
        },
    }


def _memory(memory: MemorySnapshot) -> dict[str, float]:
    return {
        "total_gb": _gb(memory.total),
        "available_gb": _gb(memory.available),
        "used_gb": _gb(memory.used),
        "used_percent": round(memory.used_percent, 2),
        "free_gb": _gb(memory.free),
        "buffers_gb": _gb(memory.buffers),
        "cached_gb": _gb(memory.cached),
        "swap_total_gb": _gb(memory.swap_total),
        "swap_used_gb": _gb(memory.swap_used),
        "swap_percent": round(memory.swap_percent, 2),
        "fragmentation_score": round(memory.fragmentation_score, 4),
    }


def _loaded(info: LoadedInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "memory_gb": _gb(info.memory_bytes),
        "active_requests": info.active,
        "waiting_requests": info.waiting,
        "idle_seconds": round(info.idle_seconds, 3),
    }


def _gb(size: int) -> float:
    return round(size / GIB, 2)
