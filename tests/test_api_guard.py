"""Host, origin, address, key and size: who is let in, and what the others are told."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from mlx_router.api.hosts import (
    HostHeader,
    host_allowed,
    is_private,
    machine_names,
    origin_is_host,
    parse_host,
)
from mlx_router.telemetry.logging import request_id
from tests.api_support import (
    USER,
    FakeManager,
    app_for,
    client_for,
    http_scope,
    says,
    settings,
)

KEYS = {"ann": "sk-ann-secret", "bob": "sk-bob-secret"}


def manager(**server: Any) -> FakeManager:
    return FakeManager(settings=settings(**server))


async def get(one: FakeManager, path: str = "/v1/models", **headers: str) -> httpx.Response:
    async with client_for(one) as client:
        return await client.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def chat(one: FakeManager, **headers: str) -> httpx.Response:
    async with client_for(one) as client:
        return await client.post(
            "/v1/chat/completions",
            json={"messages": USER},
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        )


# --- hosts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8800",
        "LOCALHOST.",
        "127.0.0.1:8800",
        "192.168.1.20",
        "[::1]:8800",
        "studio.local:8800",
        "host.docker.internal:8800",
        next(iter(machine_names())),
    ],
)
async def test_names_that_mean_this_machine_are_served(host: str) -> None:
    assert (await get(manager(), host=host)).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com:80"])
async def test_foreign_host_names_are_refused_with_the_remedy(host: str) -> None:
    response = await get(manager(), host=host)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert "server.allowed_hosts" in response.json()["error"]["message"]


async def test_allowed_hosts_are_served() -> None:
    one = manager(allowed_hosts=["AI.example.com", "*.lan.example"])
    assert (await get(one, host="ai.example.com")).status_code == 200
    assert (await get(one, host="box.lan.example:8800")).status_code == 200
    assert (await get(one, host="lan.example")).status_code == 403
    assert (await get(one, host="evil.com")).status_code == 403


@pytest.mark.parametrize(
    "header",
    ["", "a b", "a/b", "user@host", "a:b", "a:99999", "[::1", "[zz]", "a:1:2", "\x00", "é"],
)
def test_malformed_hosts_are_not_parsed(header: str) -> None:
    assert parse_host(header) is None


async def test_a_missing_or_double_host_is_a_400() -> None:
    for headers in ([], [(b"host", b"localhost"), (b"host", b"evil.com")], [(b"host", b"a b")]):
        status, _ = await raw(manager(), headers)
        assert status == 400


def test_hosts_are_parsed_to_name_and_port() -> None:
    assert parse_host("Box.local.:8800") == HostHeader("box.local", 8800)
    assert parse_host("[::1]") == HostHeader("::1", None)
    assert not host_allowed("0x7f.1", [], [])
    assert host_allowed("anything.example", ["*"], [])


# --- origins --------------------------------------------------------------------------------


async def test_foreign_pages_cannot_change_anything_and_get_no_cors() -> None:
    one = manager()
    response = await chat(one, origin="https://evil.com")
    assert response.status_code == 403
    assert "server.cors_origins" in response.json()["error"]["message"]
    assert not one.requests
    for origin in ("https://evil.com", "null", "http://localhost.evil.com"):
        response = await get(one, origin=origin)
        assert "access-control-allow-origin" not in response.headers
        assert (await chat(one, origin=origin)).status_code == 403


async def test_own_pages_may_use_the_server() -> None:
    assert (await chat(manager(), origin="http://localhost")).status_code == 200
    assert (await chat(manager(), origin="http://localhost:3000")).status_code == 403
    assert origin_is_host("https://box.local", HostHeader("box.local"))
    assert not origin_is_host("https://box.local:x", HostHeader("box.local"))


async def test_configured_origins_get_cors() -> None:
    one = manager(cors_origins=["https://chat.example/"])
    response = await chat(one, origin="https://chat.example")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert response.headers["vary"] == "Origin"
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    assert (await chat(one, origin="https://evil.com")).status_code == 403


async def test_any_origin_can_be_allowed() -> None:
    response = await chat(manager(cors_origins=["*"]), origin="https://any.example")
    assert response.headers["access-control-allow-origin"] == "*"


async def test_errors_carry_cors_too() -> None:
    one = manager(cors_origins=["https://chat.example"], api_keys=KEYS)
    response = await chat(one, origin="https://chat.example")
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "https://chat.example"


async def test_preflight_answers_configured_origins_without_a_key() -> None:
    one = manager(cors_origins=["https://chat.example"], api_keys=KEYS)
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
        "access-control-request-private-network": "true",
    }
    async with client_for(one) as client:
        headers = {"origin": "https://chat.example", **asked}
        good = await client.options("/v1/chat/completions", headers=headers)
        bad = await client.options(
            "/v1/chat/completions", headers={**headers, "origin": "https://evil.com"}
        )
    assert good.status_code == 204
    assert good.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in good.headers["access-control-allow-methods"]
    assert good.headers["access-control-allow-private-network"] == "true"
    assert bad.status_code == 401
    assert not [name for name in bad.headers if name.startswith("access-control")]


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.0.7", True),
        ("10.1.2.3", True),
        ("172.17.0.1", True),
        ("100.101.102.103", True),
        ("fe80::1%en0", True),
        ("fd00::1", True),
        ("::ffff:192.168.0.7", True),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("2606:4700::1", False),
        ("unknown", False),
    ],
)
def test_private_addresses_are_known(address: str, private: bool) -> None:
    assert is_private(address) is private


async def test_without_keys_public_addresses_are_refused_with_the_remedy() -> None:
    async with client_for(manager(), address="8.8.8.8") as client:
        response = await client.get("/v1/models")
    assert response.status_code == 403
    assert "server.api_keys" in response.json()["error"]["message"]
    async with client_for(manager(), address="192.168.0.7") as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_with_a_key_public_addresses_are_served() -> None:
    async with client_for(manager(api_keys=KEYS), address="8.8.8.8") as client:
        headers = {"authorization": "Bearer sk-ann-secret"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/admin/reload", 200), ("/hub/unload", 404)])
async def test_control_without_keys_is_for_this_machine_only(path: str, status: int) -> None:
    async with client_for(manager(), address="192.168.0.7") as client:
        assert (await client.post(path)).status_code == 403
    async with client_for(manager(), address="127.0.0.1") as client:
        assert (await client.post(path)).status_code == status


# --- keys -----------------------------------------------------------------------------------


async def test_every_route_but_health_needs_the_key() -> None:
    one = manager(api_keys=KEYS)
    paths = set(app_for(one).openapi()["paths"])
    paths |= {path.removeprefix("/v1") for path in paths}
    paths |= {"/docs", "/redoc", "/openapi.json", "/nothing", "/v1/models/x", "/health/"}
    assert "/v1/chat/completions" in paths
    async with client_for(one) as client:
        for path in paths - {"/health"}:
            for method in ("GET", "POST", "OPTIONS", "HEAD"):
                response = await client.request(method, path)
                assert response.status_code == 401, path
        assert (await client.get("/health")).status_code == 200
    assert not one.requests


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-ann-secret"},
        {"authorization": "bearer  sk-bob-secret"},
        {"x-api-key": "sk-bob-secret"},
    ],
)
async def test_a_key_opens(headers: dict[str, str]) -> None:
    assert (await get(manager(api_keys=KEYS), **headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic sk-ann-secret"},
        {"authorization": "sk-ann-secret"},
        {"x-api-key": ""},
        {"x-api-key": "sk-ann-secre"},
        {"authorization": "Bearer ann"},
    ],
)
async def test_a_wrong_key_is_a_401(headers: dict[str, str]) -> None:
    response = await get(manager(api_keys=KEYS), **headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "secret" not in response.text


async def test_health_without_the_key_tells_little() -> None:
    one = manager(api_keys=KEYS)
    assert set((await get(one, "/health")).json()) == {"status", "version", "current_model"}
    full = (await get(one, "/health", authorization="Bearer sk-ann-secret")).json()
    assert "memory" in full


async def test_replaced_settings_are_followed() -> None:
    one = manager()
    async with client_for(one) as client:
        assert (await client.get("/v1/models")).status_code == 200
        one.settings = settings(api_keys=KEYS)
        assert (await client.get("/v1/models")).status_code == 401


# --- log and request id ---------------------------------------------------------------------


async def test_access_log_names_the_key_and_never_shows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        await chat(manager(api_keys=KEYS), authorization="Bearer sk-ann-secret")
        await get(manager(api_keys=KEYS), "/v1/models?key=sk-ann-secret")
    ours = [record for record in caplog.records if record.name.startswith("mlx_router")]
    lines = [record.getMessage() for record in ours if record.name.endswith("access")]
    assert lines[0].startswith("POST /v1/chat/completions 200 ")
    assert lines[0].endswith(" key=ann")
    assert lines[1].startswith("GET /v1/models 401 ")
    told = " ".join(record.getMessage() for record in ours)
    assert "secret" not in told
    assert "Hello?" not in told


async def test_request_id_is_the_clients_if_sane_and_reaches_the_manager() -> None:
    seen = []

    one = manager()
    hello = says("x")

    def script(request: Any) -> Any:
        seen.append((request.request_id, request_id.get()))
        return hello(request)

    one.script = script
    response = await chat(one, x_request_id="my-id.1")
    assert response.headers["x-request-id"] == "my-id.1"
    assert seen == [("my-id.1", "my-id.1")]
    for odd in ("a b", "x" * 200, "a\tb"):
        response = await chat(one, x_request_id=odd)
        assert response.headers["x-request-id"].startswith("req_")
    assert len({request for request, _ in seen}) == 4


# --- sizes ----------------------------------------------------------------------------------


async def test_a_large_body_is_refused_by_its_declared_length() -> None:
    one = manager(max_body_mb=0.001)
    async with client_for(one) as client:
        response = await client.post("/v1/chat/completions", content=b"x" * 2000)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert "server.max_body_mb" in response.json()["error"]["message"]


async def test_a_large_body_is_refused_as_it_arrives() -> None:
    """Whatever its declared length says, or without one."""

    async def endless() -> Any:
        while True:
            yield b"x" * 100

    async with client_for(manager(max_body_mb=0.001)) as client:
        response = await client.post("/v1/chat/completions", content=endless())
    assert response.status_code == 413
    for length in (b"5", b"-1", b"x", b"9" * 5000):
        headers = [(b"host", b"localhost"), (b"content-length", length)]
        status, _ = await raw(manager(max_body_mb=0.001), headers, b"x" * 2000)
        assert status == 413


async def test_large_headers_are_a_431() -> None:
    response = await get(manager(), x_large="x" * 40_000)
    assert response.status_code == 431


async def raw(
    one: FakeManager, headers: list[tuple[bytes, bytes]], body: bytes = b""
) -> tuple[int, bytes]:
    """A request with exactly these headers; status and body of the response."""
    status, answer = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, answer
        status = message.get("status", status)
        answer += message.get("body", b"")

    await app_for(one)(http_scope(headers), receive, send)
    return status, answer
