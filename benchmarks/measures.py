"""The measurements: what is run, how often, and what the numbers are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import PATIENCE_SECONDS, ask_repeatedly, ask_together
from benchmarks.model import BIG, FULL, LONG, SMALL, SWAPPED, TINY, Shape, make_model, make_prompt
from benchmarks.processes import Process, environment
from benchmarks.report import (
    Aim,
    Result,
    at_least,
    at_most,
    differences,
    median,
    number,
    percentile,
    ratios,
    spread,
)
from benchmarks.subjects import Contest, HTTPSubject, Run, our_server

GROUPS = {
    "decode": "Single-stream decoding",
    "aggregate": "Streams together",
    "ttft": "Time to first token",
    "cpu": "Server CPU per streamed token (scripted engine)",
    "passes": "Forward passes per generated token",
    "overhead": "Requests with one token (scripted engine)",
    "swap": "Two models, memory for one",
    "load": "Loading a model",
    "vision": "Chats about images",
    "prefix": "Prompts that begin as an earlier one did",
    "fairness": "A long prompt beside others",
    "speculation": "Guessing what an answer repeats (prompt_lookup)",
    "kv": "KV cache of fewer bits (kv_bits)",
}
NEED_MODEL = ("decode", "aggregate", "ttft")

SHORT_WORDS = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. ``tokens`` is the length of an answer; ``cpu_tokens`` at least so many
    are streamed per measurement, in answers of ``cpu_answer``."""

    shape: Shape = FULL
    rounds: int = 5
    tokens: int = 128
    streams: tuple[int, ...] = (2, 4, 8, 16, 32)
    first_tokens: int = 4
    long_words: int = 1000
    pass_tokens: int = 200
    cpu_tokens: int = 100_000
    cpu_answer: int = 1000
    load_streams: tuple[int, ...] = (1, 16, 64, 256)
    load_seconds: float = 4.0
    swap_shape: Shape = SWAPPED
    swap_requests: int = 18
    swap_tokens: int = 16
    swap_rounds: int = 3
    big_shape: Shape = BIG
    big_rounds: int = 5
    image_side: int = 448
    image_rounds: int = 5
    long_shape: Shape = LONG
    long_rounds: int = 3
    prefix_words: int = 4000
    system_words: int = 1400  # and 600 tokens of tools
    fairness_words: int = 8000
    lookup_tokens: int = 192
    lookup_rounds: int = 4
    kv_tokens: int = 64


QUICK = Plan(
    shape=SMALL,
    rounds=2,
    tokens=16,
    streams=(2, 8),
    first_tokens=2,
    long_words=200,
    pass_tokens=64,
    cpu_tokens=4_000,
    cpu_answer=100,
    load_streams=(1, 16, 64),
    load_seconds=0.5,
    swap_shape=TINY,
    swap_requests=8,
    swap_tokens=4,
    swap_rounds=2,
    big_shape=SMALL,
    big_rounds=2,
    image_side=64,
    image_rounds=2,
    long_shape=TINY,
    long_rounds=2,
    prefix_words=600,
    system_words=150,
    lookup_tokens=64,
    lookup_rounds=2,
    kv_tokens=8,
)


def in_turns(rounds: int, subjects: int) -> Iterator[tuple[int, int]]:
    """Whose turn it is: round and subject. Who begins changes with each round."""
    for turn in range(rounds):
        for place in range(subjects):
            yield turn, (turn + place) % subjects


# --- with the model: three subjects in turn -------------------------------------------------


def _prompts(kind: str, turn: int, streams: int, words: int = SHORT_WORDS) -> list[str]:
    return [make_prompt(f"{kind} {turn} {stream}", words) for stream in range(streams)]


def _rounds(
    contest: Contest, turns: int, prompts: Callable[[int], list[str]], tokens: int, say: Say
) -> list[list[Run]]:
    """All three answer the same prompts, one after the other, ``turns`` times; who begins changes.
    The runs of ours, of the other server and of the bare loop. A first turn is not counted."""
    runs: list[list[Run]] = [[] for _ in contest.subjects]
    for turn, index in in_turns(turns + 1, len(runs)):
        say(f"round {turn} of {turns}" if turn else "warming up")
        run = contest.answer(index, prompts(turn), tokens if turn else min(tokens, 4))
        if turn:
            runs[index].append(run)
    return runs


