"""GET /health and GET /v1/health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.status import Health, HealthDetails
from mlx_router.api.service import service_of
from mlx_router.api.wire import dumps
from mlx_router.domain import GIB, Pressure
from mlx_router.memory.policy import MAX_TOKENS_SHARES, THRESHOLD_SHARES, MemoryPolicy
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
    """Memory, pressure and the limits it is judged by, what is loaded, and which models could be
    loaded now."""
    status = service_of(request).status()
    details = {
        "loaded_models": [_loaded(info) for info in status.loaded],
        "memory_limits": _limits(status.policy),
        "router_memory": _router_memory(status.memory),
    }
    return _json({**_all(status), **details})


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


def _limits(policy: MemoryPolicy) -> dict[str, Any]:
    below = {f"{level}_below_gb": _gb(policy.limit(level)) for level in THRESHOLD_SHARES}
    return {
        "memory_threshold_gb": _gb(policy.threshold_bytes),
        **below,
        "swap_high_percent": policy.swap_high_percent,
        "swap_critical_percent": policy.swap_critical_percent,
        "safety_margin": policy.safety_margin,
        "max_tokens_shares": {level.value: share for level, share in MAX_TOKENS_SHARES.items()},
    }


def _router_memory(memory: MemorySnapshot) -> dict[str, Any]:
    return {
        "process_gb": _gb(memory.process),
        "mlx_active_gb": _gb(memory.mlx_active),
        "mlx_cache_gb": _gb(memory.mlx_cache),
        "mlx_peak_gb": _gb(memory.mlx_peak),
        "kernel_pressure": memory.kernel_pressure,
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


def _gb(size: float) -> float:
    return round(size / GIB, 2)
