"""An agent's conversation: how much of its prompts is computed, and how long it waits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import PATIENCE_SECONDS, Answer, ask_together
from benchmarks.measures import GROUPS, Plan, Say, in_turns
from benchmarks.model import make_prompt
from benchmarks.prefix import both_servers
from benchmarks.report import Result, at_most, median, number, ratios, spread
from benchmarks.subjects import Host, HTTPSubject

_TURNS = 10
_BRANCH = 5  # the turn at which it goes on once more, in another way
_TOKENS = 32  # of thinking, which the template leaves out as soon as the user speaks again
_WORDS = 40  # of a question, and of what is said besides thinking
_RESULT_WORDS = 60

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Tokens of all prompts; how many percent of them were computed, by the server's word (None: it
    does not say); and the sum of the seconds to the first text of each answer."""

    prompt_tokens: int
    computed: float | None
    waited: float


def agent(
    folder: Path, say: Say, plan: Plan, openblas: str | None, against: int | None
) -> list[Result]:
    """Ten turns with tools, and a branch; a new conversation in every round."""
    say("starting")
    with both_servers(folder / "prefix", plan, openblas, against) as servers:
        runs: list[list[Conversation]] = [[] for _ in servers]
        for turn, index in in_turns(plan.long_rounds, len(servers)):
            say(f"{servers[index][0].name}: round {turn + 1} of {plan.long_rounds}")
            runs[index].append(converse(*servers[index], f"agent {turn}", plan.system_words))
    other = servers[1][0].name
    ours, theirs = ([one.computed for one in each if one.computed is not None] for each in runs)
    waits, their_waits = ([run.waited for run in one] for one in runs)
    quotients = ratios(waits, their_waits)
    group = GROUPS["prefix"]
    name = f"an agent's {_TURNS} turns and a branch"
    size = f"of {runs[0][0].prompt_tokens} tokens of {_TURNS + 1} prompts"
    shares = [
        Result(
            group,
            f"{name}: prompt tokens that were computed{whose}",
            median(values),
            "%",
            aim,
            f"{size}, by its own word; rounds {spread(values)}",
            samples={"percent": values},
        )
        for whose, values, aim in (("", ours, at_most(15)), (f", {other}", theirs, None))
        if values
    ]
    return [
        *shares,
        Result(
            group,
            f"{name}: all first tokens, ours ÷ {other}",
            median(quotients),
            "x",
            detail=f"{number(median(waits))} ÷ {number(median(their_waits))} s; "
            f"rounds {spread(quotients)}",
            samples={"ours s": waits, f"{other} s": their_waits},
        ),
    ]


def converse(subject: HTTPSubject, host: Host, name: str, system_words: int) -> Conversation:
    """Every third turn is a tool's result, the others are questions."""
    messages: list[Json] = [{"role": "system", "content": make_prompt(name, system_words)}]
    branch: list[Json] = []
    answers = []
    for turn in range(_TURNS):
        if turn % 3 == 2:
            call = {"name": "tool_1", "arguments": json.dumps({"city": make_prompt(name, 1)})}
            messages[-1]["tool_calls"] = [{"id": "1", "type": "function", "function": call}]
            result = make_prompt(f"{name} result {turn}", _RESULT_WORDS)
            messages.append({"role": "tool", "tool_call_id": "1", "content": result})
        else:
            messages.append(_question(f"{name} question {turn}"))
        answers.append(_ask(subject, host, messages))
        if turn == _BRANCH - 1:
            branch = [*messages, _said(f"{name} branch", answers[-1]), _question(f"{name} other")]
        messages.append(_said(f"{name} answer {turn}", answers[-1]))
    answers.append(_ask(subject, host, branch))
    total = sum(answer.prompt_tokens for answer in answers)
    cached = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
    return Conversation(
        prompt_tokens=total,
        computed=100 * (1 - sum(cached) / total) if len(cached) == len(answers) else None,
        waited=sum(answer.first for answer in answers),
    )


def _ask(subject: HTTPSubject, host: Host, messages: list[Json]) -> Answer:
    body = subject.body("", _TOKENS, messages=messages, tools=_TOOLS)
    (answer,) = ask_together(subject.port, [body], PATIENCE_SECONDS)
    host.wait_until_idle()
    return answer


def _question(name: str) -> Json:
    return {"role": "user", "content": make_prompt(name, _WORDS)}


def _said(name: str, answer: Answer) -> Json:
    """What the model said is taken for its thinking; what followed is made up."""
    content = make_prompt(name, _WORDS)
    return {"role": "assistant", "content": content, "reasoning_content": answer.text}


_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": make_prompt(f"tool {number}", 20),
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for number in range(4)
]
