"""The scheduler: requests for models in, loads, unloads, grants and rejections out.

One task owns it, so it has no lock. Time is given with each event, in seconds on any monotonic
clock. Rules:

- A model in use is never unloaded; one load serves all who wait for it.
- At most ``cache_size`` models are loaded, loading or unloading at once, of a group at most its
  limit, and a load starts only when the budget has room for it. To make room the least recently
  used idle models go first; pinned models stay, and nothing goes unless it is enough.
- A model that others wait for keeps its place for a turn: three times as long as its load took, and
  for three answers, unless they are long. Then it takes no newcomers until it is idle and can go.
  If its requests follow one another at once, it is kept for the next one also when it is idle for a
  moment (a quarter of that load). So two models that are wanted alternately do not swap on every
  request, and nobody waits longer than the others' turns.
- Models get their turns in the order in which they queued up; none overtakes another, unless it
  takes nothing from it.
- Each model serves at most ``max_active`` requests at once; others wait, at most ``max_queue``.
- An idle model goes after its ``ttl_seconds``, and when memory is short: see :meth:`_relieve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mlx_router.domain import GIB, Pressure
from mlx_router.errors import InsufficientMemory, QueueFull, RouterError, ShuttingDown
from mlx_router.scheduling.effects import DropCaches, Effect, Grant, Load, Reason, Reject, Unload
from mlx_router.scheduling.slot import Phase, Slot, Wanted

# How often memory is looked at while models are loaded.
PRESSURE_SECONDS = 2.0
# Under high pressure idle models go, the most recently used one excepted. That one goes only if the
# system itself is critically short, and later: a large model makes pressure critical by being
# loaded, a chat has pauses, and loading it again after each of them would help nobody.
SHED_SECONDS = 10.0
SHED_LAST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """``cache_size`` models at once; for each ``max_active`` requests served, ``max_queue``
    waiting."""

    cache_size: int = 2
    max_active: int = 32
    max_queue: int = 64


class Budget(Protocol):
    """Memory as it was just now."""

    @property
    def pressure(self) -> Pressure:
        """How short memory is."""

    @property
    def system_pressure(self) -> Pressure:
        """The part of it that does not come from what the models take: swap, the kernel's word."""

    def refusal(self, need_bytes: int, reclaimable_bytes: int) -> str | None:
        """Why a load of ``need_bytes`` does not fit even after ``reclaimable_bytes`` are freed;
        None if it fits."""


