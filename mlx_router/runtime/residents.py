"""The models in memory: loads and unloads them, and takes what their engines report.

Lives on one event loop. What cannot be ended, a load or a step that hangs, is left to itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mlx_router.domain import GIB, ModelCard
from mlx_router.engine.base import EngineFactory, LoadedModel
from mlx_router.errors import (
    EngineFailed,
    ModelLoadFailed,
    RequestTimeout,
    RouterError,
    ShuttingDown,
)
from mlx_router.runtime.codecs import Vocabulary
from mlx_router.runtime.engine_thread import Closed, Died, Loaded, LoadFailed, Report, Stepped
from mlx_router.runtime.resident import Resident, make_resident

log = logging.getLogger(__name__)

_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ResidentOptions:
    """Timeouts in seconds. ``serialize_steps``: one model computes at a time, for good."""

    warm_up_tokens: int = 5
    load_timeout: float = 600.0
    unload_timeout: float = 60.0
    serialize_steps: bool = False


class Listener(Protocol):
    """Who is told what becomes of a model."""

    def on_loaded(self, model: str, held_bytes: int) -> None: ...

    def on_load_failed(self, model: str, error: RouterError) -> None: ...

    def on_died(self, model: str) -> None:
        """Its engine is of no use any more; on_unloaded follows."""

    def on_unloaded(self, model: str) -> None: ...


class Residents:
    """``observe`` is told of every model that was loaded, on a thread of ``executor``.
    ``vocabulary`` reads a model's, or still knows it: to read a large one stops all streams for up
    to a second, which is not to happen at every swap."""

    def __init__(
        self,
        factory: EngineFactory,
        executor: Executor,
        options: ResidentOptions,
        listener: Listener,
        observe: Callable[[ModelCard, LoadedModel], None],
        vocabulary: Callable[[ModelCard], Awaitable[Vocabulary]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._executor = executor
        self._options = options
        self._listener = listener
        self._observe = observe
        self._vocabulary = vocabulary
        self._step_lock = threading.Lock() if options.serialize_steps else None
        self._current: dict[str, Resident] = {}
        self._abandoned: set[Resident] = set()
        self._closing = False

    def configure(self, factory: EngineFactory, options: ResidentOptions) -> None:
        """For the loads to come."""
        self._factory, self._options = factory, options

    def __getitem__(self, model: str) -> Resident:
        """A model that is in memory, or on its way in or out. Raises KeyError."""
        return self._current[model]

    def ready(self, model: str) -> Resident | None:
        """The model, if it is in memory and through with loading."""
        resident = self._current.get(model)
        return resident if resident is not None and resident.ready else None

    def hangs(self, model: str) -> bool:
        """Whether an earlier load or step of it does not come to an end."""
        return any(resident.card.id == model for resident in self._abandoned)

    def drop_caches(self) -> None:
        for resident in self._current.values():
            resident.thread.drop_caches()

    def fail_answers(self, error: RouterError) -> None:
        for resident in self._current.values():
            resident.fail_answers(error)

    async def close(self) -> None:
        """Free all models. What hangs is left behind on its daemon thread."""
        self._closing = True
        residents = [*self._current.values(), *self._abandoned]
        for resident in residents:
            resident.stop_loading()
            resident.thread.close()
        if residents:
            await asyncio.wait([r.closed for r in residents], timeout=_JOIN_SECONDS)
        for resident in residents:
            if resident.closed.done():
                resident.thread.join(_JOIN_SECONDS)

    def end_threads(self) -> None:
        """For a process that ends without :meth:`close`, when the loop no longer runs."""
        for resident in [*self._current.values(), *self._abandoned]:
            resident.thread.close()
            resident.thread.join(_JOIN_SECONDS)

    # --- in and out -------------------------------------------------------------------------

    def load(self, card: ModelCard, *, warm_up: bool) -> RouterError | None:
        """Begin to load; returns why it cannot even begin."""
        log.info("loading %s (%.2f GB)", card.id, card.weight_bytes / GIB)
        try:
            resident = make_resident(
                card,
                partial(self._factory.engine, card),
                self._take_reports,
                warm_up_tokens=self._options.warm_up_tokens if warm_up else 0,
                step_lock=self._step_lock,
            )
        except Exception as error:  # no more threads
            log.exception("the load of %s could not begin", card.id)
            return _load_failed(card, error)
        self._current[card.id] = resident
        resident.codec_task = self._loop.create_task(self._load_codec(resident))
        resident.timer = self._loop.call_later(
            self._options.load_timeout, self._on_load_timeout, resident
        )
        return None

    def unload(self, model: str) -> None:
        resident = self._current[model]
        resident.thread.close()
        resident.timer = self._loop.call_later(
            self._options.unload_timeout, self._on_unload_timeout, resident
        )

    async def _load_codec(self, resident: Resident) -> None:
        try:
            resident.codec = (await self._vocabulary(resident.card)).codec
        except Exception as error:
            if not isinstance(error, RouterError):
                log.exception("the tokenizer of %s could not be loaded", resident.card.id)
                error = _load_failed(resident.card, error)
            resident.failure = error
            resident.thread.close()
        else:
            self._ready_if_complete(resident)

    def _ready_if_complete(self, resident: Resident) -> None:
        if resident.model is None or resident.codec is None or resident.failure is not None:
            return
        resident.ready = True
        resident.stop_clock()
        log.info(
            "loaded %s in %.2f s, %.2f GB%s",
            resident.card.id,
            time.monotonic() - resident.load_started,
            resident.model.memory_bytes / GIB,
            "" if resident.model.batches else ", one request at a time",
        )
        if not self._closing:  # else the executor may be closed already
            self._executor.submit(self._observe, resident.card, resident.model)
        self._listener.on_loaded(resident.card.id, resident.model.memory_bytes)

    def _on_load_timeout(self, resident: Resident) -> None:
        seconds = self._options.load_timeout
        log.error("loading %s took more than %.0f s; given up", resident.card.id, seconds)
        error = RequestTimeout(f"Loading {resident.card.id} took more than {seconds:.3g} seconds.")
        resident.stop_loading()
        resident.thread.close()
        self._abandon(resident, error)
        self._listener.on_load_failed(resident.card.id, error)

    def _on_unload_timeout(self, resident: Resident) -> None:
        """Its engine hangs in a step, or in freeing. Others are not to wait for it."""
        log.error("unloading %s hangs; its place is given to others", resident.card.id)
        self._abandon(resident, EngineFailed("The model's engine hangs; the log has more."))
        self._listener.on_unloaded(resident.card.id)

    def _abandon(self, resident: Resident, error: RouterError) -> None:
        """The thread cannot be stopped: it is left to itself, and frees the model if it ever gets
        that far."""
        resident.failure = error
        resident.fail_answers(error)
        self._abandoned.add(resident)
        del self._current[resident.card.id]

    # --- reports ----------------------------------------------------------------------------

    def _take_reports(self, resident: Resident) -> None:
        resident.notified = False  # first: what is reported from now on wakes the loop again
        # Only those that are there: a fast engine always has more, and others wait for the loop.
        for _ in range(len(resident.reports)):
            self._on_report(resident, resident.reports.popleft())

    def _on_report(self, resident: Resident, report: Report) -> None:
        if isinstance(report, Stepped):
            resident.on_stepped(report)
        elif isinstance(report, Loaded):
            resident.model = report.model
            self._ready_if_complete(resident)
        elif isinstance(report, LoadFailed):
            resident.failure = resident.failure or report.error
        elif isinstance(report, Died):
            self._on_died(resident, report.error)
        else:
            assert isinstance(report, Closed)
            self._on_closed(resident)

    def _on_died(self, resident: Resident, error: RouterError) -> None:
        if resident in self._abandoned:
            return
        resident.failure = error
        resident.fail_answers(error)
        if resident.ready:  # else it is a load that failed
            self.unload(resident.card.id)
            self._listener.on_died(resident.card.id)

    def _on_closed(self, resident: Resident) -> None:
        model = resident.card.id
        resident.stop_loading()
        if not resident.closed.done():
            resident.closed.set_result(None)
        if resident in self._abandoned:
            self._abandoned.discard(resident)
            return
        del self._current[model]
        if resident.ready:
            log.info("unloaded %s", model)
            self._listener.on_unloaded(model)
        else:
            error = resident.failure or ShuttingDown("The load was interrupted.")
            log.warning("loading %s failed: %s", model, error)
            self._listener.on_load_failed(model, error)


def _load_failed(card: ModelCard, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"Loading {card.id} failed ({type(error).__name__}); the log has the details."
    )
