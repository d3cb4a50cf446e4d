"""One event loop for the router, whoever calls: the caller's own, or one on a thread of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Bridge:
    """Runs coroutines on the router's loop from any thread, and from any other loop.

    ``bind`` ties it to the running loop (a server, or ``async with``); without that, the first use
    starts a loop on a daemon thread, which ``stop`` ends.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def bind(self) -> None:
        """Use the running loop. Raises RuntimeError if another one is in use already."""
        with self._lock:
            running = asyncio.get_running_loop()
            if self._loop is not None and self._loop is not running:
                raise RuntimeError("the manager is in use on another event loop already")
            self._loop = running

    @property
    def here(self) -> bool:
        """Whether the caller runs on the router's loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    @property
    def started(self) -> bool:
        return self._loop is not None

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end, blocking the calling thread."""
        if self.here:
            coroutine.close()
            raise RuntimeError(
                "this call would block the event loop that the router runs on; "
                "use its async twin (achat instead of chat, and so on)"
            )
        return asyncio.run_coroutine_threadsafe(coroutine, self._ensure()).result()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end without blocking the caller's loop."""
        if self.here:
            return await coroutine
        future = asyncio.run_coroutine_threadsafe(coroutine, self._ensure())
        return await asyncio.wrap_future(future)

    def call(self, function: Callable[[], T]) -> T:
        """Call a quick function where the router's state may be looked at."""
        if self.here or not self.started:
            return function()

        async def on_loop() -> T:
            return function()

        return self.wait(on_loop())

    def iterate(self, make: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """As :meth:`stream`, for a caller without a loop."""

        async def start() -> AsyncGenerator[T, None]:
            return make()

        generator = self.wait(start())
        try:
            while True:
                try:
                    item = self.wait(_next(generator))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.wait(generator.aclose())

    async def stream(self, make: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """The items of a generator that lives on the router's loop."""

        async def start() -> AsyncGenerator[T, None]:
            return make()

        generator = await self.run(start())
        try:
            while True:
                try:
                    item = await self.run(_next(generator))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await self.run(generator.aclose())

    @property
    def owns_thread(self) -> bool:
        """Whether the loop runs on a thread of ours."""
        return self._thread is not None

    def stop(self) -> None:
        """End the loop if it is ours."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
        self._loop = None

    def _ensure(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="mlx-router loop", daemon=True
                )
                self._thread.start()
            return self._loop


async def _next(generator: AsyncGenerator[T, None]) -> T:
    return await anext(generator)
