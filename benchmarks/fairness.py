"""A long prompt beside others: what streams notice of it, what it costs it, who goes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import PATIENCE_SECONDS, ask_together
from benchmarks.measures import GROUPS, SHORT_WORDS, Plan, Say, in_turns
from benchmarks.model import make_prompt
from benchmarks.prefix import both_servers
from benchmarks.report import Aim, Result, at_most, median, number, quotient
from benchmarks.subjects import Host, HTTPSubject
from benchmarks.watch import overtake, watch_streams

_STREAMS = 4
_STREAM_TOKENS = 4000  # at most: they are cut off
_STEPS_BEFORE = 20
_SLICE_SECONDS, _SLICE_STEPS = 0.25, 4  # what a slice of ours may take: the longer of the two,
_SLICE_TOKENS = 512  # but no more than the time of so many tokens (prefill_step_size)
_SHARE = 0.3  # of a long prefill, after which a short request comes


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds. ``alone``, ``beside``: to the long prompt's first text, beside streams or not;
    ``most``: what a slice of the prompt takes at most, by its time alone; ``gaps``: between the
    pieces of each stream meanwhile; ``step``: the median one before;
    ``left``: of the long prefill, when a short request came, which waited for ``short``."""

    alone: float
    beside: float
    most: float
    gaps: Sequence[float]
    step: float
    left: float
    short: float

    @property
    def longest_gap(self) -> float:
        return max(self.gaps)

    @property
    def slice(self) -> float:
        """The time that our server plans for a slice of the prompt."""
        return min(self.most, max(_SLICE_SECONDS, _SLICE_STEPS * self.step))


def fairness(
    folder: Path, say: Say, plan: Plan, openblas: str | None, against: int | None
) -> list[Result]:
    say("starting")
    with both_servers(folder / "prefix", plan, openblas, against) as servers:
        runs: list[list[Round]] = [[] for _ in servers]
        for subject, host in servers:  # the first long prompt of a server takes longer
            say(f"{subject.name}: warming up")
            ask_together(
                subject.port,
                [subject.body(make_prompt("warming up", plan.fairness_words), 2)],
                PATIENCE_SECONDS,
            )
            host.wait_until_idle()
        for turn, index in in_turns(plan.long_rounds, len(servers)):
            subject, host = servers[index]
            say(f"{subject.name}: round {turn + 1} of {plan.long_rounds}")
            runs[index].append(_round(subject, host, turn, plan.fairness_words))
    return _results(servers[1][0].name, *runs)


def _round(subject: HTTPSubject, host: Host, turn: int, words: int) -> Round:
    def long(name: str) -> bytes:
        return subject.body(make_prompt(f"{name} {turn}", words), 2)

    (answer,) = ask_together(subject.port, [long("alone")], PATIENCE_SECONDS)
    host.wait_until_idle()
    streams = [
        subject.body(make_prompt(f"stream {turn} {number}", SHORT_WORDS), _STREAM_TOKENS)
        for number in range(_STREAMS)
    ]
    seen = watch_streams(subject.port, streams, long("beside"), _STEPS_BEFORE, PATIENCE_SECONDS)
    host.wait_until_idle()
    short = subject.body(make_prompt(f"short {turn}", SHORT_WORDS), 2)
    after = _SHARE * answer.first
    left, waited = overtake(subject.port, long("overtaken"), short, after, PATIENCE_SECONDS)
    host.wait_until_idle()
    return Round(
        alone=answer.first,
        beside=seen.waited,
        most=answer.first * min(1.0, _SLICE_TOKENS / answer.prompt_tokens),
        gaps=seen.meanwhile,
        step=median(seen.before),
        left=left,
        short=waited,
    )


def _results(other: str, ours: Sequence[Round], theirs: Sequence[Round]) -> list[Result]:
    longest, slices = [run.longest_gap for run in ours], [run.slice for run in ours]
    usual = 1e3 * median([median(run.gaps) for run in ours])
    step = 1e3 * median([run.step for run in ours])
    return [
        _result(
            f"longest gap of {_STREAMS} streams ÷ a slice",
            longest,
            slices,
            at_most(1.5),
            f"the median gap meanwhile {number(usual)} ms; a step takes {number(step)} ms",
        ),
        _result(
            f"longest gap of {_STREAMS} streams, ours ÷ {other}",
            longest,
            [run.longest_gap for run in theirs],
        ),
        _cost("", ours, at_most(1.3)),
        _cost(f", {other}", theirs, None),
        _early("", ours, at_most(1)),
        _early(f", {other}", theirs, None),
    ]


def _cost(whose: str, runs: Sequence[Round], aim: Aim | None) -> Result:
    return _result(
        f"first token of a long prompt, beside {_STREAMS} streams ÷ alone{whose}",
        [run.beside for run in runs],
        [run.alone for run in runs],
        aim,
    )


def _early(whose: str, runs: Sequence[Round], aim: Aim | None) -> Result:
    return _result(
        f"first token of a short request ÷ that of the long one before it{whose}",
        [run.short for run in runs],
        [run.left for run in runs],
        aim,
        "below 1: it came first",
    )


def _result(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    aim: Aim | None = None,
    remark: str = "",
) -> Result:
    return quotient(GROUPS["fairness"], name, above, below, aim, remark)
