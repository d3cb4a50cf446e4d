"""GET /hub/…: what the status page and the commands see, and who may see it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router.api.routers import hub
from mlx_router.api.schemas.hub import (
    LogLineOut,
    LogPage,
    ModelInUse,
    RequestUnderWay,
    StatusSnapshot,
)
from mlx_router.api.schemas.status import HealthDetails, ModelObject
from mlx_router.domain import Delta, Preparing, Started
from mlx_router.runtime.status import RouterStatus
from mlx_router.telemetry.activity import MemorySample
from mlx_router.telemetry.recent import RecentLines, recent
from tests.api_support import MODEL, USER, FakeManager, app_for, serving, settings
from tests.conformance import check_error
from tests.server import ServerProcess
from tests.waiting import until

KEY = "sk-known-to-this-test"
SECRET = "the-prompt-is-nobodys-business"


@pytest.fixture(autouse=True)
def _no_lines() -> Iterator[None]:
    """Each test begins without log lines."""
    recent._lines.clear()
    yield
    recent._lines.clear()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server that wants a key, and logs all that it can."""
    folder = tmp_path_factory.mktemp("guarded")
    config = {"server": {"api_keys": {"ann": KEY}, "debug": True}}
    flags = ("--engine", "scripted")
    with ServerProcess(folder, *flags, config=config, models=folder) as server:
        yield server


def say(*texts: str) -> None:
    """Put lines into the log."""
    for text in texts:
        recent.handle(logging.makeLogRecord({"msg": text, "levelname": "INFO"}))


app_of = lru_cache(maxsize=2)(app_for)  # making one takes a while


