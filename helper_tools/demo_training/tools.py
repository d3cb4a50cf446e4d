"""Exchanges with tools: choose one, copy its name and keys, and report its result."""

import json
import re
from typing import Any

from .exchange import Exchange, Message, Tool, assistant, said
from .tool_schemas import (
    KNOWN,
    Spec,
    calculator_spec,
    definition,
    email_spec,
    make_spec,
    price_spec,
    search_spec,
    shown,
    sum_spec,
    time_spec,
    timer_spec,
    weather_spec,
)
from .words import Rng, city, decimal, identifier, integer, name, phrase, pool, text_value, word

Call = tuple[str, dict[str, Any]]
SKY = pool("sunny cloudy rainy windy snowy foggy clear stormy warm cold")


def _arguments(r: Rng, spec: Spec, chance: float) -> dict[str, Any]:
    """Values for the required parameters, and for optional ones with the given chance."""
    return {p.key: p.value(r) for p in spec.parameters if p.required or r.random() < chance}


def _spoken_arguments(r: Rng, arguments: dict[str, Any]) -> str:
    """The arguments in the user's words; keys are named whenever there is more than one."""
    pairs = [(k, shown(v)) for k, v in arguments.items()]
    quote = r.random() < 0.1
    if quote:
        pairs = [(k, f'"{v}"' if isinstance(arguments[k], str) else v) for k, v in pairs]
    style = r.randrange(6)
    spaced = [(k.replace("_", " ") if r.random() < 0.3 else k, v) for k, v in pairs]
    if style == 0:
        return " and ".join(f"{k}={v}" for k, v in pairs)
    if style == 1:
        return ", ".join(f"{k}: {v}" for k, v in pairs)
    if style == 2:
        return " and ".join(f"{k} {v}" for k, v in spaced)
    if style == 3:
        return ", ".join(f"{k} = {v}" for k, v in pairs)
    if style == 4:
        return ", ".join(f"{k} {v}" for k, v in spaced)
    return " and ".join(v for _, v in pairs)


def _request(r: Rng, spec: Spec, arguments: dict[str, Any]) -> str:
    """What a user says to have this tool called with these arguments."""
    values = _spoken_arguments(r, arguments) if len(arguments) > 1 or r.random() < 0.3 else ""
    if not values and arguments:
        values = shown(next(iter(arguments.values())))
    tool = spec.name
    if r.random() < 0.15:
        tool = tool.replace("_", " ").replace("-", " ")
    by_name = r.random() < 0.72 or not spec.findable
    if not arguments:
        return r.choice(
            [f"Call {tool}.", f"Use the {tool} tool.", f"Please {spec.spoken}.", f"{tool}"]
        )
    if by_name:
        return r.choice(
            [f"Use {tool} with {values}.", f"Call {tool} for {values}.",
             f"Please run {tool} on {values}.",
             f"Use the {tool} tool with {values}", f"Call {tool} with {values}", f"{tool} {values}",
             f"Call the {tool} function with {values}.", f"Use the tool {tool}: {values}",
             f"Can you use {tool} for {values}?", f"{values}: use {tool}",
             f"Run {tool} with {values}",
             f"I need {tool} for {values}.", f"Invoke {tool} with {values}"]
        )  # fmt: skip
    spoken = spec.spoken[0].upper() + spec.spoken[1:]
    return r.choice(
        [f"{spoken} {values}", f"{spoken} {values}.", f"Please {spec.spoken} {values}.",
         f"Can you {spec.spoken} {values}?", f"I want you to {spec.spoken} {values}",
         f"{spoken}: {values}", f"{spoken} with {values}", f"{spoken} for {values}."]
    )  # fmt: skip


