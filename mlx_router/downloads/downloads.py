"""Who waits for which download. Lives on one event loop; the work is done on threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from mlx_router.domain import Preparing
from mlx_router.downloads import hub
from mlx_router.downloads.job import Job, Rules, start
from mlx_router.downloads.selection import is_repository_name
from mlx_router.downloads.transfer import Stopped
from mlx_router.errors import ModelNotFound, QueueFull, RouterError, ShuttingDown, Unavailable

log = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
AT_ONCE = 2  # models whose weights are fetched at the same time
MAX_JOBS = 16  # under way or waiting for their turn
REMEMBER_SECONDS = 30.0  # that the Hub has no such model, or did not say
MAX_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class _Running:
    job: Job
    end: asyncio.Future[RouterError | None]  # all who wait raise a copy


@dataclass(frozen=True, slots=True)
class _Refused:
    until: float
    error: RouterError


class Downloads:
    """``rules`` says what holds for a model of that name, at the time of the request. ``refresh``
    looks for new models; it is called on a thread, before those who wait go on.

    A download goes on if all who asked for it have left: the next request will want it.
    """

    def __init__(self, rules: Callable[[str], Rules], refresh: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._rules = rules
        self._refresh = refresh
        self._running: dict[str, _Running] = {}
        self._refused: dict[str, _Refused] = {}  # the oldest first
        self._turns = threading.Semaphore(AT_ONCE)
        self._stopped = False

    async def fetch(
        self, name: str | None, missing: ModelNotFound
    ) -> AsyncGenerator[Preparing, None]:
        """Download the model that ``missing`` says is not here; every few seconds an event says how
        far it is. Requests for one model share one download.

        Raises ``missing`` if the name is none of a repository; ModelNotFound, PermissionDenied,
        ModelCorrupt, InsufficientMemory, InsufficientStorage, QueueFull, Unavailable, ShuttingDown.
        """
        if name is None or not is_repository_name(name):
            raise missing
        running = self._running.get(name.casefold())
        if running is None:
            rules = self._rules(name)
            if not rules.allowed:
                raise ModelNotFound(
                    f"{missing.message} To have the server fetch models from the Hugging Face Hub, "
                    "set defaults.allow_downloads to true in its config.",
                    param=missing.param,
                )
            refused = self._refused.get(name.casefold())
            if refused is not None and time.monotonic() < refused.until:
                raise _told(refused.error, missing)
            running = self._begin(name, rules)
        while not running.end.done():
            await asyncio.wait({running.end}, timeout=REPORT_SECONDS)
            if not running.end.done() and running.job.under_way:
                yield Preparing(running.job.text)
        error = running.end.result()
        if error is not None:
            raise _told(error, missing)

    def stop(self) -> None:
        """End all downloads, and those who wait for them get ShuttingDown. What is here is kept."""
        self._stopped = True
        for running in self._running.values():
            running.job.stop()
            if not running.end.done():
                running.end.set_result(_shutting_down())

    def _begin(self, name: str, rules: Rules) -> _Running:
        if self._stopped:
            raise _shutting_down()
        if len(self._running) >= MAX_JOBS:
            raise QueueFull(
                f"{name} is not downloaded: {MAX_JOBS} other models are being downloaded or wait "
                "for it. Ask again when some are done.",
                param="model",
                retry_after=60,
            )
        running = _Running(
            Job(name, rules, self._turns, self._reserved), self._loop.create_future()
        )
        thread = threading.Thread(
            target=contextvars.copy_context().run,  # the log names the request that began it
            args=(self._work, running),
            name="download",
            daemon=True,  # a read that hangs does not keep the process from ending
        )
        start(thread, name)
        self._running[name.casefold()] = running  # its end is told on this loop, so not before
        return running

    def _work(self, running: _Running) -> None:
        job = running.job
        error: RouterError | None = Unavailable(f"The download of {job.name} failed.")
        try:
            job.run()
            self._refresh()
            error = None
        except Stopped:
            error = _shutting_down()
        except Exception as fault:
            error = hub.explain(fault, job.name)
            log.warning("not downloaded: %s", error.message)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._ended, running, error)

    def _ended(self, running: _Running, error: RouterError | None) -> None:
        key = running.job.name.casefold()
        self._running.pop(key, None)
        self._refused.pop(key, None)
        if error is not None and _is_absence(error) and not running.job.listed:
            if len(self._refused) >= MAX_REMEMBERED:
                self._refused.pop(next(iter(self._refused)))
            self._refused[key] = _Refused(time.monotonic() + REMEMBER_SECONDS, error)
        if not running.end.done():
            running.end.set_result(error)

    def _reserved(self, job: Job) -> int:
        """Bytes that the others will still write. Called on a job's thread."""
        others = [running.job for running in list(self._running.values())]
        return sum(other.total - other.done for other in others if other is not job)


def _is_absence(error: RouterError) -> bool:
    """Whether the Hub does not have the model or cannot be asked: the name may be wrong."""
    return type(error) in (ModelNotFound, Unavailable)


def _told(error: RouterError, missing: ModelNotFound) -> RouterError:
    """The error for one request. If the name may be wrong, it says which ones there are here."""
    message = f"{missing.message} {error.message}" if _is_absence(error) else error.message
    return type(error)(message, param=error.param, code=error.code, retry_after=error.retry_after)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown(
        "The server is shutting down; the download goes on at the next request for this model.",
        retry_after=5,
    )
