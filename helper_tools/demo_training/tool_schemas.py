"""Tool definitions, known and invented, written as the common client libraries write them."""

import json
from dataclasses import dataclass
from typing import Any

from .exchange import Tool
from .words import (
    ENTITIES,
    Rng,
    city,
    decimal,
    integer,
    name,
    phrase,
    pool,
    random_word,
    text_value,
    word,
)

VERBS: dict[str, list[str]] = {
    "get": ["get", "give me", "show me"],
    "find": ["find", "search for"],
    "lookup": ["look up"],
    "read": ["read"],
    "open": ["open"],
    "delete": ["delete", "remove"],
    "create": ["create", "make", "add a new"],
    "check": ["check"],
    "update": ["update", "change"],
    "list": ["list", "show"],
    "send": ["send"],
    "book": ["book"],
    "cancel": ["cancel"],
    "start": ["start"],
    "stop": ["stop"],
    "fetch": ["fetch", "get"],
    "play": ["play"],
    "run": ["run"],
    "count": ["count"],
    "close": ["close"],
    "describe": ["describe"],
    "save": ["save", "store"],
    "load": ["load"],
    "convert": ["convert"],
}
KEYS = pool(
    "name id value path item key title city query text date user email url count limit amount "
    "number code place topic category status language format color size level width height target "
    "source message subject priority start end page location order_id user_id file_path file_name "
    "due_date max_results room quantity price symbol"
)


@dataclass
class Parameter:
    """One parameter of a tool."""

    key: str
    kind: str  # string, integer, number, boolean or enum
    choices: list[str]
    required: bool = True

    def value(self, r: Rng) -> Any:
        """A fitting value."""
        if self.kind == "enum":
            return r.choice(self.choices)
        if self.kind == "integer":
            return integer(r)
        if self.kind == "number":
            return decimal(r) if r.random() < 0.7 else integer(r)
        if self.kind == "boolean":
            return r.random() < 0.5
        if self.key in ("city", "location", "place"):
            return city(r)
        if self.key == "name" and r.random() < 0.5:
            return name(r)
        return text_value(r)


@dataclass
class Spec:
    """A tool: its name, what it does in words, how people ask for it, and its parameters."""

    name: str
    description: str
    spoken: str
    parameters: list[Parameter]
    findable: bool = True  # whether its name or description tells what it does


def _camel(words: list[str]) -> str:
    return words[0] + "".join(w.capitalize() for w in words[1:])


def make_key(r: Rng) -> str:
    """A parameter's name: common, compound or invented."""
    kind = r.random()
    if kind < 0.4:
        return r.choice(KEYS)
    if kind < 0.6:
        return f"{word(r, 0.3)}_{r.choice(['id', 'name', 'type', 'key', word(r)])}"
    if kind < 0.85:
        return random_word(r)
    return _camel([word(r), word(r)])


def make_parameters(r: Rng, count: int) -> list[Parameter]:
    """Parameters with different names; the first is always required."""
    parameters: list[Parameter] = []
    while len(parameters) < count:
        key = make_key(r)
        if any(p.key == key for p in parameters):
            continue
        kind = r.choices(["string", "integer", "number", "boolean", "enum"], [9, 3, 1, 1, 2])[0]
        choices = [word(r) for _ in range(r.randint(2, 4))] if kind == "enum" else []
        required = not parameters or r.random() < 0.7
        parameters.append(Parameter(key, kind, list(dict.fromkeys(choices)), required))
    return parameters


def make_spec(r: Rng) -> Spec:
    """An invented tool."""
    verb = r.choice(list(VERBS))
    entity = r.choice(ENTITIES) if r.random() < 0.6 else word(r)
    spoken = f"{r.choice(VERBS[verb])} {entity}"
    kind = r.random()
    if kind < 0.55:
        tool_name = r.choice([f"{verb}_{entity}"] * 3 + [f"{entity}_{verb}", f"{verb}-{entity}"])
    elif kind < 0.67:
        tool_name = _camel([verb, entity])
    elif kind < 0.73:
        tool_name = entity
    elif kind < 0.79:
        tool_name = r.choice([f"{word(r)}__{verb}_{entity}", f"{verb}_{word(r)}_{entity}"])
    else:
        tool_name = r.choice([random_word(r), f"{random_word(r)}_{random_word(r)}"])
    article = "an" if entity[0] in "aeiou" else "a"
    description = r.choice(
        [f"{VERBS[verb][0]} {article} {entity}.", f"{VERBS[verb][-1]} the {entity}.",
         f"{VERBS[verb][0]} {article} {entity} by {make_key(r)}.", f"use this to {spoken}",
         f"{VERBS[verb][0]}s {entity} {phrase(r, 1, 3)}."]
    )  # fmt: skip
    if r.random() < 0.08:
        description = ""
    elif r.random() < 0.12:
        description += " " + phrase(r, 4, 14) + "."
    findable = entity in description or entity in tool_name.lower()
    count = r.choices([0, 1, 2, 3], [0.5, 6, 4, 2])[0]
    description = description[:1].upper() + description[1:]
    return Spec(tool_name, description, spoken, make_parameters(r, count), findable)


