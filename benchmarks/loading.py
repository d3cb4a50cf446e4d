"""How long a model takes to come, and what that costs those who are served meanwhile."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.client import PATIENCE_SECONDS, ask_in_turn
from benchmarks.measures import GROUPS, Plan, Say
from benchmarks.model import make_model, make_prompt
from benchmarks.processes import Process, environment, find_openblas
from benchmarks.report import Result, at_least, at_most, median, number, spread
from benchmarks.subjects import OURS, HTTPSubject, our_server
from benchmarks.watch import watch_streams

_WORDS = 20
_READERS = 4
_CHUNK_BYTES = 16 << 20
_STREAM_TOKENS = 4000  # at most: it is cut off
_STEPS_BEFORE = 20  # of a stream, from which its usual pace is known


class _Lab:
    """Our server with two large models, and a small one that others use meanwhile."""

    def __init__(self, process: Process, port: int, models: Path) -> None:
        self.process = process
        self.subject = HTTPSubject(OURS, port, {"ignore_eos": True, "timeout": PATIENCE_SECONDS})
        self.models = models
        self._asked = 0

    def body(self, model: str, tokens: int) -> bytes:
        self._asked += 1  # no two prompts begin alike
        return self.subject.body(make_prompt(f"{self._asked}", _WORDS), tokens, model=model)

    def first_token(self, model: str) -> float:
        """Seconds until the first text of a short answer."""
        source = iter([(0, self.body(model, 2))])
        (asked,) = ask_in_turn(self.subject.port, [source], PATIENCE_SECONDS)
        self.process.wait_until_idle()
        return asked.answer.first


@contextlib.contextmanager
def _lab(
    folder: Path, say: Say, plan: Plan, openblas: str | None, **defaults: int
) -> Iterator[_Lab]:
    library = find_openblas(openblas)
    models = folder / "models"
    if not models.exists():
        say("making three models")
        make_model(models / "small", plan.swap_shape)
        make_model(models / "big-0", plan.big_shape)
        shutil.copytree(models / "big-0", models / "big-1")
    say("starting mlx-router")
    env = environment(folder, library)
    settings = {"defaults": defaults}
    with our_server(folder, env, models=models, settings=settings) as (process, port):
        process.wait_until_healthy(port)
        lab = _Lab(process, port, models)
        for model in ("big-0", "big-1", "small"):  # the first load of each has more to do
            lab.first_token(model)
        process.check_openblas(library)
        yield lab


def efficiency(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """Two large models and memory for one: time to the first token of a swap, against reading the
    files and computing the first token of a model that is there."""
    kinds = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    with _lab(folder / "load", say, plan, openblas, cache_size=1) as lab:
        for turn in range(plan.big_rounds * len(kinds)):
            kind = kinds[turn % len(kinds)]
            model = f"big-{turn % 2}"
            say(f"{kind}: round {turn // len(kinds) + 1} of {plan.big_rounds}")
            files = sorted((lab.models / model).glob("*.safetensors"))
            lab.first_token(f"big-{1 - turn % 2}")
            if kind == "cold":
                _forget(files)
            read = _read(files)
            if kind == "cold":
                _forget(files)
            swap = lab.first_token(model)
            found[kind].append((read, lab.first_token(model), swap))
    return [_efficiency(kind, runs) for kind, runs in found.items()]


def _efficiency(kind: str, runs: list[tuple[float, float, float]]) -> Result:
    values = [(read + forward) / swap for read, forward, swap in runs]
    reads, forwards, swaps = (list(column) for column in zip(*runs, strict=True))
    return Result(
        GROUPS["load"],
        f"page cache {kind}: (read + first token) ÷ first token of a swap",
        median(values),
        "x",
        at_least(0.8),
        f"({number(median(reads))} + {number(median(forwards))}) ÷ {number(median(swaps))} s; "
        f"rounds {spread(values)}",
        samples={"read s": reads, "first token s": forwards, "swap s": swaps},
    )


def stall(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """The longest gap in a stream of the small model while a large one comes in the place of
    another."""
    longest: list[float] = []
    steps: list[float] = []
    waits: list[float] = []
    settings = {"cache_size": 2, "stream_chunk_size": 1}
    with _lab(folder / "load", say, plan, openblas, **settings) as lab:
        lab.first_token("big-1")
        for turn in range(plan.big_rounds):
            say(f"stream beside a load: round {turn + 1} of {plan.big_rounds}")
            _forget(sorted((lab.models / f"big-{turn % 2}").glob("*.safetensors")))
            stream = lab.body("small", _STREAM_TOKENS)
            other = lab.body(f"big-{turn % 2}", 2)
            seen = watch_streams(
                lab.subject.port, [stream], other, _STEPS_BEFORE, PATIENCE_SECONDS, queued=True
            )
            longest.append(1e3 * max(seen.meanwhile))
            steps.append(1e3 * median(seen.before))
            waits.append(seen.waited)
            lab.process.wait_until_idle()
    limit = 3 * median(steps) + 50
    return [
        Result(
            GROUPS["load"],
            "longest gap of a stream while another model comes",
            median(longest),
            "ms",
            at_most(round(limit, 1)),
            f"a step takes {number(median(steps))} ms, the load {number(median(waits))} s; the aim "
            f"is 3 steps + 50 ms; rounds {spread(longest)}",
            samples={"longest gap ms": longest, "step ms": steps},
        )
    ]


def _read(files: list[Path]) -> float:
    """Seconds to read files into memory of one's own, as a load has to, by four threads."""
    begin = time.perf_counter()
    for file in files:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as source, mmap.mmap(-1, size) as memory:
            view = memoryview(memory)

            def read(offset: int, source: int = source.fileno(), view: memoryview = view) -> None:
                os.preadv(source, [view[offset : offset + _CHUNK_BYTES]], offset)

            with ThreadPoolExecutor(_READERS) as readers:
                list(readers.map(read, range(0, size, _CHUNK_BYTES)))
            view.release()
    return time.perf_counter() - begin


def _forget(files: list[Path]) -> None:
    """Out of the page cache, where the system can be told so."""
    if hasattr(os, "posix_fadvise"):
        for file in files:
            with file.open("rb") as source:
                os.fsync(source.fileno())  # pages that are not written yet would stay
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
