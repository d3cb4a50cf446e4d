"""The load generator: many streams at once, cheap enough not to be what is measured.

While answers run, a connection only keeps what arrives and when; everything is parsed afterwards.
Runs in a process of its own as seen from the servers, on uvloop, with raw sockets.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import uvloop

HOST = "127.0.0.1"
PATIENCE_SECONDS = 600.0  # for what a measurement asks for
PATH = "/v1/chat/completions"

T = TypeVar("T")


class LoadError(Exception):
    """A server did not answer as asked; the message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. ``first`` and ``last`` are when its first and last text arrived, ``end``
    when it was complete: seconds since the request was sent. ``cached_tokens``: of the prompt, not
    computed, by the server's word; None: it does not say."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    first: float
    last: float
    end: float
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer of a conversation between several clients and a server. ``source``: whose request
    it was; ``sent``: seconds since the first request of all."""

    source: int
    sent: float
    answer: Answer

    @property
    def first(self) -> float:
        """When the first text arrived: seconds since the first request of all."""
        return self.sent + self.answer.first


Piece = tuple[float, bytes]  # when it arrived (seconds), and the bytes of the socket


class SSEReader:
    """Bytes of a stream in, the ``data`` of its events out; comments are left out."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        *events, self._buffer = (self._buffer + data).split(b"\n\n")
        lines = (line for event in events for line in event.split(b"\n"))
        return [line.removeprefix(b"data:").strip() for line in lines if line[:5] == b"data:"]


class Dechunker:
    """Takes HTTP's chunked transfer coding off; a chunk comes out when it is complete."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out = []
        while (at := self._buffer.find(b"\r\n")) >= 0:
            end = at + 2 + int(self._buffer[:at].split(b";")[0], 16)
            if len(self._buffer) < end + 2:
                break
            out.append(self._buffer[at + 2 : end])
            self._buffer = self._buffer[end + 2 :]
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class Head:
    """Status and framing of a response. ``length`` None: chunked, or until the connection ends."""

    status: int
    size: int
    chunked: bool
    length: int | None


def parse_head(data: bytes) -> Head | None:
    """The head of a response; None while it is incomplete."""
    at = data.find(b"\r\n\r\n")
    if at < 0:
        return None
    status, *lines = data[:at].lower().split(b"\r\n")
    headers = dict(line.split(b":", 1) for line in lines)
    length = headers.get(b"content-length")
    return Head(
        status=int(status.split()[1]),
        size=at + 4,
        chunked=b"chunked" in headers.get(b"transfer-encoding", b""),
        length=None if length is None else int(length),
    )


def _body(pieces: Sequence[Piece]) -> tuple[Head, Iterator[Piece]]:
    """The head, and the body as it arrived."""
    whole = b"".join(data for _, data in pieces)
    head = parse_head(whole)
    if head is None:
        raise LoadError(f"no answer, but {whole[:200]!r}")

    def bodies() -> Iterator[Piece]:
        left = head.size
        dechunker = Dechunker()
        for moment, data in pieces:
            skipped = min(left, len(data))
            left -= skipped
            rest = data[skipped:]
            yield moment, dechunker.feed(rest) if head.chunked else rest

    return head, bodies()


def parse_answer(sent: float, pieces: Sequence[Piece]) -> Answer:
    """What a streamed chat answer said, and when. Raises LoadError for anything else."""
    head, bodies = _body(pieces)
    if head.status != 200:
        content = b"".join(data for _, data in bodies)
        raise LoadError(f"status {head.status}: {content[:300].decode(errors='replace')}")
    reader = SSEReader()
    texts: list[str] = []
    times: list[float] = []
    finish: str | None = None
    usage: dict[str, Any] = {}
    done = False
    for moment, data in bodies:
        for event in reader.feed(data):
            if event == b"[DONE]":
                done = True
                continue
            chunk = json.loads(event)
            if "error" in chunk:
                raise LoadError(f"an error in the stream: {chunk['error']}")
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                finish = choice.get("finish_reason") or finish
                delta = choice["delta"]
                # What a server takes for thinking is called this or that; it is text all the same.
                names = ("content", "reasoning_content", "reasoning")
                if text := next((delta[name] for name in names if delta.get(name)), None):
                    texts.append(text)
                    times.append(moment - sent)
    if not done or not times or not usage:
        raise LoadError("the stream ended before [DONE], or without text or usage")
    if finish != "length":
        raise LoadError(f"the answer ended by {finish!r}, not at its length")
    return Answer(
        text="".join(texts),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        first=times[0],
        last=times[-1],
        end=pieces[-1][0] - sent,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def http_request(body: bytes) -> bytes:
    """A POST of ``body`` to the chat endpoint, as bytes for the socket."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time and keeps the answer as raw pieces."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._head: Head | None = None
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        self._size += len(data)
        if self._head is None:
            self._head = parse_head(b"".join(piece for _, piece in self._pieces))
        if self._head is not None and self._complete(self._head):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._end()

    async def ask(self, request: bytes) -> tuple[float, list[Piece]]:
        """Send a request; when it was sent, and all that came back."""
        if self.transport is None:
            raise LoadError("the server closed the connection")
        self._pieces, self._head, self._size = [], None, 0
        self._waiter = asyncio.get_running_loop().create_future()
        sent = time.perf_counter()
        self.transport.write(request)
        await self._waiter
        return sent, self._pieces

    @property
    def arrivals(self) -> list[float]:
        """When each piece of the answer under way arrived."""
        return [moment for moment, _ in self._pieces]

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _complete(self, head: Head) -> bool:
        if head.length is not None:
            return self._size >= head.size + head.length
        # JSON has no bare line breaks, so only the last chunk can look like this.
        tail = self._pieces[-1][1][-7:]
        if len(tail) < 7:
            tail = b"".join(piece for _, piece in self._pieces[-4:])[-7:]
        return head.chunked and tail == b"\r\n0\r\n\r\n"

    def _end(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(port: int) -> Connection:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, HOST, port)
    return connection


