"""What the scripted engine says: the same to the same question, and shaped as asked."""

from __future__ import annotations

import datetime
import json
import re
import time
import uuid
from typing import Any

import pytest

from mlx_router.domain import (
    ChatPrompt,
    FinishReason,
    ImagePart,
    Message,
    NamedTool,
    Picture,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.scripted import (
    ScriptedCodec,
    ScriptedEngine,
)
from mlx_router.engine.scripted_text import CANNED, CHAT, CONTINUATION
from mlx_router.engine.scripted_values import example
from mlx_router.errors import InvalidRequest
from mlx_router.parsing import OutputParser
from tests.engine_support import drain

CODEC = ScriptedCodec()
STOPS = CODEC.eos_ids
WEATHER = Tool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["city"],
    },
)
CLOCK = Tool("clock")


def say(prompt: ChatPrompt, codec: ScriptedCodec = CODEC) -> str:
    """The raw text that is answered."""
    engine = ScriptedEngine()
    engine.load()
    engine.add(Job(1, codec.encode_chat(prompt).ids, 10_000, Sampling(), stop_ids=STOPS))
    results = drain(engine)
    assert results[-1].finish is FinishReason.STOP
    return CODEC.decode([result.token or 0 for result in results])


def called(prompt: ChatPrompt) -> list[tuple[str | None, Any]]:
    """The tools that are called, through the real parser."""
    markers = CODEC.markers
    parser = OutputParser(markers.think_start, markers.think_end, markers.tool_format)
    parsed = parser.feed(say(prompt))
    names = [delta.name for delta in parsed.tool_calls if delta.name]
    texts = [delta.arguments for delta in parsed.tool_calls if not delta.name]
    assert parsed.content == ""
    return [(name, json.loads(text)) for name, text in zip(names, texts, strict=True)]


def ask(text: str, choice: ToolChoice = "auto", **options: Any) -> ChatPrompt:
    options = {"tools": (CLOCK, WEATHER), **options}
    return ChatPrompt((Message("user", text),), tool_choice=choice, **options)


# --- what it answers ------------------------------------------------------------------------


def test_a_question_gets_a_canned_text_that_echoes_it() -> None:
    prompt = ChatPrompt((Message("system", "Be nice."), Message("user", "Where is Oslo, é 🙂?")))
    assert say(prompt) == f'You said: "Where is Oslo, é 🙂?". {CANNED}'
    assert say(prompt) == say(prompt)
    assert say(ChatPrompt((Message("user", ""),))) == CANNED
    assert say(ChatPrompt(())) == CANNED


def test_a_text_prompt_is_continued() -> None:
    engine = ScriptedEngine()
    engine.add(Job(1, CODEC.encode("Once upon a time"), 100, Sampling(), stop_ids=STOPS))
    assert CODEC.decode([result.token or 0 for result in drain(engine)]) == CONTINUATION


def test_a_forced_tool_is_called_with_arguments_of_its_schema() -> None:
    weather = ("get_weather", {"city": "text", "unit": "celsius"})
    assert called(ask("hi", NamedTool("get_weather"))) == [weather]
    assert called(ask("hi", "required")) == [("clock", {})]
    assert called(ask("hi", "required", tools=(WEATHER,))) == [weather]


def test_a_tool_whose_name_is_said_is_called() -> None:
    assert [name for name, _ in called(ask("Use get_weather, please."))] == ["get_weather"]
    assert len(called(ask("get_weather and clock"))) == 2
    assert len(called(ask("get_weather and clock", parallel_tool_calls=False))) == 1
    assert "<tool_call>" not in say(ask("the weather, by the clockwork"))
    assert "<tool_call>" not in say(ask("get_weather", "none"))


def test_a_tools_result_is_told() -> None:
    prompt = ChatPrompt(
        (
            Message("user", "get_weather"),
            Message("assistant", tool_calls=(ToolCall("c", "get_weather", "{}"),)),
            Message("tool", "21 degrees", tool_call_id="c"),
        ),
        tools=(WEATHER,),
        tool_choice="required",
    )
    assert say(prompt) == "The tool's result: 21 degrees"


def test_a_response_format_gets_an_instance_of_its_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}
    wanted = ResponseFormat("json_schema", schema=schema)
    assert json.loads(say(ask("hi", response_format=wanted))) == {"n": 3}
    assert json.loads(say(ask("hi", response_format=ResponseFormat("json_object")))) == {}


@pytest.mark.parametrize(
    ("options", "thinks"),
    [
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "low", "template_kwargs": {"enable_thinking": False}}, False),
        ({}, False),
    ],
)
def test_it_reasons_when_asked_to(options: dict[str, Any], thinks: bool) -> None:
    parser = OutputParser(CODEC.markers.think_start, CODEC.markers.think_end, None)
    parsed = parser.feed(say(ask("hi", **options)))
    assert bool(parsed.reasoning) is thinks
    assert parsed.content.startswith("You said")


