"""Transports for the HTTP library that openai uses, which call the API in this process.

httpx has one of its own for ASGI apps, but it hands out an answer when all of it is there, and runs
on the caller's event loop; here an answer is read chunk by chunk, and the app runs where the router
lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Scope

from mlx_router.client.exchange import Exchange, running_loop

if TYPE_CHECKING:
    import httpx2 as httpx

    from mlx_router.runtime.manager import MLXModelManager
else:
    from openai import DefaultHttpxClient

    # openai 3 sends its requests through httpx2, openai 2 through httpx, which is as good here.
    httpx = import_module(DefaultHttpxClient.__base__.__module__.partition(".")[0])


class Transport(httpx.BaseTransport):
    """For ``httpx.Client``: blocks the calling thread, of which there may be several."""

    def __init__(self, manager: MLXModelManager) -> None:
        self._manager = manager
        self._app = _app(manager)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises RuntimeError on the manager's own event loop, and what httpx raises for a server
        that is too slow (ReadTimeout) or breaks off (RemoteProtocolError)."""
        loop = self._manager.loop
        if running_loop() is loop:
            raise RuntimeError(
                "this call would block the event loop that the router runs on; use "
                "async_openai_client in place of openai_client, or ask on another thread"
            )
        inbox: SimpleQueue[Message | None] = SimpleQueue()
        exchange = Exchange(self._app, _scope(request), request.read(), loop, inbox.put)
        stream = _Stream(exchange, inbox, request)
        try:
            exchange.begin()
            return _response(stream.read(), stream, request)
        except BaseException:
            exchange.leave()
            raise


class AsyncTransport(httpx.AsyncBaseTransport):
    """For ``httpx.AsyncClient``, on the manager's event loop or another one."""

    def __init__(self, manager: MLXModelManager) -> None:
        self._manager = manager
        self._app = _app(manager)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises as :meth:`Transport.handle_request`, but RuntimeError only on a closed loop."""
        loop, here = self._manager.loop, asyncio.get_running_loop()
        inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        deliver: Callable[[Message | None], object] = inbox.put_nowait
        if here is not loop:

            def deliver(message: Message | None) -> object:
                return here.call_soon_threadsafe(inbox.put_nowait, message)

        exchange = Exchange(self._app, _scope(request), await request.aread(), loop, deliver)
        stream = _AsyncStream(exchange, inbox, request)
        try:
            exchange.begin()
            return _response(await stream.read(), stream, request)
        except BaseException:
            exchange.leave()
            raise


class _Stream(httpx.SyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(
        self, exchange: Exchange, inbox: SimpleQueue[Message | None], request: httpx.Request
    ) -> None:
        self._exchange = exchange
        self._inbox = inbox
        self._request = request
        self._patience = _patience(request)

    def read(self) -> Message:
        try:
            message = self._inbox.get(timeout=self._patience)
        except Empty:
            raise _too_slow(self._patience, self._request) from None
        if message is None:
            raise _broken_off(self._request)
        return message

    def __iter__(self) -> Iterator[bytes]:
        more = True
        while more:
            message = self.read()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    def close(self) -> None:
        self._exchange.leave()


class _AsyncStream(httpx.AsyncByteStream):
    """As :class:`_Stream`, for a reader with an event loop."""

    def __init__(
        self, exchange: Exchange, inbox: asyncio.Queue[Message | None], request: httpx.Request
    ) -> None:
        self._exchange = exchange
        self._inbox = inbox
        self._request = request
        self._patience = _patience(request)

    async def read(self) -> Message:
        try:
            async with asyncio.timeout(self._patience):
                message = await self._inbox.get()
        except TimeoutError:
            raise _too_slow(self._patience, self._request) from None
        if message is None:
            raise _broken_off(self._request)
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.read()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        self._exchange.leave()


def _app(manager: MLXModelManager) -> ASGIApp:
    from mlx_router.api.app import create_app

    return create_app(manager, manager.settings)


def _scope(request: httpx.Request) -> Scope:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.split(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": (url.host, url.port),
        "mlx_router.in_process": True,
    }


def _response(
    start: Message, stream: httpx.SyncByteStream | httpx.AsyncByteStream, request: httpx.Request
) -> httpx.Response:
    return httpx.Response(start["status"], headers=start["headers"], stream=stream, request=request)


def _patience(request: httpx.Request) -> float | None:
    """Seconds to wait for each piece of the answer; None: without end."""
    timeout: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeout.get("read")


def _too_slow(seconds: float | None, request: httpx.Request) -> httpx.ReadTimeout:
    return httpx.ReadTimeout(f"Nothing came for {seconds:g} seconds.", request=request)


def _broken_off(request: httpx.Request) -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError("The answer broke off before its end.", request=request)