def ask_together(port: int, bodies: Sequence[bytes], timeout: float) -> list[Answer]:
    """Send all requests at the same moment, each on a connection that is already open, and return
    the answers when all are complete. Blocks. Raises LoadError and TimeoutError."""

    async def run() -> list[tuple[float, list[Piece]]]:
        connections = [await connect(port) for _ in bodies]
        try:
            asks = [c.ask(http_request(b)) for c, b in zip(connections, bodies, strict=True)]
            return await asyncio.gather(*asks)
        finally:
            for connection in connections:
                connection.close()

    started = time.perf_counter()
    raw = run_within(run(), timeout)
    # Seconds since the first of them was sent, as the bare loop counts them.
    start = min((sent for sent, _ in raw), default=started)
    return [parse_answer(start, pieces) for _, pieces in raw]


def ask_repeatedly(
    port: int, bodies: Sequence[bytes], seconds: float, timeout: float
) -> tuple[list[float], float]:
    """Each body again and again on a connection of its own, for ``seconds``: the latencies of all
    answers (seconds), and how long it really took. Blocks."""

    async def worker(connection: Connection, request: bytes, until: float) -> list[float]:
        latencies = []
        while time.perf_counter() < until:
            sent, pieces = await connection.ask(request)
            if b"[DONE]" not in b"".join(data for _, data in pieces):
                parse_answer(sent, pieces)  # says what is wrong
            latencies.append(pieces[-1][0] - sent)
        return latencies

    async def run() -> tuple[list[float], float]:
        connections = [await connect(port) for _ in bodies]
        start = time.perf_counter()
        try:
            workers = [
                worker(connection, http_request(body), start + seconds)
                for connection, body in zip(connections, bodies, strict=True)
            ]
            latencies = [value for one in await asyncio.gather(*workers) for value in one]
            return latencies, time.perf_counter() - start
        finally:
            for connection in connections:
                connection.close()

    return run_within(run(), timeout)


def ask_in_turn(
    port: int, sources: Sequence[Iterator[tuple[int, bytes]]], timeout: float
) -> list[Asked]:
    """One client for each source: it asks the next of its ``(source, body)`` when it has the
    answer to the one before. Clients that were given the same iterator use it up together. Every
    request has a connection of its own. Blocks; the answers by when their first text came."""

    async def client(requests: Iterator[tuple[int, bytes]]) -> list[tuple[int, float, list[Piece]]]:
        raw = []
        for source, body in requests:
            connection = await connect(port)
            try:
                raw.append((source, *await connection.ask(http_request(body))))
            finally:
                connection.close()
        return raw

    async def run() -> list[tuple[int, float, list[Piece]]]:
        return [one for raw in await asyncio.gather(*map(client, sources)) for one in raw]

    raw = run_within(run(), timeout)
    start = min(sent for _, sent, _ in raw)
    asked = [Asked(n, sent - start, parse_answer(sent, pieces)) for n, sent, pieces in raw]
    return sorted(asked, key=lambda one: one.first)


def run_within(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """The result of ``work`` on an event loop of its own. Raises TimeoutError."""

    async def limited() -> T:
        async with asyncio.timeout(timeout):
            return await work

    result: T = uvloop.run(limited())
    return result