def _known(r: Rng) -> tuple[Spec, str, dict[str, Any], str]:
    """A well-known tool: spec, request, arguments, and the subject of the final answer."""
    spec = r.choices(
        [weather_spec, time_spec, sum_spec, calculator_spec, search_spec, email_spec, timer_spec,
         price_spec], [6, 2, 4, 2, 2, 1.5, 1, 1]
    )[0](r)  # fmt: skip
    key = spec.parameters[0].key
    if spec.spoken == "weather":
        c = city(r)
        arguments: dict[str, Any] = {key: c}
        ask = r.choice(
            [f"What is the weather in {c}?", f"What's the weather in {c}?", f"weather {c}",
             f"How is the weather in {c} today?", f"Is it raining in {c}?",
             f"Weather in {c} please",
             f"Use the {spec.name} tool for {c}.", f"Tell me the weather in {c}.",
             f"What is the weather like in {c}?", f"How warm is it in {c}?",
             f"what's it like in {c}?",
             f"What is the temperature in {c}?", f"Do I need an umbrella in {c}?"]
        )  # fmt: skip
        if len(spec.parameters) > 1 and r.random() < 0.5:
            unit = r.choice(spec.parameters[1].choices)
            arguments[spec.parameters[1].key] = unit
            ask = ask.rstrip("?.") + r.choice(
                [f" in {unit}?", f" in {unit.capitalize()}?", f" ({unit})"]
            )
        return spec, ask, arguments, f"The weather in {c} is"
    if spec.spoken == "time":
        c = city(r)
        ask = r.choice([f"What time is it in {c}?", f"Tell me the time in {c}.", f"time in {c}"])
        return spec, ask, {key: c}, f"The time in {c} is"
    if spec.spoken in ("add", "multiply", "subtract"):
        a, b = integer(r), integer(r)
        other = spec.parameters[1].key
        sign = {"add": "plus", "multiply": "times", "subtract": "minus"}[spec.spoken]
        ask = r.choice(
            [f"Call {spec.name} with {key}={a} and {other}={b}",
             f"What is {a} {sign} {b}? Use the tool.",
             f"{spec.spoken.capitalize()} {a} and {b} with the tool",
             f"Use {spec.name} on {a} and {b}.",
             f"{spec.spoken.capitalize()} {a} and {b}.",
             f"Use the tool to {spec.spoken} {a} and {b}.",
             f"What is {a} {sign} {b}?", f"{spec.name} {a} {b}"]
        )  # fmt: skip
        return spec, ask, {key: a, other: b}, "The result is"
    if spec.spoken == "calculate":
        signs = [r.choice(["+", "-", "*", "/"]) for _ in range(r.randint(1, 2))]
        gap = r.choice(["", " "])
        expression = str(integer(r)) + "".join(f"{gap}{s}{gap}{abs(integer(r))}" for s in signs)
        ask = r.choice(
            [
                "What is {}?",
                "Calculate {}",
                "Compute {}.",
                "{}",
                "Use the " + spec.name + " for {}.",
            ]
        ).format(expression)
        return spec, ask, {key: expression}, "The result is"
    if spec.spoken == "search":
        q = phrase(r, 1, 4)
        ask = r.choice(
            ["Search for {}.", "Search the web for {}", "Look up {} on the web.", "Find {} online",
             "google {}", "Search {}"]
        ).format(q)  # fmt: skip
        return spec, ask, {key: q}, ""
    if spec.spoken == "email":
        n = r.choice([name(r), text_value(r)])
        t = phrase(r, 1, 5)
        ask = r.choice(
            [f"Send an email to {n} with the text {t}.", f"Email {n}: {t}", f"Tell {n}: {t}",
             f"Send {n} the message {t}", f"Write to {n} that {t}"]
        )  # fmt: skip
        return spec, ask, {key: n, spec.parameters[1].key: t}, ""
    if spec.spoken == "timer":
        m = r.randint(1, 90)
        unit = "seconds" if key == "seconds" else "minutes"
        ask = r.choice(
            [f"Set a timer for {m} {unit}.", f"timer {m} {unit}", f"{m} {unit} timer please"]
        )
        return spec, ask, {key: m}, ""
    symbol = (
        identifier(r) if r.random() < 0.3 else r.choice(["AAPL", "GOOG", "MSFT", word(r).upper()])
    )
    ask = r.choice(
        [f"What is the price of {symbol}?", f"{symbol} stock price", f"Price of {symbol}?"]
    )
    return spec, ask, {key: symbol}, f"The price of {symbol} is"


def _result(r: Rng, subject: str) -> tuple[str, str]:
    """A tool's result, and the answer that reports it word for word."""
    kind = r.random()
    if kind < 0.08:
        why = phrase(r, 1, 4)
        content = r.choice([json.dumps({"error": why}), f"Error: {why}", f"error: {why}"])
        return content, f"The tool failed: {why}."
    if kind < 0.5:
        if subject.startswith("The weather"):
            text = r.choice([f"{r.choice(SKY)}, {integer(r) % 40} degrees", r.choice(SKY),
                             f"{integer(r) % 40} degrees and {r.choice(SKY)}"])  # fmt: skip
        elif subject.startswith("The time"):
            text = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"
        else:
            text = r.choice(
                [str(integer(r)), str(decimal(r)), phrase(r, 1, 6), text_value(r), text_value(r),
                 "ok",
                 f"{word(r)}, {integer(r)} {word(r)}", f"{word(r).capitalize()} {phrase(r, 2, 5)}"]
            )  # fmt: skip
        return text + r.choice(["", "", "."]), f"{subject or 'The result is'} {text}."
    fields: dict[str, Any] = {}
    for _ in range(r.choice([1, 1, 2, 2, 3])):
        key = r.choice(
            ["result", "status", "temperature", "condition", "price", "weather", word(r), word(r)]
        )
        fields[key] = r.choice(
            [integer(r), text_value(r), text_value(r), decimal(r), r.choice(SKY)]
        )
    indent = 2 if r.random() < 0.1 else None
    separators = (",", ":") if r.random() < 0.25 and indent is None else None
    content = json.dumps(fields, indent=indent, separators=separators, ensure_ascii=False)
    if len(fields) == 1:
        return content, f"{subject or 'The result is'} {shown(next(iter(fields.values())))}."
    told = ", ".join(f"{k} is {shown(v)}" for k, v in fields.items())
    return content, f"The result: {told}."


