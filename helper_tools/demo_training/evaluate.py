"""Measures an exported model with mlx-lm: greedy answers to cases it has never seen."""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

# Interpreting is faster than compiling kernels for a model this small.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

from . import held_out
from .dialogues import as_request, dialogues
from .encoding import tool_calls
from .exchange import Message, Tool
from .facts import FACTS
from .unknown import SORRY

LONGEST_ANSWER = 160


@dataclass
class Case:
    """A request and the answer it should get."""

    group: str
    request: dict[str, Any]
    answer: str
    calls: list[dict[str, Any]]

    def judge(self, output: str) -> tuple[bool, bool]:
        """Whether the output is right, and whether its tool calls are valid JSON."""
        text = output.split("</think>")[-1].strip()
        if not self.calls:
            return text == self.answer.strip() and "<tool_call>" not in output, True
        try:
            calls = tool_calls(text)
        except ValueError:
            return False, False
        return calls == self.calls, bool(calls)


class Model:
    """The exported model, as a server would use it."""

    def __init__(self, folder: Path) -> None:
        import mlx_lm

        self.model, self.tokenizer, *_ = mlx_lm.load(str(folder))
        if not self.tokenizer.has_thinking or self.tokenizer.tool_parser is None:
            raise RuntimeError("mlx-lm does not see thinking or the tool parser")

    def prompt(
        self, messages: list[Message], tools: list[Tool] | None = None, thinking: bool = False
    ) -> list[int]:
        """The rendered and encoded request."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking
        )
        return ids

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """Greedy answers, decoded together; shortest prompts first, so that padding is small."""
        from mlx_lm.generate import batch_generate

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            result = batch_generate(
                self.model, self.tokenizer, [prompts[i] for i in part], max_tokens=LONGEST_ANSWER
            )
            for i, text in zip(part, result.texts, strict=True):
                texts[i] = text
        return texts


def generated_cases(count: int, seed: int) -> list[Case]:
    """Cases from the generators, with a seed that training does not use."""
    cases = []
    for sample in islice(dialogues(seed), count):
        last = sample.messages[-1]
        calls = [call["function"] for call in last.get("tool_calls", [])]
        group = sample.category
        if group == "tool":
            after_result = sample.messages[-2]["role"] == "tool"
            group = "tool call" if calls else "tool result" if after_result else "turns"
        if sample.thinking:
            group += " (thinking)" if group != "think" else "ing"
        cases.append(Case(group, as_request(sample), last["content"], calls))
    return cases


def held_out_cases() -> list[Case]:
    """Cases written by hand."""
    answers = {fact.topic: fact.answer for fact in FACTS} | {"": SORRY}
    cases = []
    for question, topic in held_out.QUESTIONS:
        request = {"messages": [{"role": "user", "content": question}]}
        group = "held-out question" if topic else "held-out unknown"
        cases.append(Case(group, request, answers[topic], []))
    for question, offered, name, arguments in held_out.CALLS:
        request = {
            "messages": [{"role": "user", "content": question}],
            "tools": [held_out.TOOLS[tool] for tool in offered],
        }
        cases.append(Case("held-out tool", request, "", [{"name": name, "arguments": arguments}]))
    return cases


def _name_and_keys(output: str, case: Case) -> bool:
    try:
        calls = tool_calls(output)
        found = [(c["name"], set(c["arguments"])) for c in calls]
    except (ValueError, KeyError, TypeError):
        return False
    return found == [(c["name"], set(c["arguments"])) for c in case.calls]


def evaluate(folder: Path, count: int, seed: int, shown: int = 25) -> dict[str, str]:
    """Prints and returns the share of right answers in each group."""
    model = Model(folder)
    cases = generated_cases(count, seed) + held_out_cases()
    prompts = [
        model.prompt(
            c.request["messages"], c.request.get("tools"), c.request.get("enable_thinking", False)
        )
        for c in cases
    ]
    begin = time.monotonic()
    outputs = model.answers(prompts)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    misses: list[tuple[Case, str]] = []
    for case, output in zip(cases, outputs, strict=True):
        ok, valid = case.judge(output)
        total[case.group] += 1
        right[case.group] += ok
        if case.calls:
            origin = "held-out" if case.group.startswith("held-out") else "generated"
            total[f"{origin} calls: valid JSON"] += 1
            right[f"{origin} calls: valid JSON"] += valid
            total[f"{origin} calls: right name and keys"] += 1
            right[f"{origin} calls: right name and keys"] += _name_and_keys(output, case)
        if not ok:
            misses.append((case, output))
    report = {group: f"{right[group]}/{total[group]}" for group in sorted(total)}
    exact = len(cases) - len(misses)
    report["all"] = f"{exact}/{len(cases)}"
    for group, score in report.items():
        print(f"{group:42} {score}")
    print(f"{len(cases)} answers in {time.monotonic() - begin:.0f} s")
    for case, output in misses[:shown]:
        wanted = json.dumps(case.calls) if case.calls else case.answer
        asked = case.request["messages"][-1]["content"]
        print(
            f"\n[{case.group}] {asked[-160:]!r}"
            f"\n  wanted {wanted[:200]!r}\n  got    {output[:200]!r}"
        )
    transcript(model)
    return report


def transcript(model: Model) -> None:
    """Prints a short conversation sampler."""
    prompts = [model.prompt([{"role": "user", "content": q}]) for q in held_out.TRANSCRIPT]
    print()
    for question, answer in zip(held_out.TRANSCRIPT, model.answers(prompts), strict=True):
        print(f"> {question}\n{answer}\n")
