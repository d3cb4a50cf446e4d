"""The scheduler's promises, by hand and by a machine that tries everything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlx_router.errors import InsufficientMemory, ModelLoadFailed, QueueFull, ShuttingDown
from mlx_router.scheduling import Effect, Grant, Load, Reject, Scheduler, Unload, Wanted
from mlx_router.scheduling.slot import Phase

GB = 10**9


class Room:
    """A budget with ``free`` bytes."""

    def __init__(self, free: int = 1000 * GB) -> None:
        self.free = free

    def refusal(self, need_bytes: int, reclaimable_bytes: int) -> str | None:
        room = self.free + reclaimable_bytes
        return None if need_bytes <= room else f"needs {need_bytes}, room {room}"


def make(cache_size: int = 2, free: int = 1000 * GB, **options: float) -> Scheduler:
    scheduler = Scheduler(cache_size=cache_size, **options)  # type: ignore[arg-type]
    scheduler.on_memory(Room(free))
    return scheduler


def serve(scheduler: Scheduler, request: int, model: str, now: float) -> None:
    """Bring a model in for one short request."""
    for effect in scheduler.on_request(request, Wanted(model, GB), now):
        if isinstance(effect, Unload):
            scheduler.on_unloaded(effect.model, now)
    if scheduler.slot(model).phase is Phase.LOADING:  # type: ignore[union-attr]
        scheduler.on_loaded(model, GB, now)
    scheduler.on_done(request, now)


def test_one_load_serves_all_who_wait() -> None:
    scheduler = make()
    assert scheduler.on_request(1, Wanted("a", GB), 0.0) == [Load("a")]
    assert scheduler.on_request(2, Wanted("a", GB), 0.1) == []
    assert scheduler.on_loaded("a", GB, 1.0) == [Grant(1, "a"), Grant(2, "a")]


def test_the_least_recently_used_idle_model_goes() -> None:
    scheduler = make(cache_size=2)
    serve(scheduler, 1, "a", 1.0)
    serve(scheduler, 2, "b", 2.0)
    serve(scheduler, 3, "a", 3.0)
    assert scheduler.on_request(4, Wanted("c", GB), 4.0) == [Unload("b")]
    assert scheduler.on_tick(4.1) == []  # waits for b, and throws out no second model
    assert scheduler.on_unloaded("b", 5.0) == [Load("c")]


def test_no_unload_while_serving() -> None:
    scheduler = make(cache_size=1, patience=2.0)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    assert scheduler.on_request(2, Wanted("b", GB), 1.0) == []
    assert scheduler.on_tick(100.0) == []
    assert scheduler.on_done(1, 101.0) == [Unload("a")]


def test_newcomers_of_a_busy_model_do_not_starve_another() -> None:
    scheduler = make(cache_size=1, patience=2.0)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert scheduler.on_request(3, Wanted("a", GB), 2.0) == [Grant(3, "a")]  # b still patient
    assert scheduler.next_tick() == pytest.approx(3.0)
    scheduler.on_tick(3.0)
    assert scheduler.on_request(4, Wanted("a", GB), 3.1) == []  # a has to yield now
    scheduler.on_done(1, 4.0)
    assert scheduler.on_done(3, 4.0) == [Unload("a")]
    assert scheduler.on_unloaded("a", 5.0) == [Load("b")]


def test_a_model_stops_yielding_when_the_one_who_waited_leaves() -> None:
    scheduler = make(cache_size=1, patience=0.0)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert scheduler.on_request(3, Wanted("a", GB), 2.0) == []
    assert scheduler.on_cancel(2, 3.0) == [Grant(3, "a")]


def test_a_load_that_cannot_fit_is_refused_and_evicts_nothing() -> None:
    scheduler = make(free=5 * GB)
    serve(scheduler, 1, "small", 0.0)
    (effect,) = scheduler.on_request(2, Wanted("huge", 50 * GB), 1.0)
    assert isinstance(effect, Reject)
    assert isinstance(effect.error, InsufficientMemory)
    assert "50000000000" in effect.error.message
    assert scheduler.slot("small").phase is Phase.READY  # type: ignore[union-attr]


def test_pinned_models_stay() -> None:
    scheduler = make(cache_size=1)
    scheduler.on_request(1, Wanted("a", GB, pinned=True), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_done(1, 0.0)
    (effect,) = scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert isinstance(effect, Reject)
    assert "pinned" in effect.error.message


def test_a_failed_load_rejects_its_waiters_and_the_next_request_tries_again() -> None:
    scheduler = make()
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_request(2, Wanted("a", GB), 0.0)
    error = ModelLoadFailed("no")
    assert scheduler.on_load_failed("a", error, 1.0) == [Reject(1, error), Reject(2, error)]
    assert scheduler.on_request(3, Wanted("a", GB), 2.0) == [Load("a")]


def test_the_queue_is_bounded() -> None:
    scheduler = make(max_queue=2, max_active=1)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("a", GB), 0.0)
    scheduler.on_request(3, Wanted("a", GB), 0.0)
    (effect,) = scheduler.on_request(4, Wanted("a", GB), 0.0)
    assert isinstance(effect, Reject)
    assert isinstance(effect.error, QueueFull)
    assert effect.error.retry_after
    assert scheduler.on_done(1, 1.0) == [Grant(2, "a")]


def test_shutdown_rejects_waiters_and_newcomers_and_lets_answers_finish() -> None:
    scheduler = make()
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("b", GB), 0.0)
    (effect,) = scheduler.on_shutdown(1.0)
    assert isinstance(effect, Reject)
    assert effect.request == 2
    (late,) = scheduler.on_request(3, Wanted("a", GB), 1.0)
    assert isinstance(late, Reject)
    assert isinstance(late.error, ShuttingDown)
    assert scheduler.slot("a").active == {1}  # type: ignore[union-attr]


def test_an_unload_request_waits_for_answers_and_newcomers_get_a_new_load() -> None:
    scheduler = make()
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    assert scheduler.on_unload_request("a", 1.0) == []
    assert scheduler.on_request(2, Wanted("a", GB), 1.0) == []
    assert scheduler.on_done(1, 2.0) == [Unload("a")]
    assert scheduler.on_unloaded("a", 3.0) == [Load("a")]


def test_after_a_death_waiters_get_a_new_load() -> None:
    scheduler = make(max_active=1)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("a", GB), 0.0)
    assert scheduler.on_died("a", 1.0) == []  # its memory is not back yet
    assert scheduler.on_request(3, Wanted("a", GB), 1.0) == []
    assert scheduler.on_done(1, 2.0) == []
    assert scheduler.on_unloaded("a", 3.0) == [Load("a")]


def test_a_load_under_way_is_not_counted_twice() -> None:
    """What it has taken already is missing from the free memory; it is asked again later."""
    scheduler = make(cache_size=2, free=64 * GB)
    scheduler.on_request(1, Wanted("a", 30 * GB), 0.0)
    scheduler.on_memory(Room(36 * GB))  # nearly loaded
    assert scheduler.on_request(2, Wanted("b", 40 * GB), 1.0) == []
    assert scheduler.on_loaded("a", 30 * GB, 2.0) == [Grant(1, "a")]
    assert scheduler.on_done(1, 3.0) == [Unload("a")]


def test_a_yielding_model_takes_newcomers_again_when_the_waiter_is_rejected() -> None:
    scheduler = make(cache_size=1, patience=0.0)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert scheduler.on_request(3, Wanted("a", GB), 2.0) == []  # a yields
    scheduler.on_memory(Room(-10 * GB))
    rejected, granted = scheduler.on_tick(3.0)
    assert isinstance(rejected, Reject)
    assert granted == Grant(3, "a")


def test_an_unload_request_during_a_load_is_carried_out_after_it() -> None:
    scheduler = make()
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_cancel(1, 0.5)
    assert scheduler.on_unload_request("a", 1.0) == []
    assert scheduler.on_loaded("a", GB, 2.0) == [Unload("a")]


class Machine(RuleBasedStateMachine):
    """Random events against a world that keeps its own books."""

    CACHE = 2
    MEMORY = 10
    NEEDS = {"a": 3, "b": 4, "c": 6, "d": 9, "huge": 11}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_request = 0
        self.room = Room(self.MEMORY)
        self.scheduler = Scheduler(cache_size=self.CACHE, max_active=2, max_queue=3, patience=2.0)
        self.scheduler.on_memory(self.room)
        self.waiting: dict[int, str] = {}
        self.granted: dict[int, str] = {}
        self.phases: dict[str, Phase] = {}
        self.resolved: Counter[int] = Counter()

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                assert self.phases.get(effect.model, Phase.ABSENT) is Phase.ABSENT
                self.phases[effect.model] = Phase.LOADING
                self.check_capacity()
            elif isinstance(effect, Unload):
                assert self.phases[effect.model] is Phase.READY
                assert effect.model not in self.granted.values(), "unloaded while serving"
                self.phases[effect.model] = Phase.UNLOADING
            elif isinstance(effect, Grant):
                assert self.phases[effect.model] is Phase.READY
                assert self.waiting.pop(effect.request) == effect.model, "not waiting any more"
                self.granted[effect.request] = effect.model
                self.resolved[effect.request] += 1
            else:
                del self.waiting[effect.request]
                self.resolved[effect.request] += 1

    def check_capacity(self) -> None:
        present = [m for m, phase in self.phases.items() if phase is not Phase.ABSENT]
        assert len(present) <= self.CACHE
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
        self.apply(self.scheduler.on_request(request, Wanted(model, self.NEEDS[model]), self.now))

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
        self.apply(self.scheduler.on_cancel(request, self.now))

    @rule(seconds=st.floats(0.1, 5.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.scheduler.on_tick(self.now))

    @invariant()
    def every_request_is_resolved_at_most_once(self) -> None:
        assert all(count == 1 for count in self.resolved.values())

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
                self.update_room()
                self.apply(self.scheduler.on_unloaded(model, self.now))
            self.apply(self.scheduler.on_tick(self.now))
        assert not self.waiting, "the queue did not drain"
        assert self.resolved.total() == self.next_request


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
