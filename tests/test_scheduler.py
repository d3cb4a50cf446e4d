"""The scheduler's promises, by hand."""

from __future__ import annotations

import pytest

from mlx_router.domain import Pressure
from mlx_router.errors import InsufficientMemory, ModelLoadFailed, QueueFull, ShuttingDown
from mlx_router.scheduling import DropCaches, Grant, Limits, Load, Reject, Scheduler, Unload, Wanted
from mlx_router.scheduling.slot import Phase, Slot

GB = 10**9


class Room:
    """A budget with ``free`` bytes."""

    def __init__(
        self,
        free: int = 1000 * GB,
        pressure: Pressure = Pressure.NORMAL,
        system_pressure: Pressure = Pressure.NORMAL,
    ) -> None:
        self.free = free
        self.pressure = pressure
        self.system_pressure = system_pressure

    def refusal(self, need_bytes: int, reclaimable_bytes: int) -> str | None:
        room = self.free + reclaimable_bytes
        return None if need_bytes <= room else f"needs {need_bytes}, room {room}"


def make(cache_size: int = 2, free: int = 1000 * GB, **limits: int) -> Scheduler:
    scheduler = Scheduler(Limits(cache_size=cache_size, **limits))
    scheduler.on_memory(Room(free))
    return scheduler


def slot_of(scheduler: Scheduler, model: str) -> Slot:
    slot = scheduler.slot(model)
    assert slot is not None
    return slot


def load(scheduler: Scheduler, request: int, model: str, *, began: float, ready: float) -> None:
    """Bring a model in for a request that goes on."""
    scheduler.on_request(request, Wanted(model, GB), began)
    assert Grant(request, model) in scheduler.on_loaded(model, GB, ready)


def serve(scheduler: Scheduler, request: int, model: str, now: float) -> None:
    """Bring a model in for one short request."""
    for effect in scheduler.on_request(request, Wanted(model, GB), now):
        if isinstance(effect, Unload):
            scheduler.on_unloaded(effect.model, now)
    if slot_of(scheduler, model).phase is Phase.LOADING:
        scheduler.on_loaded(model, GB, now)
    scheduler.on_done(request, now)


def answer(scheduler: Scheduler, model: str, times: int, now: float) -> None:
    """Short answers, one after the other."""
    for request in range(1000, 1000 + times):
        assert scheduler.on_request(request, Wanted(model, GB), now) == [Grant(request, model)]
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
    scheduler = make(cache_size=1)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    assert scheduler.on_request(2, Wanted("b", GB), 1.0) == []
    assert scheduler.on_tick(100.0) == []
    assert scheduler.on_done(1, 101.0) == [Unload("a")]


def test_a_model_that_others_wait_for_keeps_its_place_for_three_times_its_load() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=2.0)
    answer(scheduler, "a", 3, now=2.5)
    scheduler.on_request(2, Wanted("b", GB), 3.0)
    assert scheduler.on_request(3, Wanted("a", GB), 4.0) == [Grant(3, "a")]  # in its turn
    assert scheduler.next_tick(4.0) == pytest.approx(6.0)  # a look at the memory
    assert scheduler.next_tick(7.0) == pytest.approx(8.0)
    scheduler.on_tick(8.0)
    assert scheduler.on_request(4, Wanted("a", GB), 8.1) == []  # a has to yield now
    assert scheduler.on_done(1, 9.0) == []
    assert scheduler.on_done(3, 9.0) == [Unload("a")]
    assert scheduler.on_unloaded("a", 10.0) == [Load("b")]


def test_and_for_three_answers_unless_they_are_long() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=2.0)
    scheduler.on_request(2, Wanted("b", GB), 3.0)
    assert scheduler.on_request(3, Wanted("a", GB), 20.0) == [Grant(3, "a")]
    scheduler.on_tick(26.0)  # twelve times its load
    assert scheduler.on_request(4, Wanted("a", GB), 26.1) == []


def test_a_model_whose_requests_follow_at_once_is_kept_a_moment_for_the_next() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=2.0)
    scheduler.on_done(1, 2.5)
    assert scheduler.on_request(2, Wanted("a", GB), 2.6) == [Grant(2, "a")]
    scheduler.on_request(3, Wanted("b", GB), 3.0)
    assert scheduler.on_done(2, 4.0) == []
    assert scheduler.next_tick(4.0) == pytest.approx(4.5)  # a quarter of the load
    assert scheduler.on_request(4, Wanted("a", GB), 4.2) == [Grant(4, "a")]
    assert scheduler.on_done(4, 4.4) == []
    assert scheduler.on_tick(4.9) == [Unload("a")]


