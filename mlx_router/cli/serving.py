"""Runs the app under uvicorn, and ends it well.

The first SIGTERM or SIGINT: new requests get a 503, answers under way have the grace time, then
the manager ends what is left and frees the models; exit code 0. A second signal ends the process
at once. The port stays open while answers run: a client is told "shutting down", not refused.
SIGHUP reads the config again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from mlx_router.cli.address import BACKLOG
from mlx_router.cli.parser import EXIT_FAILURE, EXIT_OK
from mlx_router.errors import RouterError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
# Past the grace time: for the error event and the [DONE] of answers that were cut off.
LAST_WORDS_SECONDS = 3
# Nobody waits for anything any more: memory that is not free by then goes with the process.
# A load cannot be interrupted, and must not hold up the exit.
FREEING_SECONDS = 1.5
HUNG_SECONDS = 15.0


class Manager(Protocol):
    """What the server needs of MLXModelManager."""

    def begin_shutdown(self) -> None:
        """From now on requests are refused; those that wait for a model as well."""

    async def areload(self) -> object:
        """Read the config again. Raises ConfigError, and then nothing has changed."""

    async def aclose(self) -> None:
        """End the answers that are left and free the models. May be called twice."""


class Server(uvicorn.Server):
    """Uvicorn with the shutdown described above, and without raising the signal again."""

    def __init__(
        self,
        config: uvicorn.Config,
        manager: Manager,
        grace_seconds: float,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.stopping = False
        self._manager = manager
        self._grace_seconds = grace_seconds
        self._on_ready = on_ready
        self._deadline: threading.Timer | None = None
        self._draining: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._terminal = _has_terminal()
        self._listeners: list[socket.socket] = []

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        await super().startup(sockets)
        if self.started and not self.stopping:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopping:
            os._exit(128 + sig)
        self.stopping = True
        self._leave_after(self._grace_seconds + HUNG_SECONDS, EXIT_FAILURE)
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def _on_hangup(self, sig: int, frame: FrameType | None) -> None:
        if self._terminal and not _has_terminal():  # its window was closed
            self.handle_exit(sig, frame)
        elif not self.stopping:
            self._loop.call_soon_threadsafe(self._start_reload)

    def _start_reload(self) -> None:
        self._reloads.add(task := self._loop.create_task(self._reload()))
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        try:
            await self._manager.areload()
        except RouterError as error:
            for line in error.message.splitlines():
                logger.error("SIGHUP: the config stays as it was: %s", line)
        except Exception:
            logger.exception("SIGHUP: a fault while reading the config; it stays as it was")

    def _start_draining(self, name: str) -> None:
        running = len(self.server_state.tasks)
        logger.info(
            "%s: shutting down; requests under way: %d, with %g s to finish (again: at once)",
            name,
            running,
            self._grace_seconds,
        )
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            self._manager.begin_shutdown()
            end = self._loop.time() + self._grace_seconds
            while self.server_state.tasks and self._loop.time() < end:  # noqa: ASYNC110  a plain set
                await asyncio.sleep(LOOK_SECONDS)
            left = len(self.server_state.tasks)
            if left:
                logger.warning("the grace time is over; requests cut off: %d", left)
            self._leave_after(
                LAST_WORDS_SECONDS + FREEING_SECONDS if left else FREEING_SECONDS, EXIT_OK
            )
            self._stop_accepting()
            await asyncio.sleep(0)  # the loop closes the port in its next round
            await self._manager.aclose()
        except Exception:
            logger.exception("a fault while shutting down; leaving all the same")
        finally:
            self.should_exit = True

    def _stop_accepting(self) -> None:
        """No request may reach the manager any more: closed, it would start anew."""
        for server in getattr(self, "servers", []):
            server.close()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # at once if idle, else after its answer

    def _leave_after(self, seconds: float, code: int) -> None:
        """End the process then, whatever hangs: a thread that loads, an executor, the loop."""

        def leave() -> None:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code)

        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = threading.Timer(seconds, leave)
        self._deadline.daemon = True  # an exit that works does not wait for it
        self._deadline.start()


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal, and its window is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def serve_app(
    app: Any,
    manager: Manager,
    listener: socket.socket,
    *,
    grace_seconds: float,
    on_ready: Callable[[], None],
) -> int:
    """Serve the ASGI app until a signal, and return the exit code.

    For the main thread of a process that is about to end: after a signal the process exits
    within a few seconds, with code 0, even where the caller goes on.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients pool connections: no race on reuse
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,  # the grace time is over by then
    )
    server = Server(config, manager, grace_seconds, on_ready)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's word for a lifespan that failed to start
        return EXIT_OK if server.stopping else EXIT_FAILURE
    return EXIT_OK