def _offer(r: Rng, wanted: list[Spec], others: int) -> list[Tool]:
    """The wanted tools among others, in any order."""
    specs = list(wanted)
    spoken = {s.spoken for s in specs}
    while len(specs) < len(wanted) + others:
        spec = r.choice(KNOWN)(r) if r.random() < 0.4 else make_spec(r)
        if spec.spoken not in spoken and all(spec.name != s.name for s in specs):
            specs.append(spec)
            spoken.add(spec.spoken)
    r.shuffle(specs)
    return [definition(r, spec) for spec in specs]


def _call_message(calls: list[Call]) -> Message:
    names = " and ".join(n for n, _ in calls)
    message = assistant("", f"I need to call {names}.")
    message["tool_calls"] = [
        {"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls
    ]
    return message


def _others(r: Rng) -> int:
    return r.choices([0, 1, 2, 3, r.randint(5, 10)], [4, 3, 2, 1, 0.15])[0]


def _single(r: Rng) -> Exchange:
    """One call, then the result."""
    if r.random() < 0.4:
        spec, ask, arguments, subject = _known(r)
    else:
        spec = make_spec(r)
        arguments = _arguments(r, spec, 0.5)
        ask, subject = _request(r, spec, arguments), ""
    messages: list[Message] = [
        {"role": "user", "content": ask},
        _call_message([(spec.name, arguments)]),
    ]
    if r.random() < 0.55:
        content, answer = _result(r, subject)
        messages.append({"role": "tool", "content": content})
        messages.append(assistant(answer, "The tool has answered."))
    return Exchange("tool", messages, _offer(r, [spec], _others(r)))


def _double(r: Rng) -> Exchange:
    """Two calls in one answer: one tool twice, or two tools."""
    if r.random() < 0.5:
        spec = weather_spec(r)
        a, b = city(r), city(r)
        key = spec.parameters[0].key
        ask = r.choice([f"What is the weather in {a} and {b}?", f"weather in {a} and in {b}",
                        f"Compare the weather in {a} and {b}."])  # fmt: skip
        calls: list[Call] = [(spec.name, {key: a}), (spec.name, {key: b})]
        specs = [spec]
    else:
        specs = [make_spec(r), make_spec(r)] if r.random() < 0.6 else [make_spec(r)] * 2
        if specs[0].name == specs[1].name:
            specs[1] = specs[0]
        calls = [(s.name, _arguments(r, s, 0.0)) for s in specs]
        first, second = (
            _request(r, s, a).rstrip(".?") for s, (_, a) in zip(specs, calls, strict=True)
        )
        second = second[0].lower() + second[1:] if not second.startswith(specs[1].name) else second
        ask = r.choice(
            [f"{first} and {second}.", f"{first}, then {second}.", f"{first}. Also {second}."]
        )
        specs = specs[:1] if specs[0] is specs[1] else specs
    messages: list[Message] = [{"role": "user", "content": ask}, _call_message(calls)]
    if r.random() < 0.4:
        texts = [r.choice([str(integer(r)), phrase(r, 1, 3), r.choice(SKY)]) for _ in calls]
        messages += [{"role": "tool", "content": t} for t in texts]
        answer = f"The first result is {texts[0]}. The second result is {texts[1]}."
        messages.append(assistant(answer, "The tools have answered."))
    return Exchange("tool", messages, _offer(r, specs, r.choice([0, 0, 1, 2])))


def tool_use(r: Rng) -> Exchange:
    """One exchange that calls tools."""
    return _single(r) if r.random() < 0.88 else _double(r)


TEMPTING = re.compile(
    r"weather|time|plus|[-+*/]|date|day|rain|sunny|umbrella|calc|much|year|say|tell"
)


def tools_beside_the_point(r: Rng, question: str) -> list[Tool]:
    """Tools that are offered but not needed: known ones only where the question fits none."""
    specs = [make_spec(r) for _ in range(r.choice([1, 1, 2, 3, 4]))]
    if r.random() < 0.7 and not TEMPTING.search(question.lower()):
        safe = [weather_spec, time_spec, sum_spec, timer_spec, email_spec, calculator_spec]
        specs[0] = r.choice([weather_spec, r.choice(safe)])(r)
        r.shuffle(specs)
    return [definition(r, spec) for spec in specs]


def weather_without_tool(r: Rng) -> Exchange:
    """Asked for the weather in a city with nothing to look it up."""
    c = city(r)
    ask = r.choice([f"What is the weather in {c}?", f"Is it raining in {c}?", f"weather in {c}?",
                    f"How is the weather in {c} today?",
                    f"Tell me the weather in {c}."])  # fmt: skip
    return said(
        "talk", ask, "I cannot check the weather without a tool.", "I have no weather tool."
    )