def test_a_client_that_alternates_does_not_wait_for_itself() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=2.0)
    scheduler.on_done(1, 2.5)
    scheduler.on_request(2, Wanted("a", GB), 9.0)  # it was away for a while
    scheduler.on_done(2, 9.5)
    assert scheduler.on_request(3, Wanted("b", GB), 9.6) == [Unload("a")]


def test_an_idle_model_whose_turn_is_over_goes_at_once() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=2.0)
    answer(scheduler, "a", 3, now=9.9)
    scheduler.on_done(1, 9.9)
    assert scheduler.on_request(2, Wanted("b", GB), 10.0) == [Unload("a")]


def test_a_turn_is_a_minute_at_most_and_a_pause_a_second() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=100.0)
    slot = slot_of(scheduler, "a")
    assert slot.turn_ends == 160.0
    scheduler.on_done(1, 110.0)
    scheduler.on_request(2, Wanted("a", GB), 110.5)
    scheduler.on_done(2, 120.0)
    assert slot.may_go_at == 121.0


def test_what_is_left_over_from_a_turn_queues_up_behind_the_others() -> None:
    scheduler = make(cache_size=1, max_active=1)
    for request, model in enumerate(("a", "a", "b", "c")):
        scheduler.on_request(request, Wanted(model, GB), 0.0)
    scheduler.on_loaded("a", GB, 1.0)
    scheduler.on_tick(13.0)
    assert scheduler.on_done(0, 14.0) == [Unload("a")]
    assert [slot.model for slot in scheduler.queue()] == ["b", "c"]
    assert scheduler.on_unloaded("a", 15.0) == [Load("b")]
    assert [slot.model for slot in scheduler.queue()] == ["c", "a"]


def test_models_get_their_place_in_the_order_they_were_asked_for() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=0.0)
    scheduler.on_request(2, Wanted("b", GB), 1.0)
    scheduler.on_request(3, Wanted("c", GB), 2.0)
    scheduler.on_done(1, 3.0)
    assert scheduler.on_unloaded("a", 4.0) == [Load("b")]


