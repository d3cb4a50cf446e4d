"""What a streamed token and an open stream cost the server: calls, writes and memory."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from multiprocessing.synchronize import Event
from typing import cast

import psutil
import pytest
from starlette.types import Message

from mlx_router.api.app import create_app
from mlx_router.api.chat_chunks import ChatChunks
from mlx_router.api.service import ANONYMOUS
from mlx_router.api.stream import MOST_CHUNKS, StreamingAnswer
from mlx_router.api.translate import chat_call
from mlx_router.cli.address import bind
from mlx_router.cli.serving import serve_app
from mlx_router.config.settings import Settings
from mlx_router.domain import FinishReason, GenerationEvent
from mlx_router.engine.base import StepResult
from mlx_router.engine.scripted import ScriptedCodec, ScriptedFactory, ScriptedOptions
from mlx_router.parsing import OutputParser
from mlx_router.runtime.answer import Answer, Choice
from mlx_router.runtime.manager import MLXModelManager
from tests.api_support import USER, started
from tests.soak import times

STREAMS = times(300)
MOST_BYTES = 64 * 1024
MOST_CALLS = 40  # a call takes a tenth of a microsecond and more, and the promise is 15
WARM_UP = 24  # streams before them: for the pools and buffers that all streams share


def serve_behind(gate: Event, port: int) -> None:
    """A server whose model takes no step before the gate is set. Runs in a process of its own."""
    settings = Settings.model_validate(
        {
            "server": {"max_queue": 4 * STREAMS, "keep_alive_seconds": 1.0},
            "defaults": {"max_batch_size": STREAMS + WARM_UP, "timeout": 600},
        }
    )
    options = ScriptedOptions(step_gate=cast(threading.Event, gate))
    manager = MLXModelManager(settings, engine="scripted", factory=ScriptedFactory(options))
    with bind("127.0.0.1", port) as listener:
        app = create_app(manager, settings)
        serve_app(app, manager, listener, grace_seconds=0.0, on_ready=lambda: None)


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """So many descriptors for this process, and for those that it starts meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Stream:
    """A connection on which an answer was asked for, and has begun without any text."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, stack: AsyncExitStack) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        asked = {
            "messages": [{"role": "user", "content": "Hello?"}],
            "model": "scripted",
            "stream": True,
            "max_tokens": 8,
        }
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b": keep-alive")
        return cls(reader, writer)

    async def text(self) -> bytes:
        """All that comes until the end of the answer."""
        return await self._reader.readuntil(b"[DONE]")


async def stream_tokens(count: int) -> list[bytes]:
    """Stream so many tokens that are all there when the client begins to read, each an event of its
    own, from the engine's results to ASGI messages. The bodies that were written."""
    codec = ScriptedCodec()
    call = chat_call({"messages": USER, "stream": True}, Settings(), ANONYMOUS)
    answer = Answer(1, lambda job: None)
    parser = OutputParser("<think>", "</think>", "hermes")
    choice = Choice(answer, 0, codec, parser, stop=(), chunk_tokens=1, in_reasoning=False)
    answer.add_choice(1, choice)
    token = codec.encode("answer")[0]
    for _ in range(count - 1):
        answer.on_result(StepResult(1, token))
    answer.on_result(StepResult(1, token, FinishReason.LENGTH))

    async def events() -> AsyncGenerator[GenerationEvent, None]:
        yield started()
        async for event in answer:
            yield event

    bodies = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    encoder = ChatChunks(call, lambda model: True)
    response = StreamingAnswer(events(), encoder, keep_alive_seconds=60)
    await response({"type": "http"}, receive, send)
    return bodies


def texts(body: bytes) -> list[str]:
    """What the chunks with text say."""
    found = []
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            delta = json.loads(event[6:])["choices"][0]["delta"]
            found += [delta["content"]] if delta.get("content") else []
    return found


async def test_tokens_that_came_together_are_written_together() -> None:
    bodies = await stream_tokens(10 * MOST_CHUNKS)
    assert texts(b"".join(bodies)) == ["answer"] * (10 * MOST_CHUNKS)
    assert len(bodies) < 20


async def test_no_write_is_so_large_that_a_slow_reader_looks_like_none() -> None:
    bodies = await stream_tokens(10 * MOST_CHUNKS)
    assert max(len(texts(body)) for body in bodies) == MOST_CHUNKS


async def test_a_streamed_token_takes_few_calls() -> None:
    async def calls(tokens: int) -> int:
        count = 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            await stream_tokens(tokens)
        finally:
            sys.setprofile(None)
        return count

    few, many = await calls(100), await calls(1100)
    assert (many - few) / 1000 <= MOST_CALLS


@pytest.mark.slow
def test_hundreds_of_idle_streams_take_at_most_64_kb_each() -> None:
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Event()
    with many_files(4 * STREAMS), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = spawn.Process(target=serve_behind, args=(gate, port), daemon=True)
        server.start()
        try:
            taken, texts = asyncio.run(_held_by_streams(port, psutil.Process(server.pid), gate))
        finally:
            server.terminate()
            server.join(30)
    assert all(b'"finish_reason":"length"' in text for text in texts)
    assert taken <= STREAMS * MOST_BYTES, f"{taken / STREAMS / 1024:.0f} KB a stream"


async def _held_by_streams(
    port: int, server: psutil.Process, gate: Event
) -> tuple[int, list[bytes]]:
    """Bytes of memory that the streams took in the server, and what they said in the end."""
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        await _accepts(port)
        streams = await asyncio.gather(*(Stream.open(port, stack) for _ in range(WARM_UP)))
        before = server.memory_info().rss
        streams += await asyncio.gather(*(Stream.open(port, stack) for _ in range(STREAMS)))
        taken = server.memory_info().rss - before
        gate.set()
        return taken, await asyncio.gather(*(stream.text() for stream in streams))


async def _accepts(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
