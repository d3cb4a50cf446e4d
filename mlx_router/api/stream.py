"""Writing a stream of events to a client: nothing per token but one encode and one send.

:class:`StreamingAnswer` is an ASGI response of its own. While one task pumps events to the client,
another watches for the client's leaving, which closes the events at once, whatever they wait for:
a queue, a load, a prefill or the next token. When nothing was written for a while, a comment keeps
the connection open. Comments also say what a request waits for before it is admitted, where it
takes long: a download.

The response starts with the first text, or with the first comment: an error before that is a
normal error with its own status; after it, an error event and the end of the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_router.api.body import ClientGone
from mlx_router.api.errors import as_router_error, error_response
from mlx_router.api.wire import started_headers
from mlx_router.domain import AnswerEvent, Completed, Delta, GenerationEvent, Preparing, Started
from mlx_router.errors import EngineFailed, RouterError

log = logging.getLogger(__name__)

# A reader that takes nothing for so long is dropped: its answer is held in memory meanwhile.
STALL_SECONDS = 30.0
# The second one tells nginx to pass on what comes, instead of collecting it.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

# In one write, of those that are there: a slow reader must be seen to make progress.
MOST_CHUNKS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Framing:
    """How objects are told apart: bytes around each, at the end, and in silence."""

    media_type: str
    before: bytes
    after: bytes
    done: bytes
    keep_alive: bytes

    def comment(self, text: str) -> bytes:
        """What a client skips, and a person who watches can read; silence where a format has no
        comments."""
        return self.keep_alive.replace(b"keep-alive", text.encode())


SSE = Framing(
    "text/event-stream; charset=utf-8", b"data: ", b"\n\n", b"data: [DONE]\n\n", b": keep-alive\n\n"
)
JSON_LINES = Framing("application/x-ndjson", b"", b"\n", b'{"done":true}\n', b"\n")


class Encoder(Protocol):
    """Turns events into bytes. Called on the event loop, so it must be quick.

    ``encode`` gets Started first; the bytes of Completed end the stream.
    """

    @property
    def framing(self) -> Framing: ...

    def encode(self, event: AnswerEvent) -> bytes: ...

    def error(self, error: RouterError) -> bytes:
        """An error after the stream has begun, and the stream's end."""


class StreamingAnswer(Response):
    """Streams ``events`` through ``encoder``. Closes ``events`` in every case."""

    def __init__(
        self,
        events: AsyncGenerator[GenerationEvent, None],
        encoder: Encoder,
        *,
        keep_alive_seconds: float,
        headers: Mapping[str, str] | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**(headers or {}), **STREAM_HEADERS})
        self._events = events
        self._encoder = encoder
        self._framing = encoder.framing
        self._interval = keep_alive_seconds
        self._stall = stall_seconds
        self._started: Started | None = None
        self._first = b""  # what the encoder made of Started, until the response begins
        self._open = False  # the response has begun
        self._ended = False  # its last bytes are written, or being written
        self._gathered: list[bytes] = []  # chunks to be written together with the next one
        self._writing = asyncio.Lock()
        self._sending = False  # a chunk is being written, without the lock
        self._since = 0.0  # when the last write began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._since = asyncio.get_running_loop().time()
        pump = asyncio.create_task(self._pump(scope, receive, send))
        watch = asyncio.create_task(client_leaves(receive))
        both = {pump, watch}
        try:
            while True:
                done, _ = await asyncio.wait(
                    both, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED
                )
                if pump in done:
                    return pump.result()
                if watch in done:
                    scope["mlx_router.client_left"] = not self._ended
                    return None
                if self._patience() == 0:
                    if self._busy:
                        raise TimeoutError
                    async with asyncio.timeout(self._stall):
                        await self._write(send, self._framing.keep_alive)
        except TimeoutError:
            log.warning("Dropped a client that read nothing for %g s", self._stall)
            drop_connection(scope)
        finally:
            watch.cancel()
            pump.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)

    @property
    def _busy(self) -> bool:
        return self._sending or self._writing.locked()

    def _patience(self) -> float | None:
        """Seconds until something must happen: a keep-alive, or an end to a write that hangs."""
        if self._ended and not self._busy:
            return None
        limit = self._stall if self._busy else self._interval
        # A write that begins now must be looked at in time, too: hence the stall limit as bound.
        left = self._since + limit - asyncio.get_running_loop().time()
        return min(max(0.0, left), self._stall)

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        events, encode, writing = self._events, self._encoder.encode, self._writing
        gathered = self._gathered
        clock = asyncio.get_running_loop().time
        last: bytes | None = None
        try:
            await self._until_started(send)
            # Preparing comes before Started only: it is not looked for again, token after token.
            async for event in cast(AsyncGenerator[AnswerEvent, None], events):
                chunk = encode(event)
                if isinstance(event, Delta) and event.more and len(gathered) < MOST_CHUNKS - 1:
                    gathered.append(chunk)
                    continue
                if gathered:
                    chunk = b"".join((*gathered, chunk))
                    gathered.clear()
                if isinstance(event, Completed):
                    last = chunk  # written below: the events must have ended, slot and all
                elif not self._open:
                    if isinstance(event, Started):
                        self._started, self._first = event, self._first + chunk
                    elif chunk:
                        await self._write(send, chunk)
                elif chunk:
                    if writing.locked():  # by a keep-alive. To take it for every chunk is too dear.
                        async with writing:
                            pass
                    self._since, self._sending = clock(), True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    self._sending = False
            if last is None:
                raise EngineFailed("The answer ended before it was complete.")
            await self._write(send, last, more=False)
        except Exception as error:
            await self._fail(as_router_error(error), scope, receive, send)
        finally:
            await events.aclose()

    async def _until_started(self, send: Send) -> None:
        """Read up to Started; comments say meanwhile what the request waits for."""
        async for event in self._events:
            if isinstance(event, Preparing):
                await self._write(send, self._framing.comment(event.text))
                continue
            assert isinstance(event, Started)
            self._started, self._first = event, self._encoder.encode(event)
            if self._open and self._first:
                await self._write(send, self._first)
            return

    async def _fail(self, error: RouterError, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._writing:
            self._ended = True
            self._since = asyncio.get_running_loop().time()
            if self._open:
                chunk = b"".join((*self._gathered, self._encoder.error(error)))
                await send({"type": "http.response.body", "body": chunk, "more_body": False})
            else:
                await error_response(error)(scope, receive, send)

    async def _write(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        """Write, and begin the response first if that has not happened yet."""
        async with self._writing:
            if self._ended:
                return
            self._ended = not more
            self._since = asyncio.get_running_loop().time()
            if not self._open:
                self._open = True
                await self._begin(send)
                chunk = self._first + chunk
            await send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _begin(self, send: Send) -> None:
        self.headers["content-type"] = self._framing.media_type
        self.headers.update(started_headers(self._started))
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )


async def client_leaves(receive: Receive) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; cancels it and raises ClientGone when the client leaves."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(client_leaves(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def offer_abort(scope: Scope, send: Send) -> None:
    """Let :func:`drop_connection` work. ``send`` must be the server's own: ASGI has no word for
    dropping a connection, but uvicorn's transport has."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    scope["mlx_router.abort"] = getattr(transport, "abort", None)


def drop_connection(scope: Scope) -> None:
    """Close the connection, where the server allows it. Closing it in the normal way would wait
    for a reader that does not read."""
    scope["mlx_router.client_left"] = True
    abort = scope.get("mlx_router.abort")
    if abort is not None:
        abort()
