"""One event loop for the router, whoever calls: the caller's own, or one on a thread of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_LAST_WORDS = 0.1


class Bridge:
    """Runs coroutines on the router's loop from any thread, and from any other loop.

    ``bind`` ties it to the running loop (a server, or ``async with``) until ``release``; without
    that, the first use starts a loop on a daemon thread, which ``stop`` ends.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: set[AsyncGenerator[Any, None]] = set()  # handed out, and not used up

    def bind(self) -> None:
        """Use the running loop. Raises RuntimeError if another one is in use already."""
        with self._lock:
            running = asyncio.get_running_loop()
            if self._loop is not None and self._loop is not running:
                raise RuntimeError("the manager is in use on another event loop already")
            self._loop = running

    def release(self) -> None:
        """The end of :meth:`bind`; does nothing to a loop of ours."""
        with self._lock:
            if self._thread is None:
                self._loop = None

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

    @property
    def owns_thread(self) -> bool:
        """Whether the loop runs on a thread of ours."""
        return self._thread is not None

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end, blocking the calling thread. An interrupt (Ctrl-C) cancels it."""
        if self.here:
            coroutine.close()
            raise RuntimeError(
                "this call would block the event loop that the router runs on; "
                "use its async twin (achat instead of chat, and so on)"
            )
        return _wait(asyncio.run_coroutine_threadsafe(coroutine, self.ensure()))

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end without blocking the caller's loop."""
        if self.here:
            return await coroutine
        future = asyncio.run_coroutine_threadsafe(coroutine, self.ensure())
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
        loop = self.ensure()
        generator = make()
        self._open.add(generator)
        try:
            while True:
                try:
                    item = self.wait(_next(generator))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._open.discard(generator)
            if loop is self._loop:  # else it was stopped, and has closed the generator
                self.wait(generator.aclose())

    async def stream(self, make: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """The items of a generator that lives on the router's loop."""
        loop = self.ensure()
        generator = make()
        self._open.add(generator)
        try:
            while True:
                try:
                    item = await self.run(_next(generator))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._open.discard(generator)
            if loop is self._loop:
                await self.run(generator.aclose())

    def stop(self) -> None:
        """End the loop if it is ours; whatever still runs on it is cancelled first."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if thread is None or loop is None:
                return
            self._loop = self._thread = None
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(_end(list(self._open)), loop).result(timeout=5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def ensure(self) -> asyncio.AbstractEventLoop:
        """The router's loop, which is started if there is none yet."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="mlx-router loop", daemon=True
                )
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.run_until_complete(_end([]))  # what has come in at the last moment
    loop.close()


def _wait(future: Future[T]) -> T:
    try:
        return future.result()
    except (KeyboardInterrupt, SystemExit):
        future.cancel()
        raise


async def _next(generator: AsyncGenerator[T, None]) -> T:
    return await anext(generator)


async def _end(generators: list[AsyncGenerator[Any, None]]) -> None:
    """Cancel what runs, and close what was left open: from the outside in, since the loop would
    close those within others at the same time as these."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:  # those that have just heard of the end can still say so to their callers
        await asyncio.wait(tasks, timeout=_LAST_WORDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for generator in generators:
        with suppress(Exception):
            await generator.aclose()
    await asyncio.get_running_loop().shutdown_asyncgens()
