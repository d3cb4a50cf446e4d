"""Swaps and waits of clients that want different models, on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from mlx_router.scheduling import Effect, Grant, Limits, Load, Reject, Scheduler, Unload, Wanted
from tests.test_scheduler import Room

LOAD = 2.0
UNLOAD = 0.1
BETWEEN = 0.02  # from an answer to the client's next request


@dataclass
class Run:
    """What became of the requests of clients that ask one after the other."""

    loads: int = 0
    waits: list[float] = field(default_factory=list)


def simulate(clients: Sequence[Sequence[str]], limits: Limits, answer: float) -> Run:
    """Each client asks for its models in turn; an answer takes ``answer`` seconds, whoever else is
    served by the same model, as in a batch."""
    scheduler = Scheduler(limits)
    scheduler.on_memory(Room())
    run, ids = Run(), itertools.count()
    events: list[tuple[float, int, Callable[[float], list[Effect]]]] = []
    came: dict[int, float] = {}
    left = {number: iter(models) for number, models in enumerate(clients)}
    owner: dict[int, int] = {}

    def at(time: float, action: Callable[[float], list[Effect]]) -> None:
        heapq.heappush(events, (time, next(ids), action))

    def ask(client: int, now: float) -> list[Effect]:
        model = next(left[client], None)
        if model is None:
            return []
        request = next(ids)
        came[request], owner[request] = now, client
        return scheduler.on_request(request, Wanted(model, 1), now)

    def finish(request: int, now: float) -> list[Effect]:
        at(now + BETWEEN, lambda later: ask(owner[request], later))
        return scheduler.on_done(request, now)

    for client in left:
        at(0.001 * client, lambda now, client=client: ask(client, now))  # type: ignore[misc]
    ticks: set[float] = set()
    while events:
        now, _, action = heapq.heappop(events)
        for effect in action(now):
            assert not isinstance(effect, Reject)
            if isinstance(effect, Load):
                run.loads += 1
                at(now + LOAD, lambda t, m=effect.model: scheduler.on_loaded(m, 1, t))  # type: ignore[misc]
            elif isinstance(effect, Unload):
                at(now + UNLOAD, lambda t, m=effect.model: scheduler.on_unloaded(m, t))  # type: ignore[misc]
            elif isinstance(effect, Grant):
                run.waits.append(now - came[effect.request])
                at(now + answer, lambda t, r=effect.request: finish(r, t))  # type: ignore[misc]
        due = scheduler.next_tick(now)
        if due is not None and scheduler.queue() and due not in ticks:
            ticks.add(due)
            at(due, scheduler.on_tick)
    return run


def fifo_wait(answer: float) -> float:
    """What a request of two clients with a model each waits if every request swaps: the other's
    load and answer, and its own load."""
    return 2 * (LOAD + UNLOAD) + answer


@pytest.mark.parametrize("answer", [0.1, 0.5, 1.0])
def test_two_clients_with_a_model_each_do_not_swap_on_every_request(answer: float) -> None:
    count = 60
    run = simulate([["a"] * count, ["b"] * count], Limits(cache_size=1), answer)
    assert len(run.waits) == 2 * count
    assert run.loads <= 2 * count / 3
    assert max(run.waits) <= 3 * fifo_wait(answer)


def test_long_answers_swap_as_if_in_order_and_nobody_waits_longer() -> None:
    """Where a swap is cheap beside an answer, there is nothing to be saved by waiting."""
    run = simulate([["a"] * 20, ["b"] * 20], Limits(cache_size=1), answer=30.0)
    assert max(run.waits) <= 1.5 * fifo_wait(30.0)


def test_eighteen_requests_for_two_models_six_at_a_time() -> None:
    clients = [["a", "b", "a"] if number % 2 else ["b", "a", "b"] for number in range(6)]
    run = simulate(clients, Limits(cache_size=1), answer=0.5)
    assert len(run.waits) == 18
    assert run.loads <= 6


def test_six_models_in_two_places_take_turns() -> None:
    """Fair: the models' turns are equally long, and each waits for two of the three rounds."""
    models = "abcdef"
    clients = [[model] * 10 for model in models for _ in range(5)]
    run = simulate(clients, Limits(cache_size=2), answer=0.5)
    assert len(run.waits) == 300
    turn = 3 * LOAD + UNLOAD + LOAD + 0.5
    assert max(run.waits) <= 3 * 2 * turn
    assert run.loads <= 18
