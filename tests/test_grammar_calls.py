"""Forced and strict calls of tools: in every family's way, with any names and parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlx_router.domain import ChatPrompt, NamedTool, Tool
from mlx_router.engine.grammar import shapes
from mlx_router.engine.grammar.compiler import Compiler
from mlx_router.errors import InvalidRequest
from mlx_router.parsing import known_formats
from tests.grammar_support import (
    TIMER,
    TOKENIZER,
    VOCAB_SIZE,
    WEATHER,
    best,
    compiler,
    constraint,
    play,
)
from tests.parsing_support import parse


@pytest.fixture(scope="module")
def hermes() -> Compiler:
    return compiler()


# --- calls in every family's own way --------------------------------------------------------

FAMILIES = {
    **{name: (name, "") for name in shapes.SHAPES},
    "deepseek fenced": ("deepseek", "```json"),
    "a family without a grammar": ("pythonic", ""),
    "no family": (None, ""),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("several", [True, False])
def test_forced_calls_are_read_by_their_family(name: str, several: bool) -> None:
    family, template = FAMILIES[name]
    made_by = compiler(family, template)
    prompt = ChatPrompt(
        (), tools=(WEATHER, TIMER), tool_choice="required", parallel_tool_calls=several
    )
    wanted = constraint(made_by, prompt)
    assert wanted.tool_format in known_formats()
    called = set()
    for seed in range(6):
        text, ended = play(wanted, 100, seed)
        assert ended
        answer = parse([text], tool_format=wanted.tool_format, tools=prompt.tools)
        assert answer.content == ""
        assert answer.calls
        assert several or len(answer.calls) == 1
        for _, tool_name, arguments in answer.calls:
            tool = next(tool for tool in prompt.tools if tool.name == tool_name)
            jsonschema.validate(json.loads(arguments), tool.parameters or {})
            called.add(tool_name)
    assert called == {"get_weather", "set_timer"}


def test_mistral_writes_the_name_before_its_arguments_where_the_vocabulary_has_a_token_for_it() -> (
    None
):
    shape = shapes.call_shape("mistral", "", {"[TOOL_CALLS]", "[ARGS]"}, several=True)
    assert shape.before("add") == "[TOOL_CALLS]add[ARGS]"
    assert parse([shape.before("add") + "{}"], tool_format="mistral").calls[0][1:] == ("add", "{}")


def test_a_named_tool_is_the_only_one_and_is_called_once(hermes: Compiler) -> None:
    prompt = ChatPrompt((), tools=(WEATHER, TIMER), tool_choice=NamedTool("set_timer"))
    for seed in range(5):
        text, ended = play(constraint(hermes, prompt), 100, seed)
        assert ended
        calls = parse([text], tools=prompt.tools).calls
        assert [call[1] for call in calls] == ["set_timer"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, {}),
        ({"properties": {"a": {"const": 1}}, "required": ["a"]}, {"a": 1}),
        ({}, {}),
    ],
)
def test_arguments_are_an_object_whatever_the_tool_leaves_out(
    hermes: Compiler, parameters: Any, expected: Any
) -> None:
    prompt = ChatPrompt((), tools=(Tool("t", parameters=parameters),), tool_choice="required")
    text, _ = play(constraint(hermes, prompt), 40, 1)
    arguments = json.loads(parse([text], tools=prompt.tools).calls[0][2])
    assert isinstance(arguments, dict)
    assert arguments.items() >= expected.items()


def test_strict_tools_bind_the_call_and_not_the_text_around_it(hermes: Compiler) -> None:
    prompt = ChatPrompt((), tools=(replace(WEATHER, strict=True), TIMER))
    processor = constraint(hermes, prompt).processor(500)
    logits = mx.array(np.random.default_rng(0).normal(size=(1, VOCAB_SIZE)).astype(np.float32))
    assert mx.array_equal(processor(mx.array([5]), logits), logits)
    tokens = [5, *TOKENIZER.encode("Let me see. <tool_call>", add_special_tokens=False)]
    for end in range(2, len(tokens)):
        assert mx.array_equal(processor(mx.array(tokens[:end]), logits), logits)
    written = []
    while "</tool_call>" not in TOKENIZER.decode(tokens):
        allowed = processor(
            mx.array(tokens),
            logits
            + mx.array(
                np.random.default_rng(len(tokens)).normal(size=(1, VOCAB_SIZE)).astype(np.float32)
            ),
        )
        tokens.append(best(allowed))
        written.append(tokens[-1])
        assert len(written) < 400
    assert mx.array_equal(processor(mx.array(tokens), logits), logits)
    (call,) = parse([TOKENIZER.decode(tokens[1:])], tools=prompt.tools).calls
    tool = next(tool for tool in prompt.tools if tool.name == call[1])
    jsonschema.validate(json.loads(call[2]), tool.parameters or {})


@pytest.mark.parametrize("family", ["llama3_json", "harmony", "json"])
def test_strict_tools_where_no_token_announces_a_call(family: str | None) -> None:
    tools = (replace(WEATHER, strict=True),)
    wanted = constraint(compiler(family), ChatPrompt((), tools=tools))
    for seed in range(12):
        text, _ = play(wanted, 60, seed)
        answer = parse([text], tool_format=wanted.tool_format, tools=tools)
        for _, name, arguments in answer.calls:
            assert name == "get_weather"
            if not arguments.endswith("}"):  # cut off: free text may take all tokens
                continue
            jsonschema.validate(json.loads(arguments), WEATHER.parameters or {})
        assert answer.calls or answer.content or answer.reasoning


@pytest.mark.parametrize(
    "name",
    [
        "<|im_end|>",
        "<tool_call>",
        "x</tool_call>y",
        'a"b',
        "a\\b",
        "a\x7fb",
        "\u65e5\u672c",
        "<[5]>",
    ],
)
@pytest.mark.parametrize("family", ["hermes", "llama3_json", "mistral"])
def test_a_name_is_text_whatever_it_reads_like(family: str, name: str) -> None:
    tool = replace(TIMER, name=name)
    wanted = constraint(compiler(family), ChatPrompt((), tools=(tool,), tool_choice="required"))
    text, ended = play(wanted, 250, 1)
    assert ended
    calls = parse([text], tool_format=wanted.tool_format, tools=(tool,)).calls
    assert {call[1] for call in calls} == {name}
    jsonschema.validate(json.loads(calls[0][2]), TIMER.parameters or {})


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"type": "string"},
        {"enum": [1, 2]},
        {"type": None},
        {"$ref": "#"},
        {"type": ["object", "null"]},
        {"anyOf": [{"type": "string"}, {"type": "object"}]},
        {"properties": {"a": {"const": "\ud800"}}},
    ],
)
def test_arguments_are_an_object_whatever_the_schema_says(
    hermes: Compiler, parameters: dict[str, Any]
) -> None:
    tool = Tool("t", parameters=parameters)
    prompt = ChatPrompt((), tools=(tool,), tool_choice="required")
    for seed in range(5):
        text, ended = play(constraint(hermes, prompt), 80, seed)
        assert ended
        for call in parse([text], tools=prompt.tools).calls:
            assert isinstance(json.loads(call[2]), dict)


@pytest.mark.parametrize("parameters", [{"type": "array"}, {"type": "string"}, {"$ref": "#"}])
def test_a_strict_tool_of_another_type_is_refused(
    hermes: Compiler, parameters: dict[str, Any]
) -> None:
    tools = (WEATHER, Tool("t", parameters=parameters, strict=True))
    with pytest.raises(InvalidRequest, match="cannot be enforced") as caught:
        hermes.compile(ChatPrompt((), tools=tools, tool_choice="required"))
    assert caught.value.param == "tools.1.function.parameters"