async def get(manager: FakeManager, path: str, address: str = "127.0.0.1", **headers: str) -> Any:
    transport = httpx.ASGITransport(app=app_of(manager), client=(address, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


# --- the snapshot ---------------------------------------------------------------------------


async def test_status_tells_models_requests_and_memory_as_described() -> None:
    manager = FakeManager()
    activity = manager.activity
    with (
        activity.request("chat", "tiny", "req_1") as one,
        activity.request("completion", "to-be-fetched", "req_2") as two,
    ):
        activity.meets(one, MODEL)
        activity.granted(one)
        one.on_event(Started(MODEL, prompt_tokens=7, max_tokens=100))
        one.on_event(Delta(0, "Hi", token_ids=[1]))
        two.on_event(Preparing("downloading org/x 3 % of 4 GB"))
        response = await get(manager, "/hub/status")
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    StatusSnapshot.model_validate(body)
    assert [model["id"] for model in body["models"]] == [MODEL, "org/other"]
    other = body["models"][1]
    assert (other["memory_gb"], other["active_requests"], other["waiting_requests"]) == (2.0, 1, 2)
    first, second = body["requests"]
    assert (first["id"], first["model"], first["phase"]) == ("req_1", MODEL, "decoding")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (7, 1)
    assert (second["kind"], second["phase"]) == ("completion", "waiting")
    assert second["detail"] == "downloading org/x 3 % of 4 GB"
    assert body["completion_tokens"] == 1
    assert (body["control"], body["stopping"]) == (True, False)


def test_status_and_log_of_a_real_server_are_as_described(demo_server: ServerProcess) -> None:
    chat = {"model": "demo", "messages": USER, "max_tokens": 3}
    with httpx.Client(base_url=demo_server.base, timeout=60) as client:
        before = client.get("/hub/status").json()["completion_tokens"]
        answer = client.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 200
        body = client.get("/hub/status").json()
        StatusSnapshot.model_validate(body)
        lines = client.get("/hub/logs").json()
        LogPage.model_validate(lines)
    assert body["completion_tokens"] > before
    demo = next(model for model in body["models"] if model["id"] == "demo")
    assert (demo["state"], demo["memory_gb"] > 0) == ("ready", True)
    assert time.time() - 60 < demo["last_used"] <= body["time"]
    mine = [x["text"] for x in lines["lines"] if x["request_id"] == answer.headers["x-request-id"]]
    assert any("prompt tokens" in text for text in mine)


def test_every_field_of_the_status_is_documented() -> None:
    document = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    own = StatusSnapshot.model_fields.keys() - HealthDetails.model_fields.keys()
    own |= ModelInUse.model_fields.keys() - ModelObject.model_fields.keys()
    own |= RequestUnderWay.model_fields.keys() | LogLineOut.model_fields.keys()
    assert len(own) > 20
    assert [name for name in own if f"`{name}`" not in document] == ["object"]


# --- the log --------------------------------------------------------------------------------


def test_lines_are_kept_up_to_a_thousand_and_read_from_any_point() -> None:
    kept = RecentLines()
    assert kept.lines() == kept.lines(after=5) == []
    for number in range(1, 1201):
        kept.handle(logging.makeLogRecord({"msg": f"line {number}"}))

    def numbers(**range_: int) -> list[int]:
        return [line.number for line in kept.lines(**range_)]

    assert numbers() == list(range(1001, 1201))
    assert numbers(most=2) == [1199, 1200]
    assert numbers(most=0) == []
    assert numbers(most=5000) == list(range(201, 1201))
    assert numbers(after=1198) == [1199, 1200]
    assert numbers(after=300, most=3) == [301, 302, 303]  # the next page, without a gap
    assert numbers(after=10, most=2) == [201, 202]  # what came between is gone
    assert numbers(after=1200) == numbers(after=99_999) == []


async def test_the_log_is_read_page_by_page() -> None:
    manager = FakeManager()
    say(*(f"line {number}" for number in range(10)))
    page = (await get(manager, "/hub/logs?lines=4")).json()
    LogPage.model_validate(page)
    assert [line["text"][-6:] for line in page["lines"]] == ["line 6", "line 7", "line 8", "line 9"]
    say("line 10", "line 11", "line 12")
    texts, last = [], page["lines"][-1]["number"]
    for _ in range(3):
        page = (await get(manager, f"/hub/logs?lines=2&after={last}")).json()
        texts += [line["text"][-7:] for line in page["lines"]]
        last = page["lines"][-1]["number"] if page["lines"] else last
    assert texts == ["line 10", "line 11", "line 12"]


@pytest.mark.parametrize("field", ["lines", "after"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5", "", "9" * 30, "%00"])
async def test_a_number_that_is_none_is_a_400(field: str, value: str) -> None:
    response = await get(FakeManager(), f"/hub/logs?{field}={value}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    check_error(response.json())


def test_no_key_and_no_prompt_is_ever_in_the_log(guarded: ServerProcess) -> None:
    chat = {"model": "scripted", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
    bad = {**chat, "temperature": SECRET}
    wrong = {"authorization": "Bearer sk-wrong-and-secret"}
    with httpx.Client(base_url=guarded.base, timeout=30) as client:
        assert client.post("/v1/chat/completions", json=chat, headers=wrong).status_code == 401
        assert client.get(f"/hub/logs?key={KEY}").status_code == 401
        client.headers["authorization"] = f"Bearer {KEY}"
        for body, status in ((chat, 200), ({**chat, "stream": True}, 200), (bad, 400)):
            assert client.post("/v1/chat/completions", json=body).status_code == status
        vectors = client.post("/v1/embeddings", json={"model": "scripted", "input": SECRET})
        assert vectors.status_code == 400
        assert client.post("/v1/tokenize", json={"model": "scripted", "prompt": SECRET}).is_success
        found = client.get("/hub/logs?lines=1000").json()["lines"]
    text = " ".join(line["text"] for line in found)
    assert "key=ann" in text
    assert "POST /v1/chat/completions 400" in text
    for secret in (KEY, SECRET, "sk-wrong-and-secret"):
        assert secret not in text


# --- who may see what -----------------------------------------------------------------------


async def test_without_keys_the_log_is_for_this_machine_and_the_rest_for_its_network() -> None:
    manager = FakeManager()
    say("a line")
    for address, status, logs in (
        ("127.0.0.1", 200, 200),
        ("::1", 200, 200),
        ("192.168.0.7", 200, 403),
        ("8.8.8.8", 403, 403),
    ):
        found = await get(manager, "/hub/status", address)
        assert found.status_code == status
        if status == 200:
            assert found.json()["control"] == (logs == 200)
        assert (await get(manager, "/hub/logs", address)).status_code == logs
        for page in ("/hub/", "/hub/assets/icon.svg"):
            assert (await get(manager, page, address)).status_code == status


async def test_with_keys_all_but_the_page_needs_one() -> None:
    manager = FakeManager(settings=settings(api_keys={"ann": KEY}))
    for address in ("127.0.0.1", "8.8.8.8"):
        for path in ("/hub/", "/hub/assets/icon.svg"):
            assert (await get(manager, path, address)).status_code == 200
        for path in ("/hub/status", "/hub/logs", "/hub/events", "/hub/assets", "/hub/x"):
            assert (await get(manager, path, address)).status_code == 401, path
        key = {"authorization": f"Bearer {KEY}"}
        assert (await get(manager, "/hub/status", address, **key)).json()["control"] is True
        assert (await get(manager, "/hub/logs", address, **key)).status_code == 200


@pytest.mark.parametrize("path", ["/hub/", "/hub/status", "/hub/logs", "/hub/events"])
async def test_a_foreign_host_name_is_refused(path: str) -> None:
    response = await get(FakeManager(), path, host="evil.com")
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


async def test_pages_of_other_origins_do_not_read_the_log() -> None:
    """Not even where the API is open to all pages: only where they are named."""
    say("a line")
    for origins, status in (([], 403), (["*"], 403), (["https://a.example"], 200)):
        manager = FakeManager(settings=settings(cors_origins=origins))
        found = await get(manager, "/hub/logs", origin="https://a.example")
        assert found.status_code == status
        body = (await get(manager, "/hub/status", origin="https://a.example")).json()
        assert body["control"] == (status == 200)
    found = await get(FakeManager(), "/hub/logs", origin="http://localhost")
    assert found.status_code == 200  # the server's own page


# --- the page -------------------------------------------------------------------------------


async def test_the_page_and_its_files_come_with_a_strict_policy() -> None:
    manager = FakeManager()
    assert (await get(manager, "/hub")).headers["location"] == "/hub/"
    page = await get(manager, "/hub/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    types = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    files = sorted((hub.PAGE / "assets").iterdir())
    assert len(files) > 2
    answers = [page]
    for file in files:
        answers.append(await get(manager, f"/hub/assets/{file.name}"))
        assert types[file.suffix] in answers[-1].headers["content-type"]
        assert answers[-1].content == file.read_bytes()
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    used = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text))
    assert used <= {f"/hub/assets/{f.name}" for f in files} | {f"assets/{f.name}" for f in files}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "..",
            ".",
            "",
            "../index.html",
            "..%2findex.html",
            "%2e%2e%2findex.html",
            "..%5cindex.html",
        ),
        *(
            "%2e%2e/%2e%2e/app.py",
            "....//index.html",
            "/etc/passwd",
            "%2fetc%2fpasswd",
            "%00",
            "icon",
        ),
        *("icon.svg%00", "icon.svg/", "ICON.SVG", "a" * 5000, "%ff", "%f0%9f%98%80", "icon.svg%20"),
    ],
)
def test_only_the_files_of_the_page_are_served(name: str, guarded: ServerProcess) -> None:
    """Sent as it stands: clients tidy paths up."""
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
    connection.putrequest("GET", f"/hub/assets/{name}", skip_accept_encoding=True)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (307, 404), body  # 307: to the address without a slash at its end
    if response.status == 404:
        check_error(json.loads(body))
    assert b"<html" not in body
    assert b"root:" not in body


# --- events ---------------------------------------------------------------------------------


@dataclass
class Event:
    name: str
    data: Any


async def read(response: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield Event(name, json.loads(value))


@asynccontextmanager
async def watching(base: str, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with (
        httpx.AsyncClient(base_url=base, timeout=20) as client,
        client.stream("GET", "/hub/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield read(response)


async def next_of(events: AsyncIterator[Event], name: str) -> Any:
    async for event in events:
        if event.name == name:
            return event.data
    raise AssertionError(f"no {name} came")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "EVENT_SECONDS", 0.01)


class Stopping(FakeManager):
    """Says that it ends once ``ends`` is set."""

    ends = False

    def status(self) -> RouterStatus:
        return replace(super().status(), stopping=self.ends)


@pytest.mark.usefixtures("quick")
async def test_events_tell_the_state_what_memory_was_and_new_lines() -> None:
    manager = FakeManager()
    memory = manager.activity.memory
    memory.extend(MemorySample(t, float(t), 2**30, 2**29, 0, "normal") for t in (1, 2))
    say("one", "two")
    async with serving(app_for(manager), lifespan="off") as base, watching(base) as events:
        first = await anext(events)
        assert first.name == "status"
        StatusSnapshot.model_validate(first.data)
        points = await next_of(events, "memory")
        assert [(p["time"], p["available_gb"], p["router_gb"]) for p in points] == [
            (1.0, 1.0, 0.5),
            (2.0, 1.0, 0.5),
        ]
        lines = await next_of(events, "log")
        assert [line["text"][-3:] for line in lines] == ["one", "two"]
        memory.append(MemorySample(3, 0.5, 2**30, 2**29, 0, "high"))  # the clock was set back
        (point,) = await next_of(events, "memory")  # the new one only
        assert (point["time"], point["pressure"]) == (0.5, "high")
        say("three")
        (line,) = await next_of(events, "log")
        assert line["text"].endswith("three")
        assert (await next_of(events, "status"))["control"] is True


@pytest.mark.usefixtures("quick")
async def test_events_have_no_lines_for_who_may_not_read_them() -> None:
    say("a line")
    manager = Stopping(settings=settings(cors_origins=["*"]))
    origin = {"origin": "https://a.example"}
    async with (
        serving(app_for(manager), lifespan="off") as base,
        watching(base, **origin) as events,
    ):
        assert (await next_of(events, "status"))["control"] is False
        manager.ends = True
        assert {event.name async for event in events} == {"status"}


@pytest.mark.usefixtures("quick")
async def test_events_end_when_the_server_does() -> None:
    manager = Stopping()
    async with serving(app_for(manager), lifespan="off") as base, watching(base) as events:
        assert (await next_of(events, "status"))["stopping"] is False
        manager.ends = True
        last = [event async for event in events][-1]
        assert last.data["stopping"] is True


@pytest.mark.usefixtures("quick")
async def test_events_tell_the_models_when_they_have_changed() -> None:
    manager = FakeManager()
    async with serving(app_for(manager), lifespan="off") as base, watching(base) as events:
        assert len((await next_of(events, "status"))["models"]) == 2
        assert "models" not in await next_of(events, "status")
        manager.infos = manager.infos[:1]
        found: list[Any] = []
        while not found:
            found = (await next_of(events, "status")).get("models", [])
        assert [model["id"] for model in found] == [MODEL]
        async with watching(base) as others:  # a page that comes later is told all the same
            assert len((await next_of(others, "status"))["models"]) == 1


@pytest.mark.usefixtures("quick")
async def test_events_end_when_the_config_changes_and_the_key_is_checked_again() -> None:
    manager = FakeManager(settings=settings(api_keys={"ann": KEY}))
    key = f"Bearer {KEY}"
    async with (
        serving(app_for(manager), lifespan="off") as base,
        watching(base, authorization=key) as events,
    ):
        await anext(events)
        manager.settings = settings(api_keys={"ann": "sk-another-long-key"})
        assert [event async for event in events][-1].name
        async with httpx.AsyncClient(base_url=base) as client:
            assert (await client.get("/hub/events", headers={"authorization": key})).is_client_error


async def test_more_watchers_than_the_server_can_serve_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "MOST_WATCHERS", 1)
    async with serving(app_for(FakeManager()), lifespan="off") as base:
        async with watching(base) as events:
            await anext(events)
            async with httpx.AsyncClient(base_url=base) as client:
                response = await client.get("/hub/events")
            assert response.status_code == 429
            assert "1 pages watch already" in response.json()["error"]["message"]
        async with watching(base) as events:
            assert (await anext(events)).name == "status"


@pytest.mark.usefixtures("quick")
async def test_a_watcher_that_leaves_leaves_no_task() -> None:
    async with serving(app_for(FakeManager()), lifespan="off") as base:
        idle = len(asyncio.all_tasks())
        async with watching(base) as events:
            await anext(events)
            assert len(asyncio.all_tasks()) > idle
        await until(lambda: len(asyncio.all_tasks()) <= idle)


async def test_a_watcher_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would hold up the end of the server."""
    monkeypatch.setattr(hub, "EVENT_SECONDS", 0.0)
    monkeypatch.setattr(hub, "STALL_SECONDS", 0.1)
    manager = FakeManager()
    with socket.socket() as client:
        async with serving(app_for(manager), lifespan="off") as base:
            url = httpx.URL(base)
            idle = len(asyncio.all_tasks())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (url.host, url.port))
            await loop.sock_sendall(client, b"GET /hub/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await until(lambda: len(asyncio.all_tasks()) > idle)
            await until(lambda: len(asyncio.all_tasks()) <= idle)


async def test_a_page_that_watches_does_not_hold_up_the_end(guarded: ServerProcess) -> None:
    """The last test of this file: it ends the server."""
    async with watching(guarded.base, authorization=f"Bearer {KEY}") as events:
        assert (await next_of(events, "status"))["stopping"] is False
        began = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(guarded.stop, signal.SIGTERM))
        last = [event.data for event in [e async for e in events] if event.name == "status"][-1]
        assert await ending == 0
    assert last["stopping"] is True
    assert time.monotonic() - began < 15  # of the 30 seconds that answers have
