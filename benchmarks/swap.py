"""Two models and memory for one: how often they are swapped, and how long who waits."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import PATIENCE_SECONDS, Asked, ask_in_turn
from benchmarks.measures import GROUPS, Plan, Say, in_turns
from benchmarks.model import make_model, make_prompt
from benchmarks.processes import Process, environment, find_openblas
from benchmarks.report import Result, at_most, median, number, ratios, spread
from benchmarks.subjects import MLX_LM, OURS, HTTPSubject, mlx_lm_server, our_server

_WORDS = 20

Requests = Iterator[tuple[int, bytes]]  # which model, and the body


@dataclass(frozen=True, slots=True)
class Trace:
    """What clients ask for: model 0 or 1 in every request, from one source for each client."""

    name: str
    sources: Callable[[int], list[Iterator[int]]]


def _back_to_back(requests: int) -> list[Iterator[int]]:
    return [itertools.repeat(model, requests // 2) for model in (0, 1)]


def _alternately(requests: int) -> list[Iterator[int]]:
    order = iter([number % 2 for number in range(requests)])
    return [order] * 6


TRACES = (
    Trace("two clients, each with its model", _back_to_back),
    Trace("six at a time, alternately", _alternately),
)


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a trace. ``waits``: seconds to the first text of each request."""

    swaps: int
    waits: Sequence[float]
    seconds: float


def served(asked: Sequence[Asked], resident: int) -> Served:
    """``asked`` by when their first text came. With memory for one model, another model's text is
    a swap; ``resident`` is the one that was there at the start."""
    models = [resident, *(one.source for one in asked)]
    return Served(
        swaps=sum(one != other for one, other in itertools.pairwise(models)),
        waits=[one.answer.first for one in asked],
        seconds=max(one.sent + one.answer.end for one in asked),
    )


@dataclass(frozen=True, slots=True)
class Swapper:
    """A server, and what each of the two models is called there."""

    subject: HTTPSubject
    process: Process
    models: Sequence[str]

    def serve(self, trace: Trace, plan: Plan, turn: int) -> Served:
        """Begins with model 0 in memory. Raises as :class:`benchmarks.subjects.Subject`."""
        name = f"{trace.name} {turn}"
        ask_in_turn(
            self.subject.port, [self.requests(f"{name} before", iter([0]), 2)], PATIENCE_SECONDS
        )
        self.process.wait_until_idle()
        # Clients of one source share its requests, so they share the iterator over their bodies.
        sources = trace.sources(plan.swap_requests)
        bodies = {
            id(source): self.requests(f"{name} {number}", source, plan.swap_tokens)
            for number, source in enumerate(sources)
        }
        asked = ask_in_turn(
            self.subject.port, [bodies[id(one)] for one in sources], PATIENCE_SECONDS
        )
        return served(asked, resident=0)

    def requests(self, name: str, models: Iterator[int], tokens: int) -> Requests:
        for count, model in enumerate(models):
            prompt = make_prompt(f"{name} {count}", _WORDS)
            yield model, self.subject.body(prompt, tokens, model=self.models[model])


def swap(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """Ours and mlx_lm.server serve the same traces, in turns."""
    library = find_openblas(openblas)
    say("making two models")
    folder = folder / "swap"
    first = make_model(folder / "models" / "model-0", plan.swap_shape)
    second = folder / "models" / "model-1"
    shutil.copytree(first, second)
    env = environment(folder, library)
    settings = {"defaults": {"cache_size": 1}}
    with (
        mlx_lm_server(folder, env, first) as (theirs, their_port),
        our_server(folder, env, models=folder / "models", settings=settings) as (ours, our_port),
    ):
        theirs.wait_until_healthy(their_port)
        ours.wait_until_healthy(our_port)
        swappers = (
            Swapper(
                HTTPSubject(OURS, our_port, {"ignore_eos": True, "timeout": PATIENCE_SECONDS}),
                ours,
                (first.name, second.name),
            ),
            Swapper(HTTPSubject(MLX_LM, their_port), theirs, (str(first), str(second))),
        )
        results = []
        for swapper in swappers:  # the first load of each model has more to do
            ask_in_turn(
                swapper.subject.port, [swapper.requests("0", iter([1, 0]), 2)], PATIENCE_SECONDS
            )
            swapper.process.check_openblas(library)
        for trace in TRACES:
            runs: tuple[list[Served], list[Served]] = ([], [])
            for turn, index in in_turns(plan.swap_rounds, 2):
                say(f"{trace.name}: round {turn + 1} of {plan.swap_rounds}")
                runs[index].append(swappers[index].serve(trace, plan, turn))
                swappers[index].process.wait_until_idle()
            results += list(_compared(trace.name, *runs))
    return results


def _compared(name: str, ours: Sequence[Served], theirs: Sequence[Served]) -> Iterator[Result]:
    group = GROUPS["swap"]
    swaps = [[float(run.swaps) for run in runs] for runs in (ours, theirs)]
    # The fair share: what one waits on average where all are served in the order in which they
    # came, as mlx_lm.server does.
    shares = [sum(run.waits) / len(run.waits) for run in theirs]
    longest = [max(run.waits) for run in ours]
    seconds = [[run.seconds for run in runs] for runs in (ours, theirs)]
    requests = len(ours[0].waits)
    quotients = ratios(*swaps)
    yield Result(
        group,
        f"{name}: swaps, ours ÷ mlx_lm.server",
        median(quotients),
        "x",
        at_most(round(1 / 3, 3)),
        f"{number(median(swaps[0]))} ÷ {number(median(swaps[1]))} for {requests} requests; "
        f"rounds {spread(quotients)}",
        samples={"ours": swaps[0], MLX_LM: swaps[1]},
    )
    quotients = ratios(longest, shares)
    worst = [max(run.waits) for run in theirs]
    yield Result(
        group,
        f"{name}: longest wait ÷ fair share",
        median(quotients),
        "x",
        at_most(3),
        f"{number(median(longest))} ÷ {number(median(shares))} s; rounds {spread(quotients)}; "
        f"the longest of mlx_lm.server {number(median(worst))} s",
        samples={"longest": longest, "fair share": shares, f"longest of {MLX_LM}": worst},
    )
    quotients = ratios(*seconds)
    mean = median([math.fsum(run.waits) / len(run.waits) for run in ours])
    yield Result(
        group,
        f"{name}: time for all, ours ÷ mlx_lm.server",
        median(quotients),
        "x",
        None,
        f"{number(median(seconds[0]))} ÷ {number(median(seconds[1]))} s; "
        f"rounds {spread(quotients)}; mean wait {number(mean)} ÷ {number(median(shares))} s",
        samples={"ours": seconds[0], MLX_LM: seconds[1]},
    )
