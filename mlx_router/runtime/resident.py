"""A model in memory, or on its way in or out: its engine thread, its codec and its answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mlx_router.domain import ModelCard
from mlx_router.engine.base import Engine, LoadedModel, StepResult, TextCodec
from mlx_router.errors import EngineFailed, RouterError
from mlx_router.runtime.engine_thread import EngineThread, Report, Stepped

log = logging.getLogger(__name__)


class JobOwner(Protocol):
    """What a job's results are for: an answer, or the vectors of a request."""

    def on_result(self, result: StepResult) -> None: ...

    def fail(self, error: RouterError) -> None:
        """No more results will come, for this reason."""


@dataclass(slots=True, eq=False)
class Resident:
    """``codec`` and ``model`` are there once the load is through. ``failure``: why the load, or
    the engine, failed. ``ended``: why no new answer can begin. ``closed``: the memory is back.
    ``timer``: when its load, or its unload, is given up. ``reports`` are filled by the engine's
    thread and emptied by the loop, which is ``notified``."""

    card: ModelCard
    thread: EngineThread
    closed: asyncio.Future[None]
    load_started: float
    model: LoadedModel | None = None
    codec: TextCodec | None = None
    codec_task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    ready: bool = False
    failure: RouterError | None = None
    ended: RouterError | None = None
    answers: dict[int, JobOwner] = field(default_factory=dict)
    reports: deque[Report] = field(default_factory=deque)
    notified: bool = False

    def on_stepped(self, report: Stepped) -> None:
        answers = self.answers
        for result in report.results:
            ended = result.finish is not None or result.error is not None
            answer = answers.pop(result.job_id, None) if ended else answers.get(result.job_id)
            if answer is None:
                continue
            try:
                answer.on_result(result)
            except Exception:  # one answer's fault must not cost the others their tokens
                log.exception("an answer failed")
                answer.fail(EngineFailed("The answer could not be put together; see the log."))

    def fail_answers(self, error: RouterError) -> None:
        """Those under way, and those that are about to begin."""
        self.ended = error
        for answer in set(self.answers.values()):
            answer.fail(error)

    def drop(self, job_id: int) -> None:
        """Forget a job; its engine drops it before the next step."""
        if self.answers.pop(job_id, None) is not None:
            self.thread.abort(job_id)

    def stop_clock(self) -> None:
        """The load, or the unload, can no longer time out."""
        if self.timer is not None:
            self.timer.cancel()

    def stop_loading(self) -> None:
        """Neither the codec nor the clock matter any more."""
        self.stop_clock()
        if self.codec_task is not None and not self.codec_task.done():
            self.codec_task.cancel()


def make_resident(
    card: ModelCard,
    make_engine: Callable[[], Engine],
    take_reports: Callable[[Resident], None],
    *,
    warm_up_tokens: int,
    step_lock: threading.Lock | None,
) -> Resident:
    """A model that is about to be loaded by the thread that this starts. ``take_reports`` is called
    on the running loop when there are some. Raises RuntimeError if there can be no more threads."""
    loop = asyncio.get_running_loop()

    def report(message: Report) -> None:
        # Waking the loop costs more than all else; one that is awake already takes it along.
        # The loop is closed when the process ends while a load hangs: nobody listens then.
        resident.reports.append(message)
        if not resident.notified and not loop.is_closed():
            resident.notified = True
            loop.call_soon_threadsafe(take_reports, resident)

    thread = EngineThread(
        card.id, make_engine, report, warm_up_tokens=warm_up_tokens, step_lock=step_lock
    )
    resident = Resident(card, thread, loop.create_future(), load_started=time.monotonic())
    thread.start()
    return resident
