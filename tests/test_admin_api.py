"""POST /admin/…: models loaded, unloaded and pinned, and the server ended, by those who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router import GenerationRequest, MLXModelManager, Settings
from mlx_router.api.app import create_app
from mlx_router.api.schemas.answers import Shutdown
from mlx_router.api.schemas.status import ModelObject
from mlx_router.domain import TextPrompt
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from tests.api_support import MODEL, USER, FakeManager, client_for, settings
from tests.conformance import check_error
from tests.server import ServerProcess
from tests.waiting import until

ACTIONS = ("/admin/models/load", "/admin/models/unload", "/admin/models/pin")
ALL = (*ACTIONS, "/admin/reload", "/admin/shutdown")


def told(manager: FakeManager) -> list[str]:
    return [what for what in manager.life if what not in ("start", "close")]


# --- who may --------------------------------------------------------------------------------


async def test_without_keys_the_server_obeys_its_own_machine_only() -> None:
    manager = FakeManager()
    for address, status in (("192.168.0.7", 403), ("8.8.8.8", 403), ("127.0.0.1", 200)):
        async with client_for(manager, address=address) as client:
            for path in ALL:
                response = await client.post(path, json={"model": MODEL})
                assert response.status_code == status, path
        assert bool(told(manager)) == (status == 200)


async def test_with_keys_only_who_has_one_is_obeyed() -> None:
    manager = FakeManager(settings=settings(api_keys={"ann": "sk-ann"}))
    for address in ("127.0.0.1", "8.8.8.8"):
        async with client_for(manager, address=address) as client:
            for path in ALL:
                for headers in ({}, {"authorization": "Bearer wrong"}):
                    response = await client.post(path, json={"model": MODEL}, headers=headers)
                    assert response.status_code == 401
    assert not told(manager)
    async with client_for(manager, address="8.8.8.8") as client:
        headers = {"authorization": "Bearer sk-ann"}
        response = await client.post(ALL[0], json={"model": MODEL}, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("origins", [[], ["*"], ["https://other.example"]])
async def test_no_web_page_that_is_not_named_is_obeyed(origins: list[str]) -> None:
    """A browser sends such a request for any page, from this very machine. That all pages may ask
    models does not mean that they may control the server."""
    manager = FakeManager(settings=settings(cors_origins=origins))
    async with client_for(manager) as client:
        for origin in ("https://evil.com", "null", "http://localhost:3000", "http://127.0.0.1"):
            for path in ALL:
                for kind in ("application/json", "text/plain"):
                    headers = {"origin": origin, "content-type": kind}
                    body = json.dumps({"model": MODEL})
                    response = await client.post(path, content=body, headers=headers)
                    assert response.status_code == 403, (path, origin)
                    check_error(response.json())
            asked = {"origin": origin, "access-control-request-method": "POST"}
            preflight = await client.options(ALL[0], headers=asked)
            assert preflight.status_code >= 400
    assert not told(manager)


async def test_the_servers_own_page_and_those_that_are_named_are_obeyed() -> None:
    manager = FakeManager(settings=settings(cors_origins=["https://a.example"]))
    async with client_for(manager) as client:
        for origin in ("http://localhost", "https://a.example"):
            headers = {"origin": origin}
            response = await client.post(ALL[0], json={"model": MODEL}, headers=headers)
            assert response.status_code == 200
    assert told(manager) == [f"load {MODEL}"] * 2


@pytest.mark.parametrize("path", ALL)
async def test_a_foreign_host_name_and_other_methods_are_refused(path: str) -> None:
    manager = FakeManager()
    async with client_for(manager, host="evil.com") as client:
        assert (await client.post(path, json={"model": MODEL})).status_code == 403
    async with client_for(manager) as client:
        for method in ("GET", "PUT", "DELETE"):
            assert (await client.request(method, path)).status_code == 405
    assert not told(manager)


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": MODEL, "pinend": False}, "pinend"),
        ([], None),
        ("x", None),
    ],
)
async def test_what_is_not_meant_is_not_done(path: str, body: Any, param: str | None) -> None:
    manager = FakeManager()
    async with client_for(manager) as client:
        response = await client.post(path, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert (param or "body") in response.json()["error"]["message"]
        assert (await client.post(path, content=b"{")).status_code == 400
        pinned = await client.post(path, json={"model": MODEL, "pinned": "yes"})
        assert pinned.status_code == 400
        check_error(response.json())
    assert not told(manager)


# --- models ---------------------------------------------------------------------------------


@asynccontextmanager
async def asking(manager: MLXModelManager) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a manager that is running."""
    transport = httpx.ASGITransport(app=create_app(manager, manager.settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@asynccontextmanager
async def scripted(**defaults: Any) -> AsyncIterator[tuple[MLXModelManager, httpx.AsyncClient]]:
    """Three models without weights; each reload allows one token more."""
    tokens = iter(range(100, 200))

    def read() -> Settings:
        return Settings.model_validate({"defaults": {**defaults, "max_tokens": next(tokens)}})

    factory = ScriptedFactory(ScriptedOptions())
    manager = MLXModelManager(read(), engine="scripted", factory=factory, source=read)
    async with manager, asking(manager) as client:
        yield manager, client


async def act(client: httpx.AsyncClient, action: str, model: str, **fields: Any) -> dict[str, Any]:
    """What came of it: the model."""
    response = await client.post(f"/admin/models/{action}", json={"model": model, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    ModelObject.model_validate(body)
    return body


def loaded(manager: MLXModelManager) -> list[str]:
    return [info.id for info in manager.status().loaded]


def test_models_are_loaded_pinned_and_unloaded_on_request(demo_server: ServerProcess) -> None:
    with httpx.Client(base_url=demo_server.base, timeout=60) as client:

        def act(action: str, **fields: Any) -> dict[str, Any]:
            response = client.post(f"/admin/models/{action}", json={"model": "DEMO", **fields})
            assert response.status_code == 200, response.text
            body: dict[str, Any] = response.json()
            ModelObject.model_validate(body)
            return body

        def state() -> tuple[str, bool, bool]:
            models = client.get("/hub/status").json()["models"]
            demo = next(model for model in models if model["id"] == "demo")
            return demo["state"], demo["pinned"], demo["memory_gb"] > 0

        assert act("load")["state"] == "ready"
        assert act("load")["state"] == "ready"  # again: nothing happens
        assert act("pin")["pinned"] is True
        assert state() == ("ready", True, True)
        assert act("unload")["state"] == "unloaded"  # who asks for it may, pinned or not
        assert act("unload")["state"] == "unloaded"
        assert act("pin", pinned=False)["pinned"] is False
        assert state() == ("unloaded", False, False)
        chat = {"model": "demo", "messages": USER, "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
        for action in ACTIONS:
            response = client.post(action, json={"model": "dem"})
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "model_not_found"
            assert "demo" in response.json()["error"]["message"]


async def test_a_pinned_model_keeps_its_place_until_it_is_unpinned() -> None:
    async with scripted(cache_size=1) as (manager, client):
        await act(client, "load", "scripted")
        assert (await act(client, "pin", "scripted"))["pinned"] is True
        for _ in range(2):
            refused = await client.post(ACTIONS[0], json={"model": "scripted-2"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            error = refused.json()["error"]
            assert error["code"] == "insufficient_memory"
            assert "pinned models fill cache_size" in error["message"]
            assert "Pinned: scripted" in error["message"]
            chat = {"model": "scripted-2", "messages": USER}
            assert (await client.post("/v1/chat/completions", json=chat)).status_code == 503
            assert loaded(manager) == ["scripted"]
            changed = await client.post("/admin/reload")  # the pin outlives it
            assert [c["setting"] for c in changed.json()["changes"]] == ["defaults.max_tokens"]
            assert manager.model("scripted").pinned
        assert (await act(client, "pin", "scripted", pinned=False))["pinned"] is False
        await act(client, "load", "scripted-2")
        assert loaded(manager) == ["scripted-2"]


async def test_a_model_that_is_pinned_in_the_config_can_be_let_go() -> None:
    entry = {"scripted": {"pinned": True, "preload": False}}
    config = Settings.model_validate({"defaults": {"cache_size": 1}, "models": entry})
    manager = MLXModelManager(config, engine="scripted", factory=ScriptedFactory())
    async with manager, asking(manager) as client:
        assert (await act(client, "load", "scripted"))["pinned"] is True
        assert (await act(client, "pin", "scripted", pinned=False))["pinned"] is False
        await act(client, "load", "scripted-2")
        assert loaded(manager) == ["scripted-2"]
        # Before it is in memory, too; it then stays.
        assert (await act(client, "pin", "scripted"))["state"] == "unloaded"
        await act(client, "load", "scripted")
        assert loaded(manager) == ["scripted"]


async def test_an_unload_waits_for_the_answers_under_way() -> None:
    async with scripted() as (manager, client):
        prompt = TextPrompt("On")
        request = GenerationRequest(prompt, "scripted", max_tokens=20_000, ignore_eos=True)
        events = manager.generate(request)
        await anext(events)
        unload = asyncio.create_task(act(client, "unload", "scripted"))
        await until(lambda: bool(manager._core and manager._core.fleet._unloads))
        assert not unload.done()
        await events.aclose()
        assert (await unload)["state"] == "unloaded"


async def test_a_model_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "org" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"model_type": "llama"}')
    async with (
        MLXModelManager(model_directory=tmp_path) as manager,
        asking(manager) as client,
    ):
        for path in (ACTIONS[0], ACTIONS[2]):
            response = await client.post(path, json={"model": "broken"})
            assert response.status_code == 400
            error = response.json()["error"]
            assert (error["code"], error["param"]) == ("model_corrupt", "model")
            assert "org/broken cannot be used" in error["message"]
        # It is not in memory: that is what was asked for.
        assert (await act(client, "unload", "broken"))["state"] == "unusable"
        for name in ("../etc", "/etc/passwd", "x" * 5000, "nothing"):
            for path in ACTIONS:
                assert (await client.post(path, json={"model": name})).status_code == 404


# --- the end --------------------------------------------------------------------------------


async def test_who_asks_twice_to_end_the_server_is_heard_once() -> None:
    """A second signal would cut off the answers under way."""
    manager = FakeManager()
    async with client_for(manager) as client:
        for _ in range(3):
            response = await client.post("/admin/shutdown")
            assert response.status_code == 200
            Shutdown.model_validate(response.json())
    assert told(manager) == ["end"]


async def test_a_program_with_the_router_in_it_is_not_ended() -> None:
    async with MLXModelManager(engine="scripted") as manager, asking(manager) as client:
        response = await client.post("/admin/shutdown")
        assert response.status_code == 400
        assert "only that program can end it" in response.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200


async def test_shutdown_lets_answers_finish_and_exits_with_0(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--engine", "scripted", models=tmp_path) as server:
        await _shut_down_while_it_answers(server)


async def _shut_down_while_it_answers(server: ServerProcess) -> None:
    chat = {"model": "scripted", "messages": USER, "stream": True, "max_tokens": 30_000}
    chat = {**chat, "ignore_eos": True, "stream_chunk_size": 1}
    async with (
        httpx.AsyncClient(base_url=server.base, timeout=60) as client,
        client.stream("GET", "/hub/events") as page,  # it is watched meanwhile
        client.stream("POST", "/v1/chat/completions", json=chat) as response,
    ):
        assert page.status_code == 200
        lines = response.aiter_lines()
        assert "role" in await anext(lines)
        for _ in range(2):
            ending = await client.post("/admin/shutdown")
            assert ending.status_code == 200
            assert ending.json()["grace_seconds"] == 30
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert server.process is not None
    assert await asyncio.to_thread(server.process.wait, 20) == 0
