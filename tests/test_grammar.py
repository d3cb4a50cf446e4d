"""Grammars: what is written, what is allowed, and that every answer comes to an end."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlx_router.domain import ChatPrompt, Tool
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.grammar.compiler import Compiler
from mlx_router.engine.grammar.objection import objection
from mlx_router.engine.grammar.thinking import Thinking
from mlx_router.engine.runner import LiveSequence
from mlx_router.errors import InvalidRequest
from tests.grammar_support import (
    TIMER,
    TOKENIZER,
    TREE,
    VOCAB_SIZE,
    WEATHER,
    best,
    compiler,
    constraint,
    decode_steps,
    ids,
    play,
    wanting,
)
from tests.parsing_support import parse


@pytest.fixture(scope="module")
def hermes() -> Compiler:
    return compiler()


# --- schemas --------------------------------------------------------------------------------

SCHEMAS: dict[str, dict[str, Any]] = {
    "recursive": TREE,
    "enum and const": {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y", 3, None]}, "b": {"const": True}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "formats": {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
            "mail": {"type": "string", "format": "email"},
            "ip": {"type": "string", "format": "ipv4"},
        },
        "required": ["when", "id", "mail", "ip"],
        "additionalProperties": False,
    },
    "bounds": {
        "type": "array",
        "items": {"type": "number", "minimum": -1, "maximum": 1},
        "minItems": 2,
        "maxItems": 4,
    },
    "choice": {
        "anyOf": [
            {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
            {"type": "string", "minLength": 3, "maxLength": 5},
            {"type": "null"},
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    "open object": {"type": "object", "additionalProperties": {"type": "integer"}},
    "any object": {"type": "object"},
    "text like special tokens": {
        "type": "object",
        "properties": {
            "</tool_call>": {"const": "<tool_call>"},
            "end": {"enum": ["<|im_end|>"]},
            "control": {"const": "a\x7fb\u0000"},
        },
        "required": ["</tool_call>", "end", "control"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_and_comes_to_an_end(hermes: Compiler, name: str) -> None:
    schema = SCHEMAS[name]
    wanted = constraint(hermes, wanting(schema))
    for seed in range(6):
        text, ended = play(wanted, 160, seed)
        assert ended, text
        jsonschema.validate(
            json.loads(text), schema, format_checker=jsonschema.FormatChecker(["ipv4", "email"])
        )


@pytest.mark.parametrize("name", SCHEMAS)
def test_few_tokens_are_enough_for_the_shortest_answer(hermes: Compiler, name: str) -> None:
    wanted = constraint(hermes, wanting(SCHEMAS[name]))
    shortest = wanted.compiled.shortest
    assert shortest is not None
    for extra in (0, 1, 5):
        text, ended = play(wanted, shortest + extra, seed=extra)
        assert ended, text
        jsonschema.validate(json.loads(text), SCHEMAS[name])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"if": {}, "then": {}}}}, "then"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "use anyOf"),
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"$ref": "#/properties/a", "properties": {"a": {"anyOf": [{"$ref": "#"}]}}}, "itself"),
        ({"const": "\ud800"}, "hex escape"),
        ({"type": "object", "description": "x" * 200_000}, "131072"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_keyword(
    hermes: Compiler, schema: dict[str, Any], words: str
) -> None:
    at = "response_format.json_schema.schema"
    with pytest.raises(InvalidRequest, match="cannot be enforced") as caught:
        hermes.compile(wanting(schema))
    assert caught.value.param == at
    assert at in str(caught.value)
    assert words in str(caught.value)
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    tool = Tool("t", parameters=parameters, strict=True)
    with pytest.raises(InvalidRequest) as caught:
        hermes.compile(ChatPrompt((), tools=(WEATHER, tool), tool_choice="required"))
    assert caught.value.param == "tools.1.function.parameters"


def test_a_schema_without_a_finite_value_is_refused(hermes: Compiler) -> None:
    endless = {
        "$ref": "#/$defs/n",
        "$defs": {
            "n": {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/n"}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
    }
    with pytest.raises(InvalidRequest, match="finite"):
        hermes.compile(wanting(endless))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "#"}, True),
        (
            {"properties": {"a": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": {"allOf": [0, {}]}}},
            False,
        ),
        ({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"$ref": "#/allOf/0"}}}, True),
        ({"items": {"$ref": "#"}}, False),
        (TREE, False),
    ],
)
def test_what_refers_to_nothing_but_itself(schema: dict[str, Any], expected: bool) -> None:
    assert (objection(schema) is not None) is expected


@pytest.mark.parametrize("divisor", [99_991, 12_345.67, 9_999_991])
def test_a_divisor_that_would_take_minutes_is_refused(hermes: Compiler, divisor: float) -> None:
    with pytest.raises(InvalidRequest, match="multipleOf"):
        hermes.compile(wanting({"type": "array", "items": {"multipleOf": divisor}}))


@pytest.mark.parametrize("divisor", [5, 0.25, 1_000_000, 1e30])
def test_other_divisors_are_enforced(divisor: float) -> None:
    assert objection({"type": "number", "multipleOf": divisor}) is None


def test_a_tool_that_is_not_strict_may_have_any_schema(hermes: Compiler) -> None:
    odd = Tool("odd", parameters={"type": "object", "properties": {"a": {"not": {}}}})
    prompt = ChatPrompt((), tools=(odd,), tool_choice="required")
    text, ended = play(constraint(hermes, prompt), 60, 1)
    assert ended
    assert isinstance(json.loads(parse([text], tools=prompt.tools).calls[0][2]), dict)


def test_the_same_form_is_compiled_once(hermes: Compiler) -> None:
    assert hermes.compile(wanting(TREE)) is hermes.compile(wanting(dict(TREE)))
    assert hermes.compile(wanting(TREE)) is not hermes.compile(wanting({"type": "object"}))


def test_what_is_kept_for_a_tool_is_not_taken_for_a_strict_one(hermes: Compiler) -> None:
    odd = Tool("odd", parameters={"type": "object", "properties": {"a": {"not": {}}}})
    prompt = ChatPrompt((), tools=(odd,), tool_choice="required")
    assert hermes.compile(prompt) is hermes.compile(prompt)
    with pytest.raises(InvalidRequest, match=r"tools\.0"):
        hermes.compile(replace(prompt, tools=(replace(odd, strict=True),)))


def test_a_schema_may_not_loosen_its_own_enforcement(hermes: Compiler) -> None:
    schema = {"type": "string", "x-guidance": {"lenient": True}, "not": {}}
    with pytest.raises(InvalidRequest):
        hermes.compile(wanting(schema))


# --- tools and a format together, reasoning -------------------------------------------------


def test_with_tools_the_answer_is_a_call_or_has_the_format(hermes: Compiler) -> None:
    prompt = wanting(TREE, tools=(WEATHER, TIMER))
    wanted = constraint(hermes, prompt)
    kinds = set()
    for seed in range(200):
        text, ended = play(wanted, 120, seed)
        assert ended
        answer = parse([text], tools=prompt.tools)
        if answer.calls:
            kinds.add("call")
            assert not answer.content
        else:
            kinds.add("answer")
            jsonschema.validate(json.loads(answer.content), TREE)
        if len(kinds) == 2:
            return
    pytest.fail(f"200 random answers were all of one kind: {kinds}")


@pytest.mark.parametrize("begun", [True, False])
def test_reasoning_is_free_and_closed_before_tokens_run_out(hermes: Compiler, begun: bool) -> None:
    thinking = Thinking(begun, ids("<think>")[0], ids("</think>"))
    wanted = constraint(hermes, wanting(TREE), thinking)
    lengths = []
    for seed in range(8):
        text, ended = play(wanted, 120, seed)
        assert ended
        if begun or "<think>" in text:
            reasoning, _, text = text.partition("</think>")
            lengths.append(len(reasoning))
        jsonschema.validate(json.loads(text), TREE)
    assert lengths if begun else True
    assert not begun or min(lengths) > 20


def test_blank_lines_after_reasoning_are_let_through(hermes: Compiler) -> None:
    thinking = Thinking(True, ids("<think>")[0], ids("</think>"))
    processor = constraint(hermes, wanting(TREE), thinking).processor(200)
    tokens = [5]
    for token in ids("Hm.</think>\n\n"):
        allowed = processor(mx.array(tokens), mx.zeros((1, VOCAB_SIZE)))
        assert allowed[0, token].item() == 0
        tokens.append(token)
    allowed = processor(mx.array(tokens), mx.zeros((1, VOCAB_SIZE)))
    texts = {TOKENIZER.decode([i]).strip() for i in range(VOCAB_SIZE) if allowed[0, i].item() == 0}
    assert texts == {"", '{"'}


# --- the mask -------------------------------------------------------------------------------


def test_padding_of_the_vocabulary_is_never_allowed(hermes: Compiler) -> None:
    text, ended = play(constraint(hermes, wanting(TREE)), 80, 3, vocab_size=VOCAB_SIZE + 70)
    assert ended
    jsonschema.validate(json.loads(text), TREE)


def test_the_type_of_the_logits_is_kept(hermes: Compiler) -> None:
    processor = constraint(hermes, wanting(TREE)).processor(50)
    assert processor(mx.array([5]), mx.zeros((1, VOCAB_SIZE), mx.bfloat16)).dtype == mx.bfloat16


def test_it_goes_on_from_the_middle_as_if_nothing_had_happened(hermes: Compiler) -> None:
    wanted = constraint(hermes, wanting(TREE))
    tokens = list(decode_steps(wanted.processor(100), 100, seed=4))
    for cut in range(0, len(tokens), 7):
        whole, resumed = wanted.processor(100), wanted.processor(100, tokens[:cut])
        for end in range(cut):
            whole(mx.array([5, *tokens[:end]]), mx.zeros((1, VOCAB_SIZE)))
        context = mx.array([5, *tokens[:cut]])
        logits = mx.zeros((1, VOCAB_SIZE))
        assert mx.array_equal(whole(context, logits), resumed(context, logits))


def test_a_fault_in_the_grammar_ends_the_answer(
    hermes: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    processor = constraint(hermes, wanting({"type": "array"})).processor(50)
    logits = mx.array(np.array([[random.random() for _ in range(VOCAB_SIZE)]], dtype=np.float32))
    processor(mx.array([5]), logits)
    for _ in range(3):  # a token that the mask had forbidden
        allowed = processor(mx.array([5, ids("x")[0]]), logits)
        assert best(allowed) in TOKENIZER.eos_token_ids
    assert caplog.text.count("a grammar failed") == 1


def test_an_answer_whose_grammar_failed_is_not_said_to_be_complete(hermes: Compiler) -> None:
    wanted = constraint(hermes, wanting({"type": "array"}))
    sequence = LiveSequence(Job(1, [5], 50, Sampling(), constraint=wanted))
    (mask,) = sequence.processors()
    row = mx.zeros((1, VOCAB_SIZE))
    mask(mx.array([5]), row)
    assert not sequence.result(ids("[")[0], row[0], None).incomplete
    mask(mx.array([5, ids("x")[0]]), row)
    assert sequence.result(TOKENIZER.eos_token_id, row[0], "stop").incomplete
