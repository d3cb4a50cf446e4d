"""Who has which model: carries out what the scheduler decides, and hands out leases.

All methods run on one event loop, which therefore owns the scheduler.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mlx_router.domain import ModelCard, ModelState
from mlx_router.engine.base import EngineFactory, LoadedModel
from mlx_router.errors import (
    EngineFailed,
    RequestTimeout,
    RouterError,
    ShuttingDown,
    Unavailable,
)
from mlx_router.runtime.codecs import Vocabulary
from mlx_router.runtime.resident import Resident
from mlx_router.runtime.residents import ResidentOptions, Residents
from mlx_router.scheduling import (
    Budget,
    DropCaches,
    Effect,
    Grant,
    Limits,
    Load,
    Reject,
    Scheduler,
    Unload,
    Wanted,
)
from mlx_router.scheduling.slot import Slot
from mlx_router.telemetry.activity import Activity

log = logging.getLogger(__name__)

_MAX_DEATHS = 3
_TICK_SLACK = 0.005

# After these a view of memory from before would be wrong.
_MEMORY_EVENTS = ("on_loaded", "on_load_failed", "on_unloaded", "on_died")


@dataclass(slots=True)
class _Ask:
    """Who wants a model: ``answers`` if it is to work at once, and not only to be there."""

    granted: asyncio.Future[Resident]
    answers: bool


class Fleet:
    """``budget`` gives the view of memory; with True, of this very moment. ``queued`` is told at
    every event of the models that wait to be loaded. ``observe`` and ``vocabulary``: see
    :class:`Residents`."""

    def __init__(
        self,
        limits: Limits,
        factory: EngineFactory,
        executor: Executor,
        budget: Callable[[bool], Budget],
        options: ResidentOptions,
        observe: Callable[[ModelCard, LoadedModel], None],
        queued: Callable[[list[ModelCard]], None],
        vocabulary: Callable[[ModelCard], Awaitable[Vocabulary]],
        activity: Activity,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._activity = activity
        self._scheduler = Scheduler(limits)
        self._residents = Residents(factory, executor, options, self, observe, vocabulary)
        self._budget = budget
        self._queued = queued
        self._cards: dict[str, ModelCard] = {}
        self._asks: dict[int, _Ask] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._deaths: dict[str, int] = {}
        self._ids = itertools.count(1)
        self._tick: asyncio.TimerHandle | None = None
        self._now = time.monotonic()  # of the latest event
        self._stopping = False

    # --- for the manager --------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, card: ModelCard, wanted: Wanted, timeout: float, *, answers: bool = True
    ) -> AsyncIterator[Resident]:
        """The model, loaded; it stays in memory as long as the lease is held. Waits at most
        ``timeout`` seconds for its turn (RequestTimeout); raises what the scheduler or the load
        says. ``answers``: the first answer warms the model up, else the load does."""
        self._check_service(card.id)
        request = next(self._ids)
        self._cards[card.id] = card
        ask = _Ask(self._loop.create_future(), answers)
        self._asks[request] = ask
        try:
            self._event("on_request", request, wanted)
            try:
                async with asyncio.timeout(timeout):
                    resident = await ask.granted
            except TimeoutError:
                raise RequestTimeout(
                    f"{card.id} was not there for the request within {timeout:.3g} seconds."
                ) from None
            yield resident
        finally:
            self._asks.pop(request, None)
            self._event("on_done", request)

    def _check_service(self, model: str) -> None:
        deaths = self._deaths.get(model, 0)
        if deaths >= _MAX_DEATHS:
            raise EngineFailed(
                f"{model} is out of service: its engine failed {deaths} times in a row. "
                "The log has the reason; restart the server to try again."
            )
        if self._residents.hangs(model):
            raise Unavailable(
                f"{model} is out of service: an earlier load or step of it hangs, and cannot be "
                "ended. The log has more; restart the server if it does not come back.",
                retry_after=60,
            )

    def configure(
        self,
        limits: Limits,
        wanted: Callable[[ModelCard], Wanted],
        options: ResidentOptions,
        factory: EngineFactory,
        cards: Mapping[str, ModelCard],
    ) -> None:
        """Other settings from now on. Models in memory stay as they were loaded; ``cards`` are the
        new ones of the others."""
        self._residents.configure(factory, options)
        held = {slot.model for slot in self.occupied()}
        for model in self._cards.keys() - held:
            self._cards[model] = cards.get(model, self._cards[model])
        self.review(limits, wanted)

    def review(self, limits: Limits, wanted: Callable[[ModelCard], Wanted]) -> None:
        """Act on what ``limits`` and ``wanted`` say now."""
        self._event("on_config", limits, lambda model: wanted(self._cards[model]))

    def new_id(self) -> int:
        return next(self._ids)

    def state(self, model: str) -> ModelState:
        slot = self._scheduler.slot(model)
        return ModelState.UNLOADED if slot is None else slot.state

    def resident(self, model: str) -> Resident | None:
        """The model, if it is in memory and through with loading."""
        return self._residents.ready(model)

    def slot(self, model: str) -> Slot | None:
        return self._scheduler.slot(model)

    def occupied(self) -> list[Slot]:
        return self._scheduler.occupied()

    def served(self, model: str) -> None:
        """An answer was completed: the model is in good health."""
        self._deaths.pop(model, None)

    async def unload(self, model: str) -> None:
        """Unload as soon as it is idle; returns when its memory is back."""
        slot = self._scheduler.slot(model)
        if slot is None or not slot.occupies:
            return
        done = self._unloads.setdefault(model, self._loop.create_future())
        self._event("on_unload_request", model)
        await asyncio.shield(done)

    def begin_shutdown(self) -> None:
        """Reject who waits; who has a lease may finish."""
        if not self._stopping:
            self._stopping = True
            self._event("on_shutdown")

    def fail_answers(self) -> None:
        """End all answers with an error."""
        error = ShuttingDown("The server is shutting down; the answer is cut off here.")
        self._residents.fail_answers(error)

    async def close(self) -> None:
        """Free all models. A load that hangs is left behind on its daemon thread."""
        self.begin_shutdown()
        self.fail_answers()
        if self._tick is not None:
            self._tick.cancel()
        await self._residents.close()

    def end_threads(self) -> None:
        """For a process that ends without :meth:`close`, when the loop no longer runs."""
        self._residents.end_threads()

    # --- what becomes of the models ---------------------------------------------------------

    def on_loaded(self, model: str, held_bytes: int) -> None:
        self._event("on_loaded", model, held_bytes)
        slot = self._scheduler.slot(model)
        assert slot is not None
        self._activity.tally(model).loading.observe(slot.load_seconds)

    def on_load_failed(self, model: str, error: RouterError) -> None:
        self._unload_is_done(model)
        self._activity.tally(model).load_failures += 1
        self._event("on_load_failed", model, error)

    def on_died(self, model: str) -> None:
        self._deaths[model] = self._deaths.get(model, 0) + 1
        self._activity.tally(model).deaths += 1
        log.error("the engine of %s died (%d in a row)", model, self._deaths[model])
        self._event("on_died", model)

    def on_unloaded(self, model: str) -> None:
        self._unload_is_done(model)
        self._event("on_unloaded", model)

    def _unload_is_done(self, model: str) -> None:
        done = self._unloads.pop(model, None)
        if done is not None and not done.done():
            done.set_result(None)

    # --- the scheduler's hands --------------------------------------------------------------

    def _event(self, name: str, *args: object) -> None:
        """Tell the scheduler, and carry out what it decides."""
        self._scheduler.on_memory(self._budget(name in _MEMORY_EVENTS))
        self._now = time.monotonic()
        effects: list[Effect] = getattr(self._scheduler, name)(*args, self._now)
        failures: dict[str, RouterError] = {}
        for effect in effects:
            if isinstance(effect, Grant):
                self._resolve(effect.request, self._residents[effect.model])
            elif isinstance(effect, Reject):
                self._resolve(effect.request, effect.error)
            elif isinstance(effect, Load):
                error = self._load(effect.model)
                if error is not None:
                    failures[effect.model] = error
            elif isinstance(effect, Unload):
                self._activity.tally(effect.model).unloads[effect.reason] += 1
                self._residents.unload(effect.model)
            else:
                assert isinstance(effect, DropCaches)
                self._residents.drop_caches()
        self._queued([self._cards[slot.model] for slot in self._scheduler.queue()])
        self._plan_tick()
        for model, error in failures.items():
            self.on_load_failed(model, error)

    def _load(self, model: str) -> RouterError | None:
        slot = self._scheduler.slot(model)
        waiting = slot.waiting if slot is not None else ()
        # An answer that begins as soon as the model is there warms it up as well.
        warm_up = not any(self._asks[request].answers for request in waiting)
        return self._residents.load(self._cards[model], warm_up=warm_up)

    def _resolve(self, request: int, outcome: Resident | RouterError) -> None:
        ask = self._asks.get(request)
        if ask is None or ask.granted.done():
            return
        if isinstance(outcome, Resident):
            ask.granted.set_result(outcome)
        else:
            ask.granted.set_exception(copy.copy(outcome))  # each gets a traceback of its own

    def _plan_tick(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        due = self._scheduler.next_tick(self._now)
        if due is not None:
            # A little later, so that it has passed by the time of the tick.
            delay = max(due - time.monotonic(), 0.0) + _TICK_SLACK
            self._tick = self._loop.call_later(delay, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        self._event("on_tick")
