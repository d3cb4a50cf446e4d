"""Drafting costs nothing where it does not help."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import mlx.core as mx
import pytest

from mlx_router.engine.speculation.lookup import Lookup
from mlx_router.engine.speculation.loop import Speculation
from mlx_router.engine.speculation.pace import MOST, Pace
from tests.speculation_support import (
    GREEDY,
    Held,
    Script,
    run,
)

# --- only when it helps ---------------------------------------------------------------------


def measured(seconds: Callable[[int], float], sizes: Sequence[int] = range(MOST + 1)) -> Pace:
    """What is known after a few steps of each size, by drafted tokens."""
    pace = Pace()
    for size in sizes:
        for _ in range(3):
            pace.record(size, seconds(size))
    pace.record(0, seconds(0))
    return pace


def test_nothing_is_drafted_before_it_is_known_how_long_a_plain_step_takes() -> None:
    pace = Pace()
    assert (pace.measured, pace.count(1.0), pace.gain(1.0)) == (False, 0, 1.0)
    pace.record(0, 60.0)  # the first one compiles kernels
    assert (pace.measured, pace.count(1.0)) == (False, 0)
    pace.record(0, 1.0)
    assert (pace.measured, pace.count(1.0)) == (True, MOST)


def test_more_is_drafted_where_guesses_are_better_and_passes_cost_less() -> None:
    cheap, dear = measured(lambda n: 1 + 0.05 * n), measured(lambda n: 1 + 0.4 * n)
    counts = [cheap.count(likely) for likely in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == MOST
    assert 0 < dear.count(0.7) < cheap.count(0.7)
    assert cheap.gain(0.9) > cheap.gain(0.6) > cheap.gain(0.3) > 1


def test_nothing_is_drafted_where_a_pass_costs_as_much_as_its_tokens_alone() -> None:
    pace = measured(lambda n: 1.0 + n)
    assert [pace.count(likely) for likely in (0.5, 0.9, 1.0)] == [0, 0, 0]
    assert not pace.worth(1.0)


def test_a_small_gain_is_not_worth_changing_over() -> None:
    pace = measured(lambda n: 1 + 0.3 * n)
    assert pace.count(0.4) > 0
    assert not pace.worth(0.4)
    assert pace.worth(0.9)


def test_one_slow_step_changes_nothing() -> None:
    pace = measured(lambda n: 1 + 0.1 * n)
    before = pace.count(0.8)
    pace.record(before, 100.0)
    assert pace.count(0.8) == before


def test_plain_decoding_is_measured_now_and_then() -> None:
    pace = measured(lambda n: 1 + 0.05 * n)
    steps = 0
    while pace.count(0.9):
        pace.record(pace.count(0.9), 1.4)
        steps += 1
        assert steps < 100
    assert pace.gain(0.9) > 1
    pace.record(0, 1.0)
    assert pace.count(0.9) > 0


def test_a_size_that_was_slow_is_tried_again() -> None:
    pace = measured(lambda n: 1.0 if n == 0 else 20.0)
    steps = 0
    while not pace.count(1.0):
        pace.record(0, 1.0)
        steps += 1
        assert steps < 1000
    assert steps > 200


def repeating() -> tuple[list[int], list[int]]:
    source = random.Random(5).sample(range(10_000), 400)
    return source, source[100:300]


class Copying(Script):
    """A model that copies its prompt, or says what was never said."""

    def __init__(self, answer: list[int], start: int, seconds: Callable[[int], float]) -> None:
        super().__init__(seconds)
        self._answer = answer
        self._start = start

    def __call__(self, ids: mx.array, cache: list[Held]) -> mx.array:
        logits = mx.zeros((1, ids.shape[1], 20_000))
        for row, token in enumerate(ids[0].tolist()):  # type: ignore[arg-type]
            cache[0].tokens.append(token)
            place = len(cache[0].tokens) - self._start
            logits[0, row, self._answer[place] if place < len(self._answer) else 0] = 1.0
        self.passes += 1
        self.now += self._seconds(ids.shape[1])
        return logits


@pytest.mark.parametrize(
    ("copies", "seconds", "least", "most"),
    [
        (True, lambda n: 1 + 0.05 * n, 0.0, 0.3),
        (True, lambda n: 1.0 * n, 0.9, 1.1),
        (False, lambda n: 1 + 0.05 * n, 0.95, 1.02),
    ],
    ids=["copying", "copying where passes cost what their tokens cost", "not copying"],
)
def test_an_answer_takes_no_longer_than_without_drafts_and_less_where_it_copies(
    copies: bool, seconds: Callable[[int], float], least: float, most: float
) -> None:
    source, answer = repeating()
    if not copies:
        answer = list(range(11_000, 11_200))
    model, held = Copying(answer, len(source), seconds), Held()
    held.tokens = source[:-1]
    speculation = Speculation(
        model,
        [held],
        source,
        0,
        GREEDY,
        Lookup(source),
        stop_ids=frozenset(),
        remaining=len(answer),
        clock=lambda: model.now,
    )
    assert run(speculation) == answer
    assert least <= model.now / (len(answer) * seconds(1)) <= most
    assert speculation.helps == (copies and most < 0.5)
