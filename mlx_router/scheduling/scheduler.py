"""The scheduler: requests for models in, loads, unloads, grants and rejections out.

One task owns it, so it has no lock. Time is given with each event, in seconds on any monotonic
clock. Rules:

- A model in use is never unloaded; one load serves all who wait for it.
- At most ``cache_size`` models are loaded, loading or unloading at once, and a load starts only
  when the budget has room for it. To make room the least recently used idle models go first;
  pinned models stay.
- Each model serves at most ``max_active`` requests at once; others wait, at most ``max_queue``.
- A request whose model cannot come in because all places are busy waits ``patience`` seconds; then
  the least recently used of the busy models takes no newcomers until it is idle and can go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlx_router.errors import InsufficientMemory, QueueFull, RouterError, ShuttingDown
from mlx_router.scheduling.effects import Effect, Grant, Load, Reject, Unload
from mlx_router.scheduling.slot import Phase, Slot


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model as a request wants it."""

    model: str
    need_bytes: int
    pinned: bool = False


class Budget(Protocol):
    """Memory as it was just now."""

    def refusal(self, need_bytes: int, reclaimable_bytes: int) -> str | None:
        """Why a load of ``need_bytes`` does not fit even after ``reclaimable_bytes`` are freed;
        None if it fits."""


class Scheduler:
    """See the module's docstring. Every ``on_…`` method returns the effects of the event."""

    def __init__(
        self,
        *,
        cache_size: int,
        max_active: int = 32,
        max_queue: int = 64,
        patience: float = 2.0,
    ) -> None:
        self._cache_size = cache_size
        self._max_active = max_active
        self._max_queue = max_queue
        self._patience = patience
        self._slots: dict[str, Slot] = {}
        self._models: dict[int, str] = {}
        self._budget: Budget | None = None
        self._stopping = False

    # --- events -----------------------------------------------------------------------------

    def on_memory(self, budget: Budget) -> None:
        """The latest view of memory; used by the events that follow."""
        self._budget = budget

    def on_request(self, request: int, wanted: Wanted, now: float) -> list[Effect]:
        if self._stopping:
            return [Reject(request, _shutting_down())]
        slot = self._slots.setdefault(wanted.model, Slot(wanted.model, wanted.need_bytes))
        slot.pinned, slot.need_bytes = wanted.pinned, wanted.need_bytes
        if len(slot.waiting) >= self._max_queue:
            return [Reject(request, _queue_full(slot))]
        slot.waiting[request] = now
        self._models[request] = slot.model
        return self._plan(now)

    def on_cancel(self, request: int, now: float) -> list[Effect]:
        """The request no longer wants its model, whether it waits or was granted."""
        slot = self._forget(request, now)
        return self._plan(now) if slot is not None else []

    on_done = on_cancel

    def on_loaded(self, model: str, held_bytes: int, now: float) -> list[Effect]:
        """``held_bytes``: what unloading it would give back."""
        slot = self._slots[model]
        slot.phase, slot.held_bytes, slot.last_used = Phase.READY, held_bytes, now
        return self._plan(now)

    def on_load_failed(self, model: str, error: RouterError, now: float) -> list[Effect]:
        slot = self._slots[model]
        slot.leave()
        return [*self._reject_all(slot, error), *self._plan(now)]

    def on_unloaded(self, model: str, now: float) -> list[Effect]:
        self._slots[model].leave()
        return self._plan(now)

    def on_died(self, model: str, now: float) -> list[Effect]:
        """The model's engine is of no use any more, and what ran on it is lost. Its memory is back
        with on_unloaded; then who waits gets a new load."""
        slot = self._slots[model]
        for request in slot.active:
            del self._models[request]
        slot.active.clear()
        slot.phase = Phase.UNLOADING
        return self._plan(now)

    def on_unload_request(self, model: str, now: float) -> list[Effect]:
        """Unload as soon as it is idle; newcomers wait for the next load."""
        slot = self._slots.get(model)
        if slot is None or slot.phase not in (Phase.LOADING, Phase.READY):
            return []
        slot.closing = True
        return self._plan(now)

    def on_tick(self, now: float) -> list[Effect]:
        return self._plan(now)

    def on_shutdown(self, now: float) -> list[Effect]:
        """Reject all who wait and all who come; those who were granted may finish."""
        self._stopping = True
        return [
            effect
            for slot in list(self._slots.values())
            for effect in self._reject_all(slot, _shutting_down())
        ]

    # --- views ------------------------------------------------------------------------------

    def slot(self, model: str) -> Slot | None:
        """The model's slot, to look at; None if nobody ever wanted it."""
        return self._slots.get(model)

    def occupied(self) -> list[Slot]:
        """Slots of the models that are loaded, loading or unloading."""
        return [slot for slot in self._slots.values() if slot.occupies]

    def next_tick(self) -> float | None:
        """When on_tick could change something: a waiting request loses its patience."""
        waits = [
            slot.oldest_wait + self._patience for slot in self._slots.values() if slot.wants_load
        ]
        return min(waits, default=None)

    # --- decisions --------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for slot in self._slots.values():
            effects += self._grants(slot, now)
        if self._stopping:
            return effects
        for slot in self._slots.values():
            if slot.closing and slot.phase is Phase.READY and not slot.active:
                effects.append(self._unload(slot))
        wanting = [slot for slot in self._slots.values() if slot.wants_load]
        for slot in sorted(wanting, key=lambda wanted: wanted.oldest_wait):
            outcome = self._bring_in(slot, now)
            effects += outcome
            if not outcome:
                break  # the one who came first gets the next room; others do not overtake it
        if not any(slot.wants_load for slot in self._slots.values()):
            for slot in self._slots.values():  # nobody is left to yield to
                slot.yielding = False
                effects += self._grants(slot, now)
        return effects

    def _grants(self, slot: Slot, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while slot.admits and slot.waiting and len(slot.active) < self._max_active:
            request, _ = slot.waiting.popitem(last=False)
            slot.active.add(request)
            slot.last_used = now
            effects.append(Grant(request, slot.model))
        return effects

    def _bring_in(self, slot: Slot, now: float) -> list[Effect]:
        """Load ``slot``, or unload what is in its way, or reject its requests; nothing: wait."""
        if self._fits(slot, []):
            slot.phase = Phase.LOADING
            return [Load(slot.model)]
        leaving = [s for s in self._slots.values() if s.phase is Phase.UNLOADING]
        idle = [s for s in self._slots.values() if s.idle and not s.pinned]
        idle.sort(key=lambda s: s.last_used)
        victims: list[Slot] = []
        while not self._fits(slot, leaving + victims):
            if not idle:
                return self._wait_or_reject(slot, leaving + victims, now)
            victims.append(idle.pop(0))
        return [self._unload(victim) for victim in victims]

    def _wait_or_reject(self, slot: Slot, freed: list[Slot], now: float) -> list[Effect]:
        """Unloading all idle models is not enough. Is it once the busy ones are done?"""
        loading = [s for s in self._slots.values() if s.phase is Phase.LOADING and not s.pinned]
        busy = [
            s
            for s in self._slots.values()
            if s.phase is Phase.READY and not s.pinned and s not in freed
        ]
        if not self._fits(slot, [*freed, *busy, *loading]):
            refusal = self._refusal(slot, freed)
            pinned = f"All places are taken by pinned models, so {slot.model} cannot be loaded."
            return self._reject_all(slot, InsufficientMemory(refusal or pinned, retry_after=30))
        out_of_patience = now - slot.oldest_wait >= self._patience
        if busy and out_of_patience and not any(s.yielding for s in busy):
            min(busy, key=lambda s: s.last_used).yielding = True
        return []

    def _fits(self, slot: Slot, freed: list[Slot]) -> bool:
        taken = sum(s.occupies for s in self._slots.values()) - len(freed)
        return taken < self._cache_size and self._refusal(slot, freed) is None

    def _refusal(self, slot: Slot, freed: list[Slot]) -> str | None:
        assert self._budget is not None, "on_memory() comes before the first request"
        # What is being loaded may not show in the free memory yet; counted as if none of it did.
        coming = sum(
            s.need_bytes
            for s in self._slots.values()
            if s.phase is Phase.LOADING and s not in freed
        )
        return self._budget.refusal(slot.need_bytes + coming, sum(s.gives_back for s in freed))

    def _unload(self, slot: Slot) -> Effect:
        slot.phase = Phase.UNLOADING
        return Unload(slot.model)

    def _reject_all(self, slot: Slot, error: RouterError) -> list[Effect]:
        rejected: list[Effect] = [Reject(request, error) for request in slot.waiting]
        for request in slot.waiting:
            del self._models[request]
        slot.waiting.clear()
        return rejected

    def _forget(self, request: int, now: float) -> Slot | None:
        model = self._models.pop(request, None)
        if model is None:
            return None
        slot = self._slots[model]
        slot.waiting.pop(request, None)
        if request in slot.active:
            slot.active.remove(request)
            slot.last_used = now
        return slot


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is shutting down; try again in a moment.", retry_after=5)


def _queue_full(slot: Slot) -> QueueFull:
    return QueueFull(
        f"{len(slot.waiting)} requests wait for {slot.model} already; try again in a moment.",
        retry_after=2,
    )