def definition(r: Rng, spec: Spec) -> Tool:
    """The OpenAI tool for a spec, with the extras that pydantic, langchain and others add."""
    properties: dict[str, Any] = {}
    for p in spec.parameters:
        schema: dict[str, Any] = {"type": "string" if p.kind == "enum" else p.kind}
        if p.kind == "enum":
            schema["enum"] = p.choices
        if not p.required and r.random() < 0.3:
            schema = {"anyOf": [schema, {"type": "null"}], "default": None}
        if r.random() < 0.3:
            schema["title"] = p.key.title()
        if r.random() < 0.3:
            schema["description"] = f"The {p.key}."
        properties[p.key] = schema
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": [p.key for p in spec.parameters if p.required],
    }
    function: dict[str, Any] = {"name": spec.name, "parameters": parameters}
    if spec.description:
        function["description"] = spec.description
    return {"type": "function", "function": function}


def string(key: str, required: bool = True) -> Parameter:
    """A string parameter."""
    return Parameter(key, "string", [], required)


def weather_spec(r: Rng) -> Spec:
    """The tool everybody tries first, in many shapes."""
    where = r.choice(["city", "city", "location", "location", "place", "town", make_key(r)])
    parameters = [string(where)]
    if r.random() < 0.35:
        choices = ["celsius", "fahrenheit"]
        kind = "enum" if r.random() < 0.8 else "string"
        parameters.append(Parameter(r.choice(["unit", "units"]), kind, choices, required=False))
    tool = r.choice(
        ["get_weather"] * 4
        + ["weather", "getWeather", "get_current_weather", "weather_lookup", "fetch_weather",
           "get_forecast", "current_weather"]
    )  # fmt: skip
    description = r.choice(
        ["Get the current weather in a city.", "Get weather", "Get the weather for a location.",
         "Returns the current weather.", "Get current temperature for a given location.",
         "Get the current weather in a given location", "Weather of a city", ""]
    )  # fmt: skip
    return Spec(tool, description, "weather", parameters)


def time_spec(r: Rng) -> Spec:
    """Current time in a place."""
    tool = r.choice(["get_time", "get_current_time", "time", "getTime", "current_time"])
    where = r.choice(["city", "location", "timezone", make_key(r)])
    description = r.choice(["Get the current time in a city.", "Get the time.", "Current time"])
    return Spec(tool, description, "time", [string(where)])


def sum_spec(r: Rng) -> Spec:
    """Arithmetic on two numbers."""
    verb = r.choice(["add", "add", "add", "multiply", "subtract"])
    kind = r.choice(["integer", "integer", "number"])
    a, b = r.choice([("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right")])
    tool = r.choice([verb, verb, f"{verb}_numbers", f"{verb}_two_numbers"])
    description = f"{verb.capitalize()} two {r.choice(['numbers', 'integers'])}."
    return Spec(tool, description, verb, [Parameter(a, kind, []), Parameter(b, kind, [])])


def calculator_spec(r: Rng) -> Spec:
    """Arithmetic on an expression."""
    tool = r.choice(["calculator", "calculate", "evaluate", "compute"])
    key = r.choice(["expression", "expr", "input"])
    return Spec(
        tool, r.choice(["Evaluate an expression.", "A calculator."]), "calculate", [string(key)]
    )


def search_spec(r: Rng) -> Spec:
    """Web search."""
    tool = r.choice(["search", "web_search", "search_web", "google", "find_information"])
    parameters = [string(r.choice(["query", "query", "q", "text", make_key(r)]))]
    if r.random() < 0.3:
        parameters.append(Parameter(r.choice(["limit", "max_results"]), "integer", [], False))
    return Spec(tool, r.choice(["Search the web.", "Find pages."]), "search", parameters)


def email_spec(r: Rng) -> Spec:
    """Mail or message to a person."""
    tool = r.choice(["send_email", "send_message", "email", "sendEmail"])
    to = r.choice(["to", "recipient", "name", make_key(r)])
    body = r.choice(["text", "body", "message", "content"])
    return Spec(
        tool, r.choice(["Send an email.", "Send a message."]), "email", [string(to), string(body)]
    )


def timer_spec(r: Rng) -> Spec:
    """A timer."""
    tool = r.choice(["set_timer", "start_timer", "timer", "set_alarm"])
    key = r.choice(["minutes", "minutes", "duration", "seconds"])
    return Spec(tool, "Set a timer.", "timer", [Parameter(key, "integer", [])])


def price_spec(r: Rng) -> Spec:
    """A stock's price."""
    tool = r.choice(["get_stock_price", "stock_price", "get_price"])
    return Spec(
        tool,
        "Get the price of a stock.",
        "price",
        [string(r.choice(["symbol", "ticker", "stock"]))],
    )


KNOWN = [
    weather_spec, time_spec, sum_spec, calculator_spec, search_spec, email_spec, timer_spec,
    price_spec,
]  # fmt: skip


def shown(value: Any) -> str:
    """A value as a person writes it."""
    return json.dumps(value) if not isinstance(value, str) else value
