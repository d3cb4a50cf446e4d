"""What happens around an answer: clients that leave, timeouts, full queues, signals, broken models.

Against real server processes with real models.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import (
    add_remote_code,
    copy_model,
    drop_shard,
    empty_shard,
    html_shard,
    huge_header_shard,
    truncate_shard,
)
from tests.server import ServerProcess
from tests.waiting import until_sync

BREAKS: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate_shard,
    "missing": drop_shard,
    "empty": empty_shard,
    "html": html_shard,
    "header": huge_header_shard,
}

LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def broken_models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is whole, and others."""
    models = tmp_path_factory.mktemp("broken") / "models"
    copy_model(tiny_models / "tiny" / "llama", models / "good")
    for name, damage in BREAKS.items():
        damage(copy_model(tiny_models / "tiny" / "sharded", models / name))
    code = copy_model(tiny_models / "tiny" / "llama", models / "code")
    add_remote_code(code, models.parent / "canary")
    bad = copy_model(tiny_models / "tiny" / "llama", models / "bad")
    config = json.loads((bad / "config.json").read_text())
    config["num_hidden_layers"] += 1  # weights for a layer are missing
    (bad / "config.json").write_text(json.dumps(config))
    return models


@pytest.fixture(scope="module")
def narrow_server(
    broken_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """It answers one request at a time; two may wait."""
    config = {"defaults": {"max_batch_size": 1}, "server": {"max_queue": 2}}
    folder = tmp_path_factory.mktemp("narrow")
    with ServerProcess(folder, config=config, models=broken_models) as server:
        yield server


def body(model: str = "llama", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], **fields}


def active_requests(server: ServerProcess) -> int:
    health = httpx.get(f"{server.url}/health", timeout=10).json()
    return sum(m["active_requests"] + m["waiting_requests"] for m in health["loaded_models"])


async def until_active(server: ServerProcess, requests: int) -> None:
    await asyncio.to_thread(until_sync, lambda: active_requests(server) == requests)


async def events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[str]:
    """All data of a stream, [DONE] included."""
    async with client.stream("POST", "/chat/completions", json=body(stream=True, **fields)) as got:
        assert got.status_code == 200, await got.aread()
        return [data async for data in events(got)]


# --- leaving --------------------------------------------------------------------------------


async def test_a_reader_that_leaves_frees_its_place(tiny_server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
        request = client.stream("POST", "/chat/completions", json=body(stream=True, **LONG))
        async with request as response:
            received = events(response)
            for _ in range(3):
                assert "error" not in json.loads(await anext(received))
            assert active_requests(tiny_server) == 1
    until_sync(lambda: active_requests(tiny_server) == 0, seconds=2.0)


async def test_a_client_that_leaves_before_the_whole_answer_frees_its_place(
    tiny_server: ServerProcess,
) -> None:
    async with httpx.AsyncClient(base_url=tiny_server.url) as client:
        task = asyncio.create_task(client.post("/chat/completions", json=body(**LONG), timeout=60))
        await until_active(tiny_server, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    until_sync(lambda: active_requests(tiny_server) == 0, seconds=2.0)


# --- limits ---------------------------------------------------------------------------------


async def test_a_timeout_ends_an_answer_with_what_it_has(tiny_server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
        await client.post("/chat/completions", json=body(max_tokens=1))  # loaded
        response = await client.post("/chat/completions", json=body(timeout=0.7, **LONG))
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 1500
    assert response.headers["x-mlx-router-timed-out"] == "true"
    until_sync(lambda: active_requests(tiny_server) == 0, seconds=2.0)


async def test_a_full_queue_is_a_429_with_retry_after(narrow_server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=narrow_server.url, timeout=60) as client:
        responses = await asyncio.gather(
            *(client.post("/chat/completions", json=body("good", max_tokens=60)) for _ in range(6))
        )
    codes = sorted(response.status_code for response in responses)
    assert codes.count(429) >= 3
    assert codes.count(200) >= 2
    refused = next(response for response in responses if response.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


# --- signals --------------------------------------------------------------------------------


async def test_sigterm_lets_answers_finish(tiny_models: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, models=tiny_models) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await client.post("/chat/completions", json=body(max_tokens=1))
            streams = [
                asyncio.create_task(stream(client, temperature=0, max_tokens=100, ignore_eos=True))
                for _ in range(4)
            ]
            await until_active(server, 4)
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            for data in await asyncio.gather(*streams):
                assert data[-1] == "[DONE]"
                assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
            assert await stopped == 0
            with pytest.raises(httpx.TransportError):
                await client.get("/models")


async def test_after_the_grace_time_answers_end_with_an_error(
    tiny_models: Path, tmp_path: Path
) -> None:
    config = {"server": {"grace_seconds": 0.3}}
    with ServerProcess(tmp_path, config=config, models=tiny_models) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await client.post("/chat/completions", json=body(max_tokens=1))
            task = asyncio.create_task(stream(client, **LONG))
            await until_active(server, 1)
            started = time.monotonic()
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            data = await task
            assert data[-1] == "[DONE]"
            assert json.loads(data[-2])["error"]["code"] == "shutting_down"
            assert await stopped == 0
            assert time.monotonic() - started < 5


async def test_a_second_signal_stops_at_once(tiny_models: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, models=tiny_models) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await client.post("/chat/completions", json=body(max_tokens=1))
            task = asyncio.create_task(stream(client, **LONG))
            await until_active(server, 1)
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(until_sync, lambda: "shutting down" in server.output())
            assert server.process.poll() is None
            started = time.monotonic()
            await asyncio.to_thread(server.stop, signal.SIGTERM)
            assert time.monotonic() - started < 3
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- broken models --------------------------------------------------------------------------


def test_a_broken_model_is_named_and_the_rest_serve_on(
    narrow_server: ServerProcess, broken_models: Path
) -> None:
    for name in BREAKS:
        error = refusal(narrow_server, body(name, max_tokens=2))
        assert error["code"] == "model_corrupt"
        assert ".safetensors" in error["message"]
        assert str(broken_models) not in error["message"]
    assert "trust_remote_code" in refusal(narrow_server, body("code"))["message"]
    assert_good(narrow_server)
    assert not (broken_models.parent / "canary").exists()


def test_a_model_that_breaks_under_the_server_is_reported_and_the_rest_serve_on(
    narrow_server: ServerProcess,
) -> None:
    """The headers look right, and the load fails all the same."""
    for _ in range(2):
        assert refusal(narrow_server, body("bad"))["code"] == "model_corrupt"
        assert_good(narrow_server)


def refusal(server: ServerProcess, request: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/chat/completions", json=request, timeout=60)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def assert_good(server: ServerProcess) -> None:
    request = body("good", max_tokens=2)
    answer = httpx.post(f"{server.url}/chat/completions", json=request, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 2
