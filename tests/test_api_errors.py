"""Every error has OpenAI's shape, whatever route or mistake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_router.api.body import read_body, read_json
from mlx_router.api.errors import BodyTimeout, error_body
from mlx_router.api.schemas.answers import ErrorResponse
from mlx_router.errors import InvalidRequest, RouterError
from tests.api_support import FakeManager, client_for


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models/org/unknown", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/%ff%0a", 404),
    ],
)
async def test_error_shape(method: str, path: str, status: int) -> None:
    async with client_for(FakeManager()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    ErrorResponse.model_validate(response.json())
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_wrong_method_says_which_is_right() -> None:
    async with client_for(FakeManager()) as client:
        response = await client.get("/v1/chat/completions")
    assert response.headers["allow"] == "POST"
    assert "Use POST" in response.json()["error"]["message"]


async def test_a_fault_of_ours_is_a_500_without_internals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(FakeManager):
        def models(self) -> Any:
            raise KeyError("internal detail")

    async with client_for(Broken()) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "internal detail" not in response.text
    assert "internal detail" in caplog.text


async def test_a_clients_mistake_leaves_no_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client_for(FakeManager()) as client:
        await client.post("/v1/chat/completions", content=b"{")
        await client.get("/v1/models/unknown")
    assert not [record for record in caplog.records if record.exc_info]


def test_an_error_is_always_json() -> None:
    assert b"?" in error_body(RouterError("lone \ud800 surrogate", param="\udfff"))
    assert len(error_body(RouterError("x" * 1_000_000))) < 3000


async def test_a_body_that_drips_is_a_408() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b" ", "more_body": True}

    with pytest.raises(BodyTimeout) as caught:
        await read_body(receive, seconds=0.02)
    assert caught.value.status == 408


async def test_a_body_in_pieces_is_put_together() -> None:
    pieces = [b'{"a"', b": 1", b"}"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    assert await read_json(receive) == {"a": 1}


async def test_no_json_position_reveals_the_text() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"a": "secret prompt}', "more_body": False}

    with pytest.raises(InvalidRequest) as caught:
        await read_json(receive)
    assert "secret" not in caught.value.message


async def test_openapi_describes_every_public_route() -> None:
    async with client_for(FakeManager()) as client:
        schema = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/redoc")).status_code == 200
    assert set(schema["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/v1/health",
        "/metrics",
        "/hub/status",
        "/hub/logs",
        "/hub/events",
        "/admin/models/load",
        "/admin/models/unload",
        "/admin/models/pin",
        "/admin/reload",
        "/admin/shutdown",
    }
    operation = schema["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = schema["components"]["schemas"][reference.rsplit("/", 1)[-1]]["properties"]
    assert {"messages", "temperature", "tools", "stream_options"} <= set(fields)
    references = _references(schema)
    assert references
    assert all(ref.rsplit("/", 1)[-1] in schema["components"]["schemas"] for ref in references)
    assert not [path for path in schema["paths"].values() if "'422'" in str(path)]


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
        return own.union(*(_references(value) for value in node.values()))
    if isinstance(node, list):
        return set[str]().union(*(_references(value) for value in node))
    return set()
