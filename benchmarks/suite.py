"""Runs the measurements that were asked for; one that fails is reported, and the others go on."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks import measures, prefix
from benchmarks.agent import agent
from benchmarks.fairness import fairness
from benchmarks.kv import kv
from benchmarks.loading import efficiency, stall
from benchmarks.measures import GROUPS, Plan, Say
from benchmarks.model import make_model
from benchmarks.processes import find_openblas
from benchmarks.report import Result, failed
from benchmarks.speculation import speculation
from benchmarks.subjects import Contest, contest
from benchmarks.swap import swap
from benchmarks.vision import vision

T = TypeVar("T")


class Progress:
    """One line on standard error that says what is going on; on a terminal it is overwritten."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._start:4.0f} s] {text.splitlines()[0]}"
        sys.stderr.write(f"\r\x1b[K{line[:100]}" if self._live else f"{line}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")


class Suite:
    """``openblas``: as :func:`benchmarks.processes.find_openblas` takes it. ``facts`` are filled
    with what a report should say of the run. ``against``: as :func:`benchmarks.subjects.rival`
    takes it."""

    def __init__(
        self, plan: Plan, openblas: str | None, progress: Progress, against: int | None = None
    ) -> None:
        self.results: list[Result] = []
        self.facts: dict[str, str] = {}
        self._plan = plan
        self._openblas = openblas
        self._progress = progress
        self._against = against

    def run(self, groups: Sequence[str]) -> None:
        """Measure these groups of :data:`benchmarks.measures.GROUPS`. Takes minutes."""
        plan, openblas, against = self._plan, self._openblas, self._against
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
            folder = Path(temporary)
            alone = {
                "cpu": [
                    ("an event per token", partial(measures.cpu, plan=plan, chunk_tokens=1)),
                    ("default events", partial(measures.cpu, plan=plan, chunk_tokens=8)),
                ],
                "passes": [("passes", partial(measures.passes, plan=plan))],
                "overhead": [("overhead", partial(measures.overhead, plan=plan))],
                "swap": [("swap", partial(swap, plan=plan, openblas=openblas))],
                "load": [
                    ("efficiency", partial(efficiency, plan=plan, openblas=openblas)),
                    ("a stream meanwhile", partial(stall, plan=plan, openblas=openblas)),
                ],
                "vision": [("turns and gaps", partial(vision, plan=plan, openblas=openblas))],
                "prefix": [
                    ("again", partial(prefix.again, plan=plan, openblas=openblas, against=against)),
                    ("after a swap", partial(prefix.after_swap, plan=plan, openblas=openblas)),
                    (
                        "after a restart",
                        partial(prefix.after_restart, plan=plan, openblas=openblas),
                    ),
                    (
                        "an agent's conversation",
                        partial(agent, plan=plan, openblas=openblas, against=against),
                    ),
                ],
                "fairness": [
                    (
                        "a long prompt",
                        partial(fairness, plan=plan, openblas=openblas, against=against),
                    )
                ],
                "speculation": [
                    ("prompt lookup", partial(speculation, plan=plan, openblas=openblas))
                ],
                "kv": [("8 and 4 bits", partial(kv, plan=plan))],
            }
            for group in groups:
                for name, measure in alone.get(group, ()):
                    self._attempt(group, name, measure, folder)
            self._compare(groups, folder)
        order = list(GROUPS.values())
        self.results.sort(key=lambda result: order.index(result.group))
        self._progress.clear()

    def _compare(self, groups: Sequence[str], folder: Path) -> None:
        """What needs all three subjects with the model."""
        plan = self._plan
        together = [
            (f"{n} streams", partial(measures.aggregate, plan=plan, streams=n))
            for n in plan.streams
        ]
        comparisons = {
            "decode": [("decode", partial(measures.decode, plan=plan))],
            "aggregate": together,
            "ttft": [
                ("short prompt", partial(measures.first_token, plan=plan)),
                ("long prompt", partial(measures.first_token_long, plan=plan)),
            ],
        }
        items = [(group, *item) for group in groups for item in comparisons.get(group, ())]
        if not items:
            return
        self.facts["model"] = str(plan.shape)
        with contextlib.ExitStack() as stack:
            try:
                three = self._start(stack, folder)
            except Exception as error:
                self._progress.say(f"FAILED: {_reason(error)}")
                self.results += [failed(GROUPS[g], name, _reason(error)) for g, name, _ in items]
                return
            for group, name, measure in items:
                self._attempt(group, name, measure, three)

    def _start(self, stack: contextlib.ExitStack, folder: Path) -> Contest:
        library = find_openblas(self._openblas)
        self._progress.say("making the model")
        model = make_model(folder / "models" / "benchmark" / "random", self._plan.shape)
        self._progress.say("starting mlx-router, the other server and the bare loop")
        three = stack.enter_context(contest(model, folder, library, self._against))
        blas = "MLX's own" if library is None else "OpenBLAS, preloaded, 1 thread"
        self.facts["BLAS"] = f"{blas}: {three.gflops:.1f} GFLOP/s in float32"
        return three

    def _attempt(
        self, group: str, name: str, measure: Callable[[T, Say], list[Result]], subject: T
    ) -> None:
        def say(text: str) -> None:
            self._progress.say(f"{GROUPS[group]}: {name}: {text}")

        try:
            self.results += measure(subject, say)
        except Exception as error:
            say(f"FAILED: {_reason(error)}")
            self.results.append(failed(GROUPS[group], name, _reason(error)))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
