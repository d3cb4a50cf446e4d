"""How the server is doing, as JSON: for /health, for the status page, and for the commands."""

from __future__ import annotations

import time
from typing import Any

from mlx_router.api.routers.models import model_object
from mlx_router.api.service import RouterService
from mlx_router.domain import GIB, Pressure
from mlx_router.memory.policy import MAX_TOKENS_SHARES, THRESHOLD_SHARES, MemoryPolicy
from mlx_router.memory.probe import MemorySnapshot
from mlx_router.runtime.status import LoadedInfo, RouterStatus
from mlx_router.telemetry.activity import LiveRequest, MemorySample

_HIGH_SWAP_PERCENT = 20
STATUS = {
    Pressure.NORMAL: "healthy",
    Pressure.MODERATE: "warning",
    Pressure.HIGH: "degraded",
    Pressure.CRITICAL: "critical",
}


def health_basics(status: RouterStatus) -> dict[str, Any]:
    return {
        "status": STATUS[status.pressure],
        "version": status.version,
        "current_model": status.current_model,
    }


def health_body(status: RouterStatus) -> dict[str, Any]:
    memory = status.memory
    return {
        **health_basics(status),
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


def health_details_body(status: RouterStatus) -> dict[str, Any]:
    return {
        **health_body(status),
        "loaded_models": [_loaded(info) for info in status.loaded],
        "memory_limits": _limits(status.policy),
        "router_memory": _router_memory(status.memory),
    }


def status_body(service: RouterService) -> dict[str, Any]:
    """Everything of this moment, but for what depends on who asks: health in detail, every model
    found, the requests under way."""
    status, activity = service.status(), service.activity
    loaded = {info.id: info for info in status.loaded}
    live = list(activity.live.values())
    return {
        "object": "router.status",
        "time": round(time.time(), 3),
        **health_details_body(status),
        "stopping": status.stopping,
        "recommended_model": status.recommended_model,
        "models": [
            {**model_object(info), "last_used": info.last_used, **_use(loaded.get(info.card.id))}
            for info in service.models()
        ],
        "requests": [_request(request) for request in live],
        "tokens_per_second": round(sum(request.tokens_per_second for request in live), 1),
        "completion_tokens": sum(t.completion_tokens for t in activity.tallies.values()),
    }


def memory_sample(sample: MemorySample) -> dict[str, Any]:
    """A point of the history of memory; ``time`` in seconds since the epoch."""
    return {
        "number": sample.number,
        "time": round(sample.time, 1),
        "available_gb": gb(sample.available),
        "router_gb": gb(sample.router),
        "swap_used_gb": gb(sample.swap_used),
        "pressure": sample.pressure,
    }


def _use(info: LoadedInfo | None) -> dict[str, Any]:
    return {
        "memory_gb": round(info.memory_bytes / GIB, 3) if info is not None else 0.0,
        "active_requests": info.active if info is not None else 0,
        "waiting_requests": info.waiting if info is not None else 0,
    }


def _request(request: LiveRequest) -> dict[str, Any]:
    return {
        "number": request.number,
        "id": request.request_id,
        "kind": request.kind,
        "model": request.model,
        "phase": request.phase,
        "detail": request.detail,
        "began": round(request.began, 3),
        "seconds": round(request.seconds, 3),
        "prompt_tokens": request.prompt_tokens,
        "max_tokens": request.max_tokens,
        "completion_tokens": request.tokens,
        "tokens_per_second": round(request.tokens_per_second, 1),
    }


def _memory(memory: MemorySnapshot) -> dict[str, float]:
    return {
        "total_gb": gb(memory.total),
        "available_gb": gb(memory.available),
        "used_gb": gb(memory.used),
        "used_percent": round(memory.used_percent, 2),
        "free_gb": gb(memory.free),
        "buffers_gb": gb(memory.buffers),
        "cached_gb": gb(memory.cached),
        "swap_total_gb": gb(memory.swap_total),
        "swap_used_gb": gb(memory.swap_used),
        "swap_percent": round(memory.swap_percent, 2),
        "fragmentation_score": round(memory.fragmentation_score, 4),
    }


def _limits(policy: MemoryPolicy) -> dict[str, Any]:
    below = {f"{level}_below_gb": gb(policy.limit(level)) for level in THRESHOLD_SHARES}
    return {
        "memory_threshold_gb": gb(policy.threshold_bytes),
        **below,
        "swap_high_percent": policy.swap_high_percent,
        "swap_critical_percent": policy.swap_critical_percent,
        "safety_margin": policy.safety_margin,
        "max_tokens_shares": {level.value: share for level, share in MAX_TOKENS_SHARES.items()},
    }


def _router_memory(memory: MemorySnapshot) -> dict[str, Any]:
    return {
        "process_gb": gb(memory.process),
        "mlx_active_gb": gb(memory.mlx_active),
        "mlx_cache_gb": gb(memory.mlx_cache),
        "mlx_peak_gb": gb(memory.mlx_peak),
        "kernel_pressure": memory.kernel_pressure,
    }


def _loaded(info: LoadedInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "state": info.state,
        "memory_gb": gb(info.memory_bytes),
        "active_requests": info.active,
        "waiting_requests": info.waiting,
        "idle_seconds": round(info.idle_seconds, 3),
    }


def gb(size: float) -> float:
    return round(size / GIB, 2)