def test_a_prompt_that_only_looks_like_a_chat_is_answered_too() -> None:
    for tail in ([], CODEC.encode("{"), CODEC.encode('{"messages": [1]}'), CODEC.encode("[]")):
        engine = ScriptedEngine()
        engine.add(Job(1, [CHAT, *tail], 1000, Sampling(), stop_ids=STOPS))
        assert CODEC.decode([result.token or 0 for result in drain(engine)]) == CANNED


def picture(width: int, height: int) -> Picture:
    return Picture(width, height, bytes(3 * width * height), "digest")


def test_an_image_is_refused_by_a_model_without_vision() -> None:
    for part in (ImagePart("data:,"), picture(2, 2)):
        with pytest.raises(InvalidRequest, match="no vision"):
            CODEC.encode_chat(ChatPrompt((Message("user", (part,)),)))


def test_what_is_seen_is_told_in_order() -> None:
    codec = ScriptedCodec(sees=True)
    one, other = picture(64, 48), picture(32, 32)
    question = ChatPrompt((Message("user", (TextPart("What is"), one, TextPart(" this?"))),))
    assert say(question, codec) == f'I see 1 image: 64x48. You said: "What is this?". {CANNED}'
    turns = (Message("system", (other,)), *question.messages, Message("user", (one, one)))
    assert say(ChatPrompt(turns), codec) == f"I see 4 images: 32x32, 64x48, 64x48, 64x48. {CANNED}"
    assert say(ChatPrompt((Message("user", "I see 1 image: 9x9."),)), codec).startswith("You said")
    wanted = ResponseFormat("json_object")
    assert say(ChatPrompt(question.messages, response_format=wanted), codec) == "{}"


# --- values for schemas ---------------------------------------------------------------------

_NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 5, "type": "string"}, 5),
        ({"enum": ["b", "a"]}, "b"),
        ({"type": "integer", "default": 9}, 9),
        ({"type": "integer"}, 1),
        ({"type": "integer", "minimum": 7, "maximum": 9}, 7),
        ({"type": "integer", "exclusiveMinimum": 7}, 8),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "exclusiveMaximum": -2}, -3),
        ({"type": "integer", "multipleOf": 5, "minimum": 12}, 15),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "number", "minimum": 0.25, "maximum": 0.75}, 0.25),
        ({"type": "number", "minimum": 1e308}, 1e308),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["integer", "null"]}, 1),
        ({"type": "string"}, "text"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "array", "items": {"type": "integer"}}, [1]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [1, 1, 1]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, []),
        ({"items": {"type": "integer"}, "minItems": 3, "uniqueItems": True}, [1, 2, 3]),
        ({"items": {"enum": ["a", "b"]}, "minItems": 2, "uniqueItems": True}, ["a", "b"]),
        ({"items": {"type": "string"}, "minItems": 2, "uniqueItems": True}, ["text", "text 2"]),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 2}]}, [None, 2]),
        ({"type": "array"}, []),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
        ({"oneOf": [{"const": "x"}]}, "x"),
        (
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {"const": 1}}}]},
            {"a": "text", "b": 1},
        ),
        ({"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"const": 3}}}, 3),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "boolean"}}}, True),
        ({"$ref": "#"}, "text"),
        ({"type": "object", "required": ["z"]}, {"z": "text"}),
        (
            {"type": "object", "minProperties": 2, "additionalProperties": {"const": 1}},
            {"key1": 1, "key2": 1},
        ),
        ({}, "text"),
        (True, "text"),
        (5, "text"),
    ],
)
def test_a_schema_gets_a_value_that_satisfies_it(schema: object, value: object) -> None:
    assert example(schema) == value


def test_nested_objects_have_what_is_required_and_the_first_all() -> None:
    inner = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}
    schema = {"type": "object", "properties": {"x": inner, "y": {"type": "array", "items": inner}}}
    assert example(schema) == {"x": {"b": "text"}, "y": [{"b": "text"}]}


def test_formats_are_real() -> None:
    def text(kind: str) -> str:
        value: str = example({"type": "string", "format": kind})
        return value

    datetime.date.fromisoformat(text("date"))
    datetime.datetime.fromisoformat(text("date-time"))
    assert uuid.UUID(text("uuid")).version == 4
    assert re.fullmatch(r"[^@ ]+@[^@ ]+\.[a-z]+", text("email"))
    assert text("uri").startswith("https://")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/node", "$defs": {"node": _NODE}},
        {"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "object", "minProperties": 10**9},
        {"required": 5, "properties": [], "prefixItems": 1, "items": 1, "minItems": 2},
        {"type": "number", "minimum": float("inf"), "multipleOf": 0},
        {"type": "integer", "minimum": 1e308, "multipleOf": 1e-308},
        {"enum": [], "type": [], "anyOf": [], "format": {}},
    ],
)
def test_a_hostile_schema_ends_soon(schema: object) -> None:
    start = time.thread_time()
    engine = ScriptedEngine()
    wanted = ResponseFormat("json_schema", schema={"properties": {"x": schema}, "x": schema})
    prompt = CODEC.encode_chat(ask("hi", response_format=wanted)).ids
    engine.add(Job(1, prompt, 50, Sampling(), stop_ids=STOPS))
    assert drain(engine)
    assert time.thread_time() - start < 2
