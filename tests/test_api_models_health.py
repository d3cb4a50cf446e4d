"""GET /v1/models, /health and /v1/health."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_router.api.schemas.status import Health, HealthDetails, ModelList, ModelObject
from mlx_router.domain import ModelState, Pressure
from tests.api_support import MODEL, FakeManager, client_for, info, snapshot


async def get(manager: FakeManager, path: str) -> Any:
    async with client_for(manager) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return response.json()


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/"])
async def test_models_are_listed_as_openai_does_and_more(path: str) -> None:
    body = await get(FakeManager(), path)
    ModelList.model_validate(body)
    assert body["object"] == "list"
    assert body["memory_status"] == {
        "available_gb": 8.0,
        "pressure": "normal",
        "recommended_model": MODEL,
    }
    assert [model["id"] for model in body["data"]] == [MODEL, "org/other"]
    first = body["data"][0]
    assert first["object"] == "model"
    assert first["created"] == 1_700_000_000
    assert first["owned_by"] == "mlx-router"
    assert first["context_window"] == 8192
    assert first["kind"] == "text"
    assert first["capabilities"]["tools"] is True
    assert first["capabilities"]["vision"] is False
    assert first["state"] == "unloaded"
    assert first["memory_requirements"] == {
        "required_gb": 3.0,
        "can_load_now": True,
        "load_status_reason": "fits",
    }
    assert first["parameters"] == {
        "max_tokens": 4096,
        "max_tokens_now": 4096,
        "memory_pressure_max_tokens": {
            "normal": 4096,
            "moderate": 2048,
            "high": 1024,
            "critical": 512,
        },
        "chat_template": None,
    }


async def test_unusable_models_are_not_offered() -> None:
    manager = FakeManager()
    manager.infos.append(info("org/broken", state=ModelState.UNUSABLE))
    body = await get(manager, "/v1/models")
    assert "org/broken" not in [model["id"] for model in body["data"]]
    assert (await get(manager, "/v1/models/org/broken"))["state"] == "unusable"


@pytest.mark.parametrize("path", [MODEL, "tiny-model", "org%2Ftiny-model"])
@pytest.mark.parametrize("prefix", ["/v1/models", "/models"])
async def test_one_model_is_found_by_id_with_slash_and_by_short_name(
    path: str, prefix: str
) -> None:
    body = await get(FakeManager(), f"{prefix}/{path}")
    ModelObject.model_validate(body)
    assert body["id"] == MODEL


async def test_an_unknown_model_is_a_404() -> None:
    async with client_for(FakeManager()) as client:
        response = await client.get("/v1/models/../../etc")
        assert response.status_code == 404
        response = await client.get("/v1/models/unknown")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_health_tells_state_and_memory() -> None:
    body = await get(FakeManager(), "/health")
    Health.model_validate(body)
    assert body["status"] == "healthy"
    assert body["version"] == "1.2.3"
    assert body["current_model"] == "org/other"
    assert body["uptime_seconds"] == 12.5
    assert body["request_count"] == 0
    assert body["memory_pressure"] == "normal"
    memory = snapshot()
    assert body["memory"] == {
        "total_gb": 16.0,
        "available_gb": 8.0,
        "used_gb": 8.0,
        "used_percent": round(memory.used_percent, 2),
        "free_gb": 4.0,
        "buffers_gb": 0.5,
        "cached_gb": 3.0,
        "swap_total_gb": 4.0,
        "swap_used_gb": 1.0,
        "swap_percent": 25.0,
        "fragmentation_score": round(memory.fragmentation_score, 4),
    }
    assert body["memory_health"] == {
        "fragmentation_score": round(memory.fragmentation_score, 4),
        "swap_pressure": "high",
        "can_load_models": [MODEL],
    }


async def test_health_in_detail_tells_the_limits_and_what_the_router_holds() -> None:
    body = await get(FakeManager(), "/v1/health")
    assert body["memory_limits"] == {
        "memory_threshold_gb": 10.0,
        "moderate_below_gb": 8.0,
        "high_below_gb": 6.0,
        "critical_below_gb": 4.0,
        "swap_high_percent": 75.0,
        "swap_critical_percent": 90.0,
        "safety_margin": 1.2,
        "max_tokens_shares": {"normal": 1.0, "moderate": 0.75, "high": 0.5, "critical": 0.25},
    }
    assert body["router_memory"] == {
        "process_gb": 3.0,
        "mlx_active_gb": 2.0,
        "mlx_cache_gb": 0.25,
        "mlx_peak_gb": 2.5,
        "kernel_pressure": "moderate",
    }


async def test_health_in_detail_adds_the_loaded_models() -> None:
    body = await get(FakeManager(), "/v1/health")
    HealthDetails.model_validate(body)
    assert body["loaded_models"] == [
        {
            "id": "org/other",
            "state": "ready",
            "memory_gb": 2.0,
            "active_requests": 1,
            "waiting_requests": 2,
            "idle_seconds": 0.0,
        }
    ]
    light = await get(FakeManager(), "/health")
    assert {key: body[key] for key in light} == light


@pytest.mark.parametrize(
    ("pressure", "status"),
    [
        (Pressure.NORMAL, "healthy"),
        (Pressure.MODERATE, "warning"),
        (Pressure.HIGH, "degraded"),
        (Pressure.CRITICAL, "critical"),
    ],
)
async def test_status_follows_memory_pressure(pressure: Pressure, status: str) -> None:
    manager = FakeManager()
    manager.pressure = pressure
    for path in ("/health", "/v1/health"):
        body = await get(manager, path)
        assert body["status"] == status
        assert body["memory_pressure"] == pressure.value


async def test_monitors_may_ask_with_head() -> None:
    async with client_for(FakeManager()) as client:
        response = await client.head("/health")
    assert response.status_code == 200
    assert response.content == b""
