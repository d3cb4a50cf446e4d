"""One request to the app and its answer, without a connection between them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Scope

log = logging.getLogger(__name__)


class Exchange:
    """Runs ``app`` for one request on ``loop``, the router's; used from any thread.

    ``deliver`` is called there with each message that the app sends, and with None after the last
    one. It must not block; a RuntimeError of it says that nobody reads any more.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        body: bytes,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Message | None], object],
    ) -> None:
        self._app = app
        self._scope = scope
        self._body: bytes | None = body
        self._loop = loop
        self._deliver = deliver
        self._gone = asyncio.Event()

    def begin(self) -> None:
        """Start the request. Raises RuntimeError if the loop is closed."""
        self._on_loop(self._start)

    def leave(self) -> None:
        """The client has gone: the app hears of it at once, and gives up what it does."""
        with suppress(RuntimeError):  # the loop is closed, and with it everything has ended
            self._on_loop(self._gone.set)

    def _on_loop(self, function: Callable[[], object]) -> None:
        if running_loop() is self._loop:
            function()
        else:
            self._loop.call_soon_threadsafe(function)

    def _start(self) -> None:
        task = self._loop.create_task(self._run())
        _running.add(task)
        task.add_done_callback(self._end)

    async def _run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        try:
            self._deliver(message)
        except RuntimeError:  # the reader's event loop is closed
            self._gone.set()

    def _end(self, task: asyncio.Task[None]) -> None:
        # A callback of the task, not the end of its code: one that is cancelled before it has
        # begun runs none of it.
        _running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request from this process failed", exc_info=error)
        with suppress(RuntimeError):
            self._deliver(None)


# An event loop holds its tasks weakly.
_running: set[asyncio.Task[None]] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that the caller runs on."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
