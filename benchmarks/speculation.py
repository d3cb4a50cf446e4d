"""Prompt lookup: what it brings where an answer copies, and costs where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.measures import GROUPS, SHORT_WORDS, Plan, Say, in_turns
from benchmarks.model import make_model, make_prompt, recital
from benchmarks.processes import Process, environment, find_openblas
from benchmarks.report import Result, at_least, median, number, ratios, spread
from benchmarks.subjects import OURS, RUN_SECONDS, HTTPSubject, Run, our_server

_COPIES, _TALKS = "copies", "talks"


def speculation(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """Two servers, with ``prompt_lookup`` and without, and two models: one says again what stands
    in its prompt, word by word, and the other never does."""
    library = find_openblas(openblas)
    say("making two models")
    folder = folder / "speculation"
    models = folder / "models"
    make_model(models / _TALKS, plan.shape)
    make_model(models / _COPIES, plan.shape, recites=True)
    for name in ("on", "off"):
        (folder / name).mkdir()
    env = environment(folder, library)
    say("starting two servers")
    with (
        our_server(folder / "on", env, models=models, settings=_settings(True)) as on,
        our_server(folder / "off", env, models=models, settings=_settings(False)) as off,
    ):
        for process, port in (on, off):
            process.wait_until_healthy(port)
            for model in (_COPIES, _TALKS):
                _ask(process, port, model, "ready", 2)
            process.check_openblas(library)
        return [
            *_compare(
                "an answer that copies", _COPIES, lambda _: " ".join(recital()), on, off, say, plan
            ),
            *_compare(
                "an answer that does not",
                _TALKS,
                lambda turn: make_prompt(f"lookup {turn}", SHORT_WORDS),
                on,
                off,
                say,
                plan,
            ),
        ]


def _settings(lookup: bool) -> dict[str, dict[str, object]]:
    return {
        "defaults": {"prompt_lookup": lookup, "cache_size": 2},
        "prefix_cache": {"memory_gb": 0, "disk_gb": 0},
    }


def _ask(process: Process, port: int, model: str, prompt: str, tokens: int) -> Run:
    fields = {"ignore_eos": True, "timeout": RUN_SECONDS, "model": model}
    run = HTTPSubject(OURS, port, fields).answer([prompt], tokens)
    process.wait_until_idle()
    return run


def _compare(
    name: str,
    model: str,
    prompt: Callable[[int], str],
    on: tuple[Process, int],
    off: tuple[Process, int],
    say: Say,
    plan: Plan,
) -> list[Result]:
    runs: tuple[list[Run], list[Run]] = ([], [])
    for turn, index in in_turns(plan.lookup_rounds + 1, 2):
        say(f"{name}: round {turn} of {plan.lookup_rounds}" if turn else f"{name}: warming up")
        run = _ask(*(on, off)[index], model, prompt(turn), plan.lookup_tokens)
        if turn:
            runs[index].append(run)
    rates = [[run.decode_rate for run in one] for one in runs]
    quotients = ratios(*rates)
    same = [a.texts == b.texts for a, b in zip(*runs, strict=True)]
    group = GROUPS["speculation"]
    return [
        Result(
            group,
            f"{name}: with prompt_lookup ÷ without",
            median(quotients),
            "x",
            at_least(1.5 if model == _COPIES else 0.95),
            f"{number(median(rates[0]))} ÷ {number(median(rates[1]))} tokens/s; "
            f"rounds {spread(quotients)}",
            samples={"with": rates[0], "without": rates[1]},
        ),
        Result(
            group,
            f"{name}: same greedy text",
            100 * sum(same) / len(same),
            "%",
            at_least(100),
            f"{sum(same)} of {len(same)} answers",
        ),
    ]