def _compared(
    group: str,
    name: str,
    theirs_name: str,
    rates: Sequence[Sequence[float]],
    unit: str,
    bare_aim: Aim | None,
    their_aim: Aim | None,
) -> Iterator[Result]:
    """Ours ÷ bare loop and ours ÷ the other server, by the median of the rounds' ratios."""
    ours, theirs, bare = rates
    for other, values, aim in (
        ("bare loop", bare, bare_aim),
        (theirs_name, theirs, their_aim),
    ):
        quotients = ratios(ours, values)
        yield Result(
            group,
            f"{name}: ours ÷ {other}",
            median(quotients),
            "x",
            aim,
            f"{number(median(ours))} ÷ {number(median(values))} {unit}; rounds {spread(quotients)}",
            samples={"ours": ours, other: values},
        )


def _same_text(group: str, name: str, runs: Sequence[Sequence[Run]]) -> Result:
    """Whether all three said the same, and read the same prompts."""
    turns = zip(*runs, strict=True)
    triples = [triple for turn in turns for triple in zip(*(r.answers for r in turn), strict=True)]
    same = sum(
        len({(answer.text, answer.prompt_tokens) for answer in triple}) == 1 for triple in triples
    )
    detail = f"{same} of {len(triples)} answers"
    return Result(
        group, f"{name}: same greedy text", 100 * same / len(triples), "%", at_least(100), detail
    )


def decode(contest: Contest, say: Say, plan: Plan) -> list[Result]:
    group = GROUPS["decode"]
    runs = _rounds(contest, plan.rounds, lambda t: _prompts("decode", t, 1), plan.tokens, say)
    rates = [[run.decode_rate for run in one] for one in runs]
    return [
        *_compared(group, "decode", contest.other, rates, "tokens/s", at_least(0.97), None),
        _same_text(group, "decode", runs),
    ]


def aggregate(contest: Contest, say: Say, plan: Plan, streams: int) -> list[Result]:
    group, name = GROUPS["aggregate"], f"{streams} streams"
    runs = _rounds(
        contest, plan.rounds, lambda t: _prompts(f"{streams} at once", t, streams), plan.tokens, say
    )
    rates = [[run.throughput for run in one] for one in runs]
    aims = (at_least(0.95), at_least(1.1) if streams >= 8 else None)
    return [
        *_compared(group, name, contest.other, rates, "tokens/s", *aims),
        _same_text(group, name, runs),
    ]


def first_token(contest: Contest, say: Say, plan: Plan) -> list[Result]:
    group = GROUPS["ttft"]
    turns = plan.rounds * plan.first_tokens
    runs = _rounds(contest, turns, lambda t: _prompts("first", t, 1), 4, say)
    ours, theirs, bare = ([1e3 * run.first_token for run in one] for one in runs)
    size = runs[0][0].answers[0].prompt_tokens
    results = []
    for other, values, aim in (("bare loop", bare, at_most(5)), (contest.other, theirs, None)):
        gaps = differences(ours, values)
        detail = f"{number(median(ours))} - {number(median(values))} ms; middle half of rounds "
        detail += spread([percentile(gaps, 25), percentile(gaps, 75)])
        name = f"{size}-token prompt: ours - {other}"
        samples = {"ours": ours, other: values}
        results.append(Result(group, name, median(gaps), "ms", aim, detail, samples=samples))
    return results


def first_token_long(contest: Contest, say: Say, plan: Plan) -> list[Result]:
    runs = _rounds(contest, plan.rounds, lambda t: _prompts("long", t, 1, plan.long_words), 4, say)
    times = [[1e3 * run.first_token for run in one] for one in runs]
    name = f"{runs[0][0].answers[0].prompt_tokens}-token prompt"
    return list(_compared(GROUPS["ttft"], name, contest.other, times, "ms", None, None))


# --- with the scripted engine: the server alone ---------------------------------------------


