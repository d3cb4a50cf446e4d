"""Forced and strict calls of families that write arguments between tags, and of those for which
there is no grammar."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlx_router.domain import ChatPrompt, ResponseFormat, Tool
from mlx_router.engine.grammar.compiler import Compiler
from tests.grammar_support import TOKENIZER, best, constraint, play
from tests.parsing_support import parse

# The special tokens that models of these families have for it; the other tags are plain text.
SPECIALS = {
    "glm47": ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    "qwen3_coder": [],
    "minimax_m2": ["<minimax:tool_call>", "</minimax:tool_call>"],
}

WEATHER = Tool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
SEARCH = Tool(
    "search",
    parameters={
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to look for."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 9},
            "exact": {"type": "boolean"},
            "order": {"type": "string", "enum": ["new", "old"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
            "note": {"type": "string"},
        },
        "required": ["text", "limit", "order", "tags"],
        "additionalProperties": False,
        "$defs": {"tag": {"type": "string", "maxLength": 5}},
    },
)
# A text that must follow a pattern cannot be written without quotation marks.
ZIP = Tool(
    "find_zip",
    parameters={
        "type": "object",
        "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
        "required": ["zip"],
        "additionalProperties": False,
    },
)


def compiler(family: str) -> Compiler:
    tokenizer = copy.deepcopy(TOKENIZER._tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS.get(family, [])})
    return Compiler(tokenizer, TOKENIZER.eos_token_ids, family=family, template="")


def check(name: str, arguments: str, tools: tuple[Tool, ...]) -> None:
    (tool,) = (tool for tool in tools if tool.name == name)
    jsonschema.validate(json.loads(arguments), tool.parameters or {})


@pytest.mark.parametrize("family", SPECIALS)
@pytest.mark.parametrize("several", [True, False])
def test_forced_calls_are_written_in_the_familys_tags(family: str, several: bool) -> None:
    tools = (WEATHER, SEARCH)
    prompt = ChatPrompt((), tools=tools, tool_choice="required", parallel_tool_calls=several)
    wanted = constraint(compiler(family), prompt)
    assert wanted.tool_format == family
    for seed in range(5):
        text, ended = play(wanted, 300, seed)
        assert ended, text
        answer = parse([text], tool_format=family, tools=tools)
        assert answer.content == ""
        assert answer.calls
        assert several or len(answer.calls) == 1
        for _, name, arguments in answer.calls:
            check(str(name), arguments, tools)


@pytest.mark.parametrize("family", SPECIALS)
def test_the_shortest_call_needs_no_more_tokens_than_are_said(family: str) -> None:
    prompt = ChatPrompt((), tools=(SEARCH,), tool_choice="required")
    wanted = constraint(compiler(family), prompt)
    shortest = wanted.compiled.shortest
    assert shortest is not None
    text, ended = play(wanted, shortest, seed=1)
    assert ended, text
    (call,) = parse([text], tool_format=family, tools=(SEARCH,)).calls
    check("search", call[2], (SEARCH,))


def test_a_strict_tool_is_called_in_tags_after_free_text() -> None:
    tools = (replace(WEATHER, strict=True),)
    made_by = compiler("qwen3_coder")
    processor = constraint(made_by, ChatPrompt((), tools=tools)).processor(300)
    numbers = np.random.default_rng(3)
    tokens = [5, *TOKENIZER.encode("Let me look. <tool_call>", add_special_tokens=False)]
    for end in range(1, len(tokens)):
        logits = mx.zeros((1, made_by.table.size))
        assert mx.array_equal(processor(mx.array(tokens[:end]), logits), logits)
    while "</parameter>" not in TOKENIZER.decode(tokens) and len(tokens) < 250:
        logits = mx.array(numbers.normal(size=(1, made_by.table.size)).astype(np.float32))
        if len(tokens) > 60:  # a model that wants to come to an end
            ends = TOKENIZER.encode("\n</parameter>\n", add_special_tokens=False)
            logits = logits.at[:, mx.array(ends)].add(50.0)
        tokens.append(best(processor(mx.array(tokens), logits)))
    text = TOKENIZER.decode(tokens[1:])
    assert "<tool_call>\n<function=get_weather>\n<parameter=city>\n" in text


@pytest.mark.parametrize("family", SPECIALS)
def test_what_tags_cannot_say_is_forced_as_json(family: str) -> None:
    prompt = ChatPrompt((), tools=(WEATHER, ZIP), tool_choice="required")
    wanted = constraint(compiler(family), prompt)
    assert wanted.tool_format == "json"
    for seed in range(4):
        text, ended = play(wanted, 150, seed)
        assert ended
        for _, name, arguments in parse([text], tool_format="json", tools=prompt.tools).calls:
            check(str(name), arguments, prompt.tools)


@pytest.mark.parametrize(("family", "tool"), [("glm47", ZIP), ("pythonic", WEATHER)])
def test_no_model_is_kept_from_calling_in_its_own_way(family: str, tool: Tool) -> None:
    """Better a strict tool that is not enforced than one that the model cannot call."""
    tools = (replace(tool, strict=True),)
    made_by = compiler(family)
    assert made_by.compile(ChatPrompt((), tools=tools)) is None
    assert made_by.compile(ChatPrompt((), tools=tools, tool_choice="required")) is not None
    wanted = ResponseFormat("json_object")
    assert made_by.compile(ChatPrompt((), tools=tools, response_format=wanted)) is not None
