"""The scheduler's promises, by a machine that tries everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlx_router.domain import Pressure
from mlx_router.errors import ModelLoadFailed
from mlx_router.scheduling import Effect, Grant, Limits, Load, Reject, Scheduler, Unload, Wanted
from mlx_router.scheduling.slot import Phase
from tests.test_scheduler import Room

TTL = 8.0


class Machine(RuleBasedStateMachine):
    """Random events against a world that keeps its own books."""

    MEMORY = 12
    NEEDS = {"a": 3, "b": 4, "c": 6, "d": 9, "pin": 2, "huge": 13}  # noqa: RUF012
    GROUP = ("a", "b")  # of which one may be loaded

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_request = 0
        self.room = Room(self.MEMORY)
        self.limits = Limits(cache_size=2, max_active=2, max_queue=3)
        self.scheduler = Scheduler(self.limits)
        self.scheduler.on_memory(self.room)
        self.waiting: dict[int, str] = {}
        self.granted: dict[int, str] = {}
        self.phases: dict[str, Phase] = {}
        self.resolved: Counter[int] = Counter()
        self.asked_to_unload: set[str] = set()

    def wanted(self, model: str) -> Wanted:
        in_group = model in self.GROUP
        return Wanted(
            model,
            self.NEEDS[model],
            pinned=model == "pin",
            ttl_seconds=TTL if model == "c" else None,
            group="g" if in_group else None,
            group_limit=1 if in_group else None,
        )

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                assert self.phases.get(effect.model, Phase.ABSENT) is Phase.ABSENT
                self.phases[effect.model] = Phase.LOADING
                self.check_capacity()
            elif isinstance(effect, Unload):
                assert self.phases[effect.model] is Phase.READY
                assert effect.model not in self.granted.values(), "unloaded while serving"
                assert effect.model != "pin" or "pin" in self.asked_to_unload, "pinned models stay"
                self.phases[effect.model] = Phase.UNLOADING
            elif isinstance(effect, Grant):
                assert self.phases[effect.model] is Phase.READY
                assert self.waiting.pop(effect.request) == effect.model, "not waiting any more"
                self.granted[effect.request] = effect.model
                self.resolved[effect.request] += 1
            elif isinstance(effect, Reject):
                del self.waiting[effect.request]
                self.resolved[effect.request] += 1

    def check_capacity(self) -> None:
        present = [m for m, phase in self.phases.items() if phase is not Phase.ABSENT]
        assert len(present) <= self.limits.cache_size
        assert sum(m in self.GROUP for m in present) <= 1
        assert sum(self.NEEDS[m] for m in present) <= self.MEMORY

    def in_phase(self, phase: Phase) -> list[str]:
        return [m for m, p in self.phases.items() if p is phase]

    def update_room(self) -> None:
        # Memory is taken when a load is through and is back when an unload is.
        held = self.in_phase(Phase.READY) + self.in_phase(Phase.UNLOADING)
        self.room.free = self.MEMORY - sum(self.NEEDS[m] for m in held)

    @rule(model=st.sampled_from(sorted(NEEDS)))
    def request(self, model: str) -> None:
        request = self.next_request
        self.next_request += 1
        self.waiting[request] = model
        self.apply(self.scheduler.on_request(request, self.wanted(model), self.now))

    @precondition(lambda self: self.in_phase(Phase.LOADING))
    @rule(data=st.data(), works=st.booleans())
    def finish_load(self, data: st.DataObject, works: bool) -> None:
        model = data.draw(st.sampled_from(self.in_phase(Phase.LOADING)))
        self.phases[model] = Phase.READY if works else Phase.ABSENT
        self.update_room()
        if works:
            self.apply(self.scheduler.on_loaded(model, self.NEEDS[model], self.now))
        else:
            self.apply(self.scheduler.on_load_failed(model, ModelLoadFailed("no"), self.now))

    @precondition(lambda self: self.in_phase(Phase.UNLOADING))
    @rule(data=st.data())
    def finish_unload(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.in_phase(Phase.UNLOADING)))
        self.phases[model] = Phase.ABSENT
        self.asked_to_unload.discard(model)
        self.update_room()
        self.apply(self.scheduler.on_unloaded(model, self.now))

    @precondition(lambda self: self.in_phase(Phase.READY))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.in_phase(Phase.READY)))
        self.phases[model] = Phase.UNLOADING
        self.granted = {r: m for r, m in self.granted.items() if m != model}
        self.update_room()
        self.apply(self.scheduler.on_died(model, self.now))

    @precondition(lambda self: self.in_phase(Phase.READY))
    @rule(data=st.data())
    def ask_to_unload(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.in_phase(Phase.READY)))
        self.asked_to_unload.add(model)
        self.apply(self.scheduler.on_unload_request(model, self.now))

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.granted)))
        del self.granted[request]
        self.apply(self.scheduler.on_done(request, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[request]
        self.resolved[request] += 1
        self.apply(self.scheduler.on_done(request, self.now))

    @rule(cache_size=st.integers(1, 3))
    def change_the_config(self, cache_size: int) -> None:
        self.limits = Limits(cache_size, max_active=2, max_queue=3)
        self.apply(self.scheduler.on_config(self.limits, self.wanted, self.now))

    @rule(pressure=st.sampled_from(Pressure))
    def change_the_pressure(self, pressure: Pressure) -> None:
        self.room.pressure = self.room.system_pressure = pressure
        self.apply(self.scheduler.on_tick(self.now))

    @rule(seconds=st.floats(0.1, 5.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.scheduler.on_tick(self.now))

    @invariant()
    def every_request_is_resolved_at_most_once(self) -> None:
        assert all(count == 1 for count in self.resolved.values())

    @invariant()
    def who_waits_for_nobody_is_served(self) -> None:
        """A model that is loaded and not about to go has no one waiting but for its own batch."""
        for model in self.in_phase(Phase.READY):
            slot = self.scheduler.slot(model)
            assert slot is not None
            if slot.admits and slot.waiting:
                assert len(slot.active) == self.limits.max_active

    @invariant()
    def a_tick_is_planned_while_time_matters(self) -> None:
        due = self.scheduler.next_tick(self.now)
        assert due is None or due > self.now
        if self.in_phase(Phase.READY):
            assert due is not None

    def teardown(self) -> None:
        """Left to itself with every answer finishing, the queue drains."""
        for _ in range(20 * (self.next_request + 1)):
            if not self.waiting and not self.granted:
                break
            self.now += 3.0
            for model in self.in_phase(Phase.LOADING):
                self.phases[model] = Phase.READY
                self.update_room()
                self.apply(self.scheduler.on_loaded(model, self.NEEDS[model], self.now))
            for request in sorted(self.granted):
                del self.granted[request]
                self.apply(self.scheduler.on_done(request, self.now))
            for model in self.in_phase(Phase.UNLOADING):
                self.phases[model] = Phase.ABSENT
                self.asked_to_unload.discard(model)
                self.update_room()
                self.apply(self.scheduler.on_unloaded(model, self.now))
            self.apply(self.scheduler.on_tick(self.now))
        assert not self.waiting, "the queue did not drain"
        assert self.resolved.total() == self.next_request


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