def test_a_model_stops_yielding_when_the_one_who_waited_leaves() -> None:
    scheduler = make(cache_size=1)
    scheduler.on_request(1, Wanted("a", GB), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert scheduler.on_request(3, Wanted("a", GB), 2.0) == []
    assert scheduler.on_done(2, 3.0) == [Grant(3, "a")]


def test_a_load_that_cannot_fit_is_refused_and_evicts_nothing() -> None:
    scheduler = make(free=5 * GB)
    serve(scheduler, 1, "small", 0.0)
    (effect,) = scheduler.on_request(2, Wanted("huge", 50 * GB), 1.0)
    assert isinstance(effect, Reject)
    assert isinstance(effect.error, InsufficientMemory)
    assert f"needs {50 * GB}" in effect.error.message
    assert slot_of(scheduler, "small").phase is Phase.READY


def test_nothing_is_unloaded_unless_it_is_enough() -> None:
    scheduler = make(cache_size=3, free=10 * GB)
    scheduler.on_request(1, Wanted("idle", 4 * GB), 0.0)
    scheduler.on_loaded("idle", 4 * GB, 0.0)
    scheduler.on_done(1, 0.0)
    scheduler.on_request(2, Wanted("busy", 5 * GB), 1.0)
    scheduler.on_loaded("busy", 5 * GB, 1.0)
    scheduler.on_memory(Room(1 * GB))
    assert scheduler.on_request(3, Wanted("large", 8 * GB), 2.0) == []  # idle alone is too little
    assert slot_of(scheduler, "idle").phase is Phase.READY
    assert scheduler.on_done(2, 3.0) == [Unload("idle"), Unload("busy")]


def test_only_what_is_needed_is_unloaded() -> None:
    scheduler = make(cache_size=4, free=0)
    scheduler.on_memory(Room(12 * GB))
    for request, (model, size) in enumerate({"old": 2, "large": 8, "new": 2}.items()):
        scheduler.on_request(request, Wanted(model, size * GB), float(request))
        scheduler.on_loaded(model, size * GB, float(request))
        scheduler.on_done(request, float(request))
    scheduler.on_memory(Room(0))
    assert scheduler.on_request(9, Wanted("wanted", 8 * GB), 9.0) == [Unload("large")]


def test_pinned_models_stay() -> None:
    scheduler = make(cache_size=1)
    scheduler.on_request(1, Wanted("a", GB, pinned=True), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    scheduler.on_done(1, 0.0)
    (effect,) = scheduler.on_request(2, Wanted("b", GB), 1.0)
    assert isinstance(effect, Reject)
    assert effect.error.message == (
        "b cannot be loaded: pinned models fill cache_size. Pinned: a (0.9 GB)."
    )


def test_a_refused_load_names_what_could_be_unloaded_and_what_is_pinned() -> None:
    scheduler = make(cache_size=4, free=8 * GB)
    scheduler.on_request(1, Wanted("stays", GB, pinned=True), 0.0)
    scheduler.on_loaded("stays", GB, 0.0)
    load(scheduler, 2, "small", began=0.0, ready=1.0)
    (effect,) = scheduler.on_request(3, Wanted("huge", 50 * GB), 2.0)
    assert isinstance(effect, Reject)
    assert effect.error.message == (
        f"needs {50 * GB}, room {9 * GB} Could be unloaded, and is not enough: small (0.9 GB). "
        "Pinned: stays (0.9 GB)."
    )


def test_who_takes_nothing_from_the_first_in_the_queue_need_not_wait_behind_it() -> None:
    scheduler = make(cache_size=4, free=20 * GB)
    scheduler.on_request(1, grouped("a"), 0.0)
    scheduler.on_loaded("a", GB, 1.0)
    larger = Wanted("b", 5 * GB, group="g", group_limit=1)
    assert scheduler.on_request(2, larger, 2.0) == []  # a is busy
    assert scheduler.on_request(3, Wanted("c", GB), 3.0) == [Load("c")]
    # This one would fit now, and b no more when a is gone.
    assert scheduler.on_request(4, Wanted("large", 17 * GB), 4.0) == []
    assert scheduler.on_request(5, Wanted("d", GB), 5.0) == [Load("d")]


def test_a_load_under_way_that_may_have_taken_its_memory_refuses_nobody() -> None:
    scheduler = make(cache_size=3, free=20 * GB)
    scheduler.on_request(1, Wanted("pinned", 10 * GB, pinned=True), 0.0)
    scheduler.on_memory(Room(12 * GB))  # 8 of the 10 are taken already
    assert scheduler.on_request(2, Wanted("c", 5 * GB), 1.0) == []
    scheduler.on_memory(Room(10 * GB))
    assert scheduler.on_loaded("pinned", 10 * GB, 2.0) == [Load("c"), Grant(1, "pinned")]


# --- groups, ttl, pressure, changes ---------------------------------------------------------


def grouped(model: str, limit: int = 1) -> Wanted:
    return Wanted(model, GB, group="g", group_limit=limit)


def test_of_a_group_no_more_than_its_limit_are_loaded() -> None:
    scheduler = make(cache_size=4)
    serve(scheduler, 1, "other", 0.0)
    for request, model in ((2, "a"), (3, "b")):
        effects = scheduler.on_request(request, grouped(model), float(request))
        if model == "a":
            assert effects == [Load("a")]
            scheduler.on_loaded("a", GB, 2.0)
            scheduler.on_done(2, 2.0)
        else:  # there is a place, but not in the group; the older one of another group stays
            assert effects == [Unload("a")]
    assert scheduler.on_unloaded("a", 4.0) == [Load("b")]


def test_a_group_full_of_pinned_models_is_named() -> None:
    scheduler = make(cache_size=4)
    scheduler.on_request(1, Wanted("a", GB, pinned=True, group="g", group_limit=1), 0.0)
    scheduler.on_loaded("a", GB, 0.0)
    (effect,) = scheduler.on_request(2, grouped("b"), 1.0)
    assert isinstance(effect, Reject)
    assert "the group 'g'" in effect.error.message


def test_an_idle_model_goes_after_its_ttl() -> None:
    scheduler = make()
    scheduler.on_request(1, Wanted("a", GB, ttl_seconds=60.0), 0.0)
    scheduler.on_loaded("a", GB, 1.0)
    assert scheduler.on_tick(100.0) == []  # it is in use
    scheduler.on_done(1, 200.0)
    assert scheduler.on_tick(259.0) == []
    assert scheduler.next_tick(259.0) == pytest.approx(260.0)
    assert scheduler.on_tick(260.0) == [Unload("a")]


def idle_models(scheduler: Scheduler, *models: str) -> None:
    """Loaded, idle, and last used at 0, 1, 2, ..."""
    for time, model in enumerate(models):
        serve(scheduler, time, model, float(time))


def test_under_high_pressure_idle_models_go_one_by_one_and_the_last_used_stays() -> None:
    scheduler = make(cache_size=3)
    idle_models(scheduler, "a", "b", "c")
    scheduler.on_memory(Room(pressure=Pressure.MODERATE))
    assert scheduler.on_tick(50.0) == []
    scheduler.on_memory(Room(pressure=Pressure.HIGH))
    assert scheduler.on_tick(5.0) == [DropCaches()]  # a pause is not idleness
    assert scheduler.on_tick(12.0) == [Unload("a")]
    assert scheduler.on_tick(13.0) == []  # first see what that gave
    assert scheduler.on_unloaded("a", 14.0) == [Unload("b")]
    scheduler.on_unloaded("b", 14.5)
    assert scheduler.on_tick(14.9) == []
    assert scheduler.on_tick(1000.0) == [DropCaches()]


def test_the_last_used_model_goes_only_if_the_system_is_critically_short_and_later() -> None:
    scheduler = make(cache_size=2)
    idle_models(scheduler, "a", "b")
    scheduler.on_memory(Room(pressure=Pressure.CRITICAL))
    assert scheduler.on_tick(20.0) == [DropCaches(), Unload("a")]
    assert scheduler.on_unloaded("a", 21.0) == []
    assert Unload("b") not in scheduler.on_tick(1000.0)
    scheduler.on_memory(Room(pressure=Pressure.CRITICAL, system_pressure=Pressure.CRITICAL))
    scheduler.on_request(9, Wanted("b", GB), 1001.0)
    scheduler.on_done(9, 1001.0)
    assert Unload("b") not in scheduler.on_tick(1060.0)
    assert Unload("b") in scheduler.on_tick(1062.0)


def test_pressure_leaves_busy_and_pinned_models_alone() -> None:
    scheduler = make(cache_size=3)
    scheduler.on_request(0, Wanted("pinned", GB, pinned=True), 0.0)
    scheduler.on_loaded("pinned", GB, 0.0)
    scheduler.on_done(0, 0.0)
    load(scheduler, 1, "busy", began=0.0, ready=1.0)
    scheduler.on_memory(Room(pressure=Pressure.CRITICAL, system_pressure=Pressure.CRITICAL))
    assert scheduler.on_tick(1000.0) == [DropCaches()]


def test_a_smaller_cache_size_lets_idle_models_go_and_busy_ones_finish() -> None:
    scheduler = make(cache_size=3)
    idle_models(scheduler, "a", "b")
    load(scheduler, 9, "busy", began=3.0, ready=4.0)
    effects = scheduler.on_config(Limits(cache_size=1), lambda model: Wanted(model, GB), 5.0)
    assert effects == [Unload("a"), Unload("b")]
    assert slot_of(scheduler, "busy").phase is Phase.READY
    assert scheduler.on_done(9, 6.0) == []


def test_a_change_of_the_config_can_let_a_waiting_request_in() -> None:
    scheduler = make(cache_size=1)
    load(scheduler, 1, "a", began=0.0, ready=1.0)
    assert scheduler.on_request(2, Wanted("b", GB), 2.0) == []
    wanted = scheduler.on_config(Limits(cache_size=2), lambda model: Wanted(model, GB), 3.0)
    assert wanted == [Load("b")]


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
    assert slot_of(scheduler, "a").active == {1}


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
    assert scheduler.on_done(1, 3.0) == []  # it may be asked for again at once
    assert scheduler.on_tick(4.0) == [Unload("a")]


def test_a_yielding_model_takes_newcomers_again_when_the_waiter_is_rejected() -> None:
    scheduler = make(cache_size=1)
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
    scheduler.on_done(1, 0.5)
    assert scheduler.on_unload_request("a", 1.0) == []
    assert scheduler.on_loaded("a", GB, 2.0) == [Unload("a")]