def cpu(folder: Path, say: Say, plan: Plan, chunk_tokens: int) -> list[Result]:
    """CPU time of the server's process over the tokens that it streamed. The requests themselves
    are included: an answer of ``cpu_answer`` tokens bears the cost of one."""
    results = []
    settings = {
        "server": {"max_queue": 1024},
        "defaults": {"max_batch_size": 1024, "stream_chunk_size": chunk_tokens},
    }
    env = environment(folder)
    scripted = ("--engine", "scripted")
    with our_server(folder, env, *scripted, models=folder, settings=settings) as (process, port):
        process.wait_until_healthy(port)
        subject = HTTPSubject("scripted", port, {"model": "scripted", "ignore_eos": True})
        for streams in plan.load_streams:
            bodies = [subject.body(f"question {i}", plan.cpu_answer) for i in range(streams)]
            ask_together(port, bodies, PATIENCE_SECONDS)
            repeats = math.ceil(plan.cpu_tokens / (streams * plan.cpu_answer))
            say(f"{streams} streams, {repeats} times")
            tokens = 0
            before = process.cpu_seconds()
            for _ in range(repeats):
                answers = ask_together(port, bodies, PATIENCE_SECONDS)
                tokens += sum(answer.completion_tokens for answer in answers)
            spent = process.cpu_seconds() - before
            if tokens != repeats * streams * plan.cpu_answer:
                raise RuntimeError(f"{tokens} tokens came back, not what was asked")
            results.append(
                Result(
                    GROUPS["cpu"],
                    f"{_streams(streams)}, {_chunks(chunk_tokens)}",
                    spent / tokens * 1e6,
                    "µs",
                    at_most(15),
                    f"{spent:.2f} s for {tokens} tokens in answers of {plan.cpu_answer}",
                )
            )
    return results


def overhead(folder: Path, say: Say, plan: Plan) -> list[Result]:
    """A closed loop: each stream asks again as soon as it has its answer."""
    results = []
    settings = {"server": {"max_queue": 1024}, "defaults": {"max_batch_size": 1024}}
    env = environment(folder)
    scripted = ("--engine", "scripted")
    with our_server(folder, env, *scripted, models=folder, settings=settings) as (process, port):
        process.wait_until_healthy(port)
        subject = HTTPSubject("scripted", port, {"model": "scripted", "ignore_eos": True})
        for streams in plan.load_streams:
            say(f"{streams} streams")
            bodies = [subject.body(f"question {i}", 1) for i in range(streams)]
            ask_repeatedly(port, bodies, plan.load_seconds / 4, PATIENCE_SECONDS)
            before = process.cpu_seconds()
            latencies, seconds = ask_repeatedly(port, bodies, plan.load_seconds, PATIENCE_SECONDS)
            spent = process.cpu_seconds() - before
            half, most = (1e3 * percentile(latencies, percent) for percent in (50, 99))
            results.append(
                Result(
                    GROUPS["overhead"],
                    _streams(streams),
                    len(latencies) / seconds,
                    "requests/s",
                    detail=f"latency p50 {number(half)} ms, p99 {number(most)} ms; "
                    f"CPU {number(1e3 * spent / len(latencies))} ms a request; "
                    f"{len(latencies)} requests",
                    samples={"p50 ms": [half], "p99 ms": [most]},
                )
            )
    return results


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _chunks(tokens: int) -> str:
    return "an event per token" if tokens == 1 else f"up to {tokens} tokens per event (default)"


# --- in process -----------------------------------------------------------------------------


def passes(folder: Path, say: Say, plan: Plan) -> list[Result]:
    """Passes are counted, not timed, so a tiny model and any BLAS will do."""
    say("counting")
    model = make_model(folder / "tiny", TINY)
    streams = [1, *plan.streams]
    arguments = ["-m", "benchmarks.passes", str(model), str(plan.pass_tokens)]
    arguments += [str(count) for count in streams]
    with Process("passes", arguments, environment(folder), folder, json_lines=True) as process:
        counted = {int(key): value for key, value in process.read_json(PATIENCE_SECONDS).items()}
    return [
        Result(
            GROUPS["passes"],
            f"{_streams(count)}: passes per token, times {count}",
            counted[count] / plan.pass_tokens,
            "",
            at_most(1.05),
            f"{counted[count]} passes for {count} x {plan.pass_tokens} tokens, prefill included; "
            "counted in process",
        )
        for count in streams
    ]