class Scheduler:
    """See the module's docstring. Every ``on_…`` method returns the effects of the event."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots: dict[str, Slot] = {}
        self._models: dict[int, str] = {}
        self._budget: Budget | None = None
        self._caches_dropped = float("-inf")
        self._stopping = False

    # --- events -----------------------------------------------------------------------------

    def on_memory(self, budget: Budget) -> None:
        """The latest view of memory; used by the events that follow."""
        self._budget = budget

    def on_config(
        self, limits: Limits, wanted: Callable[[str], Wanted], now: float
    ) -> list[Effect]:
        """Other limits from now on, and what ``wanted`` says of each model. Models that are too
        many now go as they become idle."""
        self._limits = limits
        for slot in self._slots.values():
            slot.wanted = wanted(slot.model)
        return self._plan(now)

    def on_request(self, request: int, wanted: Wanted, now: float) -> list[Effect]:
        if self._stopping:
            return [Reject(request, _shutting_down())]
        slot = self._slots.setdefault(wanted.model, Slot(wanted))
        slot.wanted = wanted
        if len(slot.waiting) >= self._limits.max_queue:
            return [Reject(request, _queue_full(slot))]
        slot.add(request, now)
        self._models[request] = slot.model
        return self._plan(now)

    def on_done(self, request: int, now: float) -> list[Effect]:
        """The request no longer wants its model, whether it waits or was granted. Nothing happens
        if it was rejected, or is not known."""
        model = self._models.pop(request, None)
        if model is None:
            return []
        self._slots[model].remove(request, now)
        return self._plan(now)

    def on_loaded(self, model: str, held_bytes: int, now: float) -> list[Effect]:
        """``held_bytes``: what unloading it would give back."""
        self._slots[model].become_ready(held_bytes, now)
        return self._plan(now)

    def on_load_failed(self, model: str, error: RouterError, now: float) -> list[Effect]:
        slot = self._slots[model]
        slot.leave(now)
        return [*self._reject_all(slot, error), *self._plan(now)]

    def on_unloaded(self, model: str, now: float) -> list[Effect]:
        self._slots[model].leave(now)
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

    def queue(self) -> list[Slot]:
        """Slots of the models that wait to be loaded, the next one first."""
        wanting = [slot for slot in self._slots.values() if slot.wants_load]
        return sorted(wanting, key=lambda slot: slot.queued_since)

    def next_tick(self, now: float) -> float | None:
        """When on_tick may have something to do; None: not before the next event."""
        ready = [slot for slot in self._slots.values() if slot.phase is Phase.READY]
        if not ready or self._stopping:
            return None
        times = [now + PRESSURE_SECONDS]
        times += [s.expires_at for s in ready if s.idle and s.expires_at is not None]
        if any(slot.wants_load for slot in self._slots.values()):
            times += [slot.may_go_at if slot.idle else slot.turn_ends for slot in ready]
        return min((time for time in times if time > now), default=None)

    # --- decisions --------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for slot in self._slots.values():
            slot.yielding = False  # decided anew below: who it was for may be gone
        if not self._stopping:
            effects += [*self._retire(now), *self._relieve(now)]
            queue = self.queue()
            for position, slot in enumerate(queue, start=1):
                effects += self._bring_in(slot, now)
                if slot.wants_load:  # the one who came first gets the next room
                    if queue[position:]:
                        effects += self._pass_by(slot, queue[position:], now)
                    break
        for slot in self._slots.values():
            effects += self._grants(slot, now)
        return effects

    def _grants(self, slot: Slot, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while slot.admits and slot.waiting and len(slot.active) < self._limits.max_active:
            request, _ = slot.waiting.popitem(last=False)
            slot.active.add(request)
            slot.last_used = now
            effects.append(Grant(request, slot.model))
        return effects

    def _retire(self, now: float) -> list[Effect]:
        """Unload what was asked to go, what has been idle for too long, and, after a change of the
        limits, what is too much."""
        effects: list[Effect] = []
        for slot in self._least_recent_first():
            if slot.closing and not slot.active:
                effects.append(self._unload(slot, Reason.ASKED))
            elif slot.idle and not slot.pinned:
                if slot.expires_at is not None and now >= slot.expires_at:
                    effects.append(self._unload(slot, Reason.IDLE))
                elif self._surplus(slot):
                    effects.append(self._unload(slot, Reason.LIMITS))
        return effects

    def _relieve(self, now: float) -> list[Effect]:
        """Memory is short: drop caches, unload the least recently used idle model, then look again.
        The most recently used one stays unless the whole system is critically short."""
        short = self._view.pressure in (Pressure.HIGH, Pressure.CRITICAL)
        if not short or any(slot.phase is Phase.UNLOADING for slot in self._slots.values()):
            return []
        ready = self._least_recent_first()
        latest = max(ready, key=lambda slot: (bool(slot.active), slot.last_used), default=None)
        effects: list[Effect] = []
        if ready and now >= self._caches_dropped + SHED_SECONDS:
            self._caches_dropped = now
            effects.append(DropCaches())
        for slot in ready:
            patience = SHED_LAST_SECONDS if slot is latest else SHED_SECONDS
            may_go = slot is not latest or self._view.system_pressure is Pressure.CRITICAL
            if slot.idle and not slot.pinned and may_go and now - slot.last_used >= patience:
                return [*effects, self._unload(slot, Reason.PRESSURE)]
        return effects

    def _bring_in(self, slot: Slot, now: float) -> list[Effect]:
        """Load ``slot``, or unload what is in its way, or reject its requests; nothing: wait."""
        if self._fits(slot, []):
            slot.begin_load(now)
            return [Load(slot.model)]
        freed = self._in_the_way(slot, now)
        if freed is None:
            return [] if self._may_fit_soon(slot) else self._reject_all(slot, self._no_room(slot))
        victims = [s for s in freed if s.phase is not Phase.UNLOADING]
        for victim in victims:
            victim.yielding = victim.phase is Phase.READY and now >= victim.turn_ends
        if all(victim.idle and now >= victim.may_go_at for victim in victims):
            return [self._unload(victim, Reason.SWAP) for victim in victims]
        return []

    def _pass_by(self, first: Slot, others: list[Slot], now: float) -> list[Effect]:
        """Load those of the others that take nothing from the one whose turn it is."""
        freed = self._in_the_way(first, now)
        effects: list[Effect] = []
        for slot in others:
            if freed is None or not self._fits(slot, []):
                continue
            slot.begin_load(now)
            if self._fits(first, freed):
                effects.append(Load(slot.model))
            else:
                slot.phase = Phase.ABSENT
        return effects

    def _in_the_way(self, slot: Slot, now: float) -> list[Slot] | None:
        """The models that must be gone before ``slot`` can be loaded, those that are leaving
        already included; None: not even all that may go are enough."""
        leaving = [s for s in self._slots.values() if s.phase is Phase.UNLOADING]
        if self._fits(slot, leaving):
            return leaving
        victims = self._victims(slot, leaving, now)
        return None if victims is None else leaving + victims

    def _may_fit_soon(self, slot: Slot) -> bool:
        """Whether there may be room when a load is through, which is counted as if it had taken
        nothing yet."""
        movable = [s for s in self._slots.values() if s.occupies and not s.pinned]
        loading = any(s.phase is Phase.LOADING for s in self._slots.values())
        return loading and self._fits(slot, movable, coming=False)

    def _victims(self, slot: Slot, leaving: list[Slot], now: float) -> list[Slot] | None:
        """The models that must go for ``slot``, those that can best be spared; None: not even all
        of them are enough."""

        def worth(victim: Slot) -> tuple[int, float]:
            if victim.phase is Phase.LOADING:
                return (3, victim.load_began)
            if not victim.idle:
                return (2, victim.turn_ends)
            return (0 if now >= victim.may_go_at else 1, victim.last_used)

        movable = [
            s
            for s in self._slots.values()
            if s.phase in (Phase.READY, Phase.LOADING) and not s.pinned
        ]
        chosen: list[Slot] = []
        for victim in sorted(movable, key=worth):
            if self._fits(slot, leaving + chosen):
                break
            chosen.append(victim)
        if not self._fits(slot, leaving + chosen):
            return None
        for victim in chosen[::-1]:  # one that came late may make earlier ones needless
            others = [other for other in chosen if other is not victim]
            if self._fits(slot, leaving + others):
                chosen = others
        return chosen

    def _fits(self, slot: Slot, freed: list[Slot], *, coming: bool = True) -> bool:
        staying = [s for s in self._slots.values() if s.occupies and s not in freed]
        return (
            len(staying) < self._limits.cache_size
            and self._group_has_room(slot, staying)
            and self._refusal(slot, freed, coming=coming) is None
        )

    @staticmethod
    def _group_has_room(slot: Slot, staying: Iterable[Slot]) -> bool:
        group, limit = slot.wanted.group, slot.wanted.group_limit
        if group is None or limit is None:
            return True
        return sum(s.wanted.group == group for s in staying) < limit

    def _surplus(self, slot: Slot) -> bool:
        """Whether more models are loaded than the limits allow, and this one counts among them."""
        staying = [s for s in self._slots.values() if s.phase in (Phase.LOADING, Phase.READY)]
        others = [s for s in staying if s is not slot]
        return len(staying) > self._limits.cache_size or not self._group_has_room(slot, others)

    def _refusal(self, slot: Slot, freed: list[Slot], *, coming: bool = True) -> str | None:
        need = slot.wanted.need_bytes
        if coming:
            # What is being loaded may not show in the free memory yet: as if none of it did.
            loading = [s for s in self._slots.values() if s.phase is Phase.LOADING]
            need += sum(s.wanted.need_bytes for s in loading if s not in freed and s is not slot)
        return self._view.refusal(need, sum(s.gives_back for s in freed))

    def _no_room(self, slot: Slot) -> InsufficientMemory:
        """Why ``slot`` cannot be loaded even if all that may go went."""
        loaded = self.occupied()
        movable = [s for s in loaded if not s.pinned]
        pinned = [s for s in loaded if s.pinned]
        parts = [self._refusal(slot, movable)]
        if parts[0] is None:
            group = slot.wanted.group
            limit = (
                f"the group {group!r}" if len(pinned) < self._limits.cache_size else "cache_size"
            )
            parts = [f"{slot.model} cannot be loaded: pinned models fill {limit}."]
        if movable:
            parts.append(f"Could be unloaded, and is not enough: {_listed(movable)}.")
        if pinned:
            parts.append(f"Pinned: {_listed(pinned)}.")
        return InsufficientMemory(" ".join(part for part in parts if part), retry_after=30)

    @property
    def _view(self) -> Budget:
        assert self._budget is not None, "on_memory() comes before the first request"
        return self._budget

    def _least_recent_first(self) -> list[Slot]:
        """The loaded models, the least recently used first."""
        ready = [slot for slot in self._slots.values() if slot.phase is Phase.READY]
        return sorted(ready, key=lambda slot: slot.last_used)

    def _unload(self, slot: Slot, reason: Reason) -> Effect:
        slot.phase = Phase.UNLOADING
        return Unload(slot.model, reason)

    def _reject_all(self, slot: Slot, error: RouterError) -> list[Effect]:
        rejected: list[Effect] = [Reject(request, error) for request in slot.waiting]
        for request in slot.waiting:
            del self._models[request]
        slot.waiting.clear()
        return rejected


def _listed(slots: Iterable[Slot]) -> str:
    return ", ".join(f"{slot.model} ({slot.gives_back / GIB:.1f} GB)" for slot in slots)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is shutting down; try again in a moment.", retry_after=5)


def _queue_full(slot: Slot) -> QueueFull:
    return QueueFull(
        f"{len(slot.waiting)} requests wait for {slot.model} already; try again in a moment.",
        retry_after=2,
    )
