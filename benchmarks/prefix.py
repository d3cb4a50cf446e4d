"""Prompts that begin as an earlier one did: asked again, after a swap, after a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import PATIENCE_SECONDS, ask_together
from benchmarks.measures import GROUPS, Plan, Say, in_turns
from benchmarks.model import AGENT_TEMPLATE, TINY, make_model, make_prompt
from benchmarks.processes import Process, environment, find_openblas
from benchmarks.report import Aim, Result, at_most, failed, quotient
from benchmarks.subjects import OURS, Host, HTTPSubject, our_server, rival

_MEMORY_GB = 4.0
_TOKENS = 2
_NEW_WORDS = 8
_LONG, _OTHER = "long", "other"

NO_DIFFERENCE = "a load with a short prompt took as long as one with the long prompt"


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds to the first text of one prompt, round by round: the first time, and again with a few
    new words at its end. ``load``: of a short prompt that brings the model back, too."""

    cold: list[float]
    warm: list[float]
    load: list[float]


@contextlib.contextmanager
def our_long_server(
    folder: Path, plan: Plan, openblas: str | None
) -> Iterator[tuple[HTTPSubject, Process]]:
    """Ours, with a model that reads long prompts, loaded, and another one; memory for one of them.
    What it keeps on disk stays in ``folder``."""
    library = find_openblas(openblas)
    models = folder / "models"
    if not models.exists():
        make_model(models / _LONG, plan.long_shape, template=AGENT_TEMPLATE)
        make_model(models / _OTHER, TINY)
    settings: dict[str, dict[str, Any]] = {
        "prefix_cache": {"memory_gb": _MEMORY_GB},
        "defaults": {"cache_size": 1, "stream_chunk_size": 1},
    }
    env = environment(folder, library)
    with our_server(folder, env, models=models, settings=settings) as (process, port):
        process.wait_until_healthy(port)
        fields = {"ignore_eos": True, "timeout": PATIENCE_SECONDS, "model": _LONG}
        subject = HTTPSubject(OURS, port, fields)
        subject.answer(["ready"], _TOKENS)
        process.wait_until_idle()
        process.check_openblas(library)
        yield subject, process


@contextlib.contextmanager
def both_servers(
    folder: Path, plan: Plan, openblas: str | None, against: int | None
) -> Iterator[list[tuple[HTTPSubject, Host]]]:
    """Ours and the one it is compared with, with the same model."""
    library = find_openblas(openblas)
    with our_long_server(folder, plan, openblas) as (ours, process):
        model = folder / "models" / _LONG
        env = environment(folder, library)
        with rival(folder, env, model, against) as (other, host):
            host.wait_until_healthy(other.port)
            other.answer(["ready"], _TOKENS)
            host.wait_until_idle()
            host.check_openblas(library)
            yield [(ours, process), (other, host)]


def again(
    folder: Path, say: Say, plan: Plan, openblas: str | None, against: int | None
) -> list[Result]:
    """A long prompt, and once more with a few words at its end."""
    say("starting")
    with both_servers(folder / "prefix", plan, openblas, against) as servers:
        waits = [Waits([], [], []) for _ in servers]
        for turn, index in in_turns(plan.long_rounds, len(servers)):
            subject, host = servers[index]
            say(f"{subject.name}: round {turn + 1} of {plan.long_rounds}")
            prompt = make_prompt(f"again {turn}", plan.prefix_words)
            waits[index].cold.append(_first_token(subject, host, prompt))
            waits[index].warm.append(_first_token(subject, host, _longer(prompt)))
    ours, theirs = waits
    other = servers[1][0].name
    return [
        _share("first token again ÷ the first time", ours.warm, ours.cold, at_most(0.05)),
        _share(f"the same, {other}", theirs.warm, theirs.cold, None),
        _share(f"first token the first time, ours ÷ {other}", ours.cold, theirs.cold, None),
        _share(f"first token again, ours ÷ {other}", ours.warm, theirs.warm, None),
    ]


def after_swap(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """The same after another model had the memory. Nobody else keeps prompts for that long."""
    say("starting")
    waits = Waits([], [], [])
    with our_long_server(folder / "prefix", plan, openblas) as (subject, process):
        other = HTTPSubject(OURS, subject.port, {**subject.fields, "model": _OTHER})
        _first_token(other, process, "ready")  # its first load has more to do
        _first_token(subject, process, "ready")
        for turn in range(plan.long_rounds):
            say(f"round {turn + 1} of {plan.long_rounds}")
            prompt = make_prompt(f"swap {turn}", plan.prefix_words)
            waits.cold.append(_first_token(subject, process, prompt))
            _first_token(other, process, f"swap {turn}")
            waits.load.append(_first_token(subject, process, f"load {turn}"))
            _first_token(other, process, f"back {turn}")
            waits.warm.append(_first_token(subject, process, _longer(prompt)))
    return survival("after a swap to another model and back", waits)


def after_restart(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """The same with a new process and the old directory."""
    waits = Waits([], [], [])
    prompts = [
        make_prompt(f"restart {turn}", plan.prefix_words) for turn in range(plan.long_rounds)
    ]
    say("the first time")
    with our_long_server(folder / "prefix", plan, openblas) as (subject, process):
        for prompt in prompts:
            waits.cold.append(_first_token(subject, process, prompt))
    say("a new process")
    with our_long_server(folder / "prefix", plan, openblas) as (subject, process):
        for prompt in prompts:
            waits.warm.append(_first_token(subject, process, _longer(prompt)))
    name = "first token after a restart ÷ the first time"
    return [_share(name, waits.warm, waits.cold, at_most(0.2))]


def _first_token(subject: HTTPSubject, host: Host, prompt: str) -> float:
    (answer,) = ask_together(subject.port, [subject.body(prompt, _TOKENS)], PATIENCE_SECONDS)
    host.wait_until_idle()
    return answer.first


def _longer(prompt: str) -> str:
    return f"{prompt} {make_prompt(prompt, _NEW_WORDS)}"


def survival(when: str, waits: Waits) -> list[Result]:
    """Where the load alone took as long as the load and the prompt, the difference says nothing:
    such a round is left out, and without any other the measurement fails."""
    rounds = list(zip(waits.warm, waits.load, waits.cold, strict=True))
    told = [(warm - load, cold) for warm, load, cold in rounds if warm > load]
    name = f"first token {when} ÷ the first time"
    bare_name = f"{name}, without the load"
    if told:
        without, cold = zip(*told, strict=True)
        remark = f"{len(told)} of {len(rounds)} rounds: in the others {NO_DIFFERENCE}"
        result = _share(
            bare_name, without, cold, at_most(0.2), remark if len(told) < len(rounds) else ""
        )
    else:
        result = failed(GROUPS["prefix"], bare_name, f"in every round {NO_DIFFERENCE}")
    return [result, _share(f"{name}, with it", waits.warm, waits.cold, None)]


def _share(
    name: str, above: Sequence[float], below: Sequence[float], aim: Aim | None, remark: str = ""
) -> Result:
    return quotient(GROUPS["prefix"], name, above, below, aim, remark)
