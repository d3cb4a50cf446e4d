"""What only a real server and a real socket show: clients that vanish, stall or lie."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from mlx_router.api import stream as stream_module
from mlx_router.domain import Completed, Delta, Finished, FinishReason, GenerationRequest, Usage
from tests.api_support import (
    USER,
    Events,
    FakeManager,
    Held,
    app_for,
    says,
    serving,
    settings,
    started,
)


def request(**body: Any) -> bytes:
    data = json.dumps({"messages": USER, **body}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    return f"{head}{len(data)}\r\n\r\n".encode() + data


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}])
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("before", [(), (started(), Delta(0, "a"))])
async def test_a_closed_connection_ends_the_answer(
    body: dict[str, Any], how: str, before: Any
) -> None:
    held = Held(*before)
    manager = FakeManager(held)
    async with serving(app_for(manager)) as url:
        _, writer = await connect(url)
        writer.write(request(**body))
        await asyncio.wait_for(held.waiting.wait(), 5)
        if how == "rst":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        await asyncio.wait_for(held.closed.wait(), 5)
    assert manager.open == 0


async def test_a_reader_that_stalls_is_dropped_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        stream_module.StreamingAnswer.__init__,
        "__kwdefaults__",
        {"headers": None, "stall_seconds": 0.3},
    )
    closed = asyncio.Event()

    async def endless(request: GenerationRequest) -> Events:
        try:
            yield started()
            while request.model == "endless":
                yield Delta(0, "x" * 10_000)
                await asyncio.sleep(0)
            yield Delta(0, "done")
            yield Finished(0, FinishReason.STOP)
            yield Completed(Usage())
        finally:
            if request.model == "endless":
                closed.set()

    manager = FakeManager(endless)
    async with serving(app_for(manager)) as url:
        reader, writer = await connect(url)
        writer.write(request(stream=True, model="endless"))
        await reader.readuntil(b"role")
        # From here on nothing is read: the buffers fill, then the server must let go.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        other_reader, other = await connect(url)
        other.write(request(stream=True))
        assert b"done" in await asyncio.wait_for(other_reader.readuntil(b"[DONE]"), 5)
        other.close()
        await asyncio.wait_for(closed.wait(), 10)
        writer.close()
    assert manager.open == 0


async def test_a_connection_is_reused_after_every_kind_of_answer() -> None:
    manager = FakeManager(says("a"))
    async with serving(app_for(manager)) as url:
        reader, writer = await connect(url)
        for body in ({"stream": True}, {"stream": False}, {"temperature": 9}, {"stream": True}):
            writer.write(request(**body))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
            else:
                length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
        writer.close()
    assert len(manager.requests) == 3
    assert manager.open == 0


async def test_a_huge_body_is_refused_without_being_read() -> None:
    async with serving(app_for(FakeManager(settings=settings(max_body_mb=1)))) as url:
        reader, writer = await connect(url)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        writer.write(f"{head}{10**9}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload_too_large" in answer
