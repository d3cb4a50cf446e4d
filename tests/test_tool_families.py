"""Every family's calls, as its models write them, whole and letter by letter."""

from __future__ import annotations

import json

import pytest

from mlx_router.domain import Tool
from mlx_router.parsing import OutputParser
from tests.parsing_support import calls, parse

TOOLS = (
    Tool(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "factor": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object"},
                "unit": {"enum": ["celsius", "kelvin"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "level": {"enum": [1, 2]},
                "untyped": {},
            },
        },
    ),
    Tool("ns.now"),
)

GOOD: list[tuple[str, str, list[tuple[str, object]]]] = [
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        [("get_weather", {"city": "Oslo"})],
    ),
    (
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"days": 1}}; '
        '{"name": "ns.now", "parameters": {}}',
        [("get_weather", {"days": 1}), ("ns.now", {})],
    ),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        [("f", {"a": 1}), ("g", {})],
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": "]["}', [("f", {"a": "]["})]),
    ("mistral", '[TOOL_CALLS]f [ARGS] {"a": 1}\n', [("f", {"a": 1})]),
    (
        "mistral",
        '[TOOL_CALLS]f[CALL_ID]x7[ARGS]{"a": 1}[TOOL_CALLS]my-tool[ARGS]{}',
        [("f", {"a": 1}), ("my-tool", {})],
    ),
    ("mistral", "[TOOL_CALLS]f[ARGS]{}g[ARGS]{}", [("f", {}), ("g", {})]),
    (
        "pythonic",
        "[get_weather(city='Oslo (N]', days=3, exact=True), ns.now()]",
        [("get_weather", {"city": "Oslo (N]", "days": 3, "exact": True}), ("ns.now", {})],
    ),
    (
        "pythonic",
        '<|tool_call_start|>[f(a={"b": [true, null, -1.5]}, s="it\'s \\"x\\"\\n")]'
        "<|tool_call_end|>\n",
        [("f", {"a": {"b": [True, None, -1.5]}, "s": 'it\'s "x"\n'})],
    ),
    (
        "pythonic",
        "<|tool_call_start|>[f()]<|tool_call_end|><|tool_call_start|>[g()]",
        [("f", {}), ("g", {})],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        [("get_weather", {"city": "New\nYork", "days": 3})],
    ),
    (
        "qwen3_coder",
        "<function=get_weather><parameter=exact>True</parameter><parameter=factor>1.5</parameter>"
        '<parameter=tags>[\'a\', "b"]</parameter><parameter=where>{"x": 1}</parameter>'
        "<parameter=unit>celsius</parameter><parameter=note>null</parameter>"
        "<parameter=level>2</parameter><parameter=untyped>7</parameter></function>",
        [
            (
                "get_weather",
                {
                    "exact": True,
                    "factor": 1.5,
                    "tags": ["a", "b"],
                    "where": {"x": 1},
                    "unit": "celsius",
                    "note": None,
                    "level": 2,
                    "untyped": "7",
                },
            )
        ],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=get_weather>\n<parameter=city>\n3\n</parameter>\n"
        '<parameter=days>\nmany\n</parameter>\n<parameter=note>\n</b> "\\\n</parameter>\n'
        "</function>\n</tool_call>\n<tool_call>\n<function=ns.now>\n</function>\n</tool_call>",
        [("get_weather", {"city": "3", "days": "many", "note": '</b> "\\'}), ("ns.now", {})],
    ),
    (
        "qwen3_coder",
        '<tool_call>\n<function=f>\n<parameter=untyped>\n{"a": [1]}\n</parameter>\n</tool_call>',
        [("f", {"untyped": {"a": [1]}})],
    ),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\n\n</parameter>", [("f", {"a": ""})]),
]


@pytest.mark.parametrize(("tool_format", "text", "expected"), GOOD)
def test_the_familys_calls_are_read(
    tool_format: str, text: str, expected: list[tuple[str, object]]
) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces, tool_format=tool_format, tools=TOOLS)
        assert calls(answer) == expected
        assert answer.content == ""


@pytest.mark.parametrize(
    ("tool_format", "call"),
    [
        ("llama3_json", '<|python_tag|>{"name": "ns.now", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS][{"name": "ns.now", "arguments": {}}]'),
        ("mistral", "[TOOL_CALLS]ns.now[ARGS]{}"),
        ("pythonic", "<|tool_call_start|>[ns.now()]<|tool_call_end|>"),
        ("qwen3_coder", "<tool_call>\n<function=ns.now>\n</function>\n</tool_call>"),
        ("qwen3_coder", "<function=ns.now>\n</function>"),
    ],
)
def test_text_before_and_after_a_call_is_content(tool_format: str, call: str) -> None:
    text = f"Let me see. {call}\nDone, <think>I think</think>I am."
    for pieces in ([text], list(text)):
        answer = parse(pieces, tool_format=tool_format, tools=TOOLS)
        assert answer.content == "Let me see. \nDone, I am."
        assert answer.reasoning == "I think"
        assert calls(answer) == [("ns.now", {})]


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("llama3_json", "<|python_tag|>print(1)"),
        ("llama3_json", '{"name": "unknown", "parameters": {}}'),
        ("llama3_json", '{"city": "Oslo"}'),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS] nothing to call"),
        ("mistral", "[TOOL_CALLS]f[ARGS]1"),
        ("mistral", "[TOOL_CALLS]f[CALL_ID]x[CALL_ID]y[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]f[AR"),
        ("mistral", "[TOOL_CALLS][ARGS]{}"),
        ("mistral", "[1, 2]"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[link](https://example.com)"),
        ("pythonic", "[unknown(a=1)]"),
        ("pythonic", "[get_weather('Oslo')]"),
        ("pythonic", "[get_weather(city=x)]"),
        ("pythonic", "[get_weather(**a)]"),
        ("pythonic", "[get_weather(city='Oslo'), 3]"),
        ("pythonic", "[get_weather(city='Oslo'"),
        ("pythonic", "[]"),
        ("pythonic", "<|tool_call_start|>[f(a=" + "-" * 9999 + "1)]<|tool_call_end|>"),
        ("pythonic", "<|tool_call_start|>[f(a=" + "(" * 999 + ")" * 999 + ")]"),
        ("qwen3_coder", "<tool_call>\nnothing\n</tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=>\n"),
        ("qwen3_coder", "<tool_call>\n<function=a<b>\n"),
        ("qwen3_coder", "<function=f"),
        ("qwen3_coder", "<parameter=a>b</parameter>"),
    ],
)
def test_what_is_no_call_is_shown_as_it_is(tool_format: str, text: str) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces, tool_format=tool_format, tools=TOOLS)
        assert (answer.content, answer.calls) == (text, [])


def test_strings_of_qwen3_coder_stream() -> None:
    parser = OutputParser(None, None, "qwen3_coder", tools=TOOLS)
    first = parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\nOs")
    assert [delta.name for delta in first.tool_calls if delta.name] == ["get_weather"]
    assert "".join(delta.arguments for delta in first.tool_calls) == '{"city": "Os'
    assert [delta.arguments for delta in parser.feed('lo "N').tool_calls] == ['lo \\"N']
    assert parser.feed("\n</para").tool_calls == ()
    last = parser.feed("meter>\n</function>").tool_calls
    assert "".join(delta.arguments for delta in last) == '"}'


def test_arguments_of_mistral_stream() -> None:
    parser = OutputParser(None, None, "mistral", tools=TOOLS)
    assert parser.feed("[TOOL_CALLS]get_weather[ARGS]").tool_calls == ()
    first = parser.feed('{"ci').tool_calls
    assert [(delta.name, delta.arguments) for delta in first] == [
        ("get_weather", ""),
        (None, '{"ci'),
    ]


def test_a_list_that_is_the_answer_streams_once_it_cannot_be_a_call() -> None:
    parser = OutputParser(None, None, "pythonic", tools=TOOLS)
    assert parser.feed("[1").content == "[1"
    assert parser.feed(", 2").content == ", 2"


@pytest.mark.parametrize(
    ("cut", "arguments"),
    [
        ("<tool_call><function=get_weather><parameter=city>Os", '{"city": "Os'),
        ("<tool_call><function=get_weather><parameter=city>Oslo\n</par", '{"city": "Oslo\\n</par'),
        ("<tool_call><function=get_weather><parameter=city>a</parameter>\n</fun", '{"city": "a"}'),
        ("<tool_call><function=get_weather>", "{}"),
    ],
)
def test_a_call_of_qwen3_coder_that_is_cut_off_keeps_what_was_said(
    cut: str, arguments: str
) -> None:
    for pieces in ([cut], list(cut)):
        answer = parse(pieces, tool_format="qwen3_coder", tools=TOOLS)
        assert [call[1:] for call in answer.calls] == [("get_weather", arguments)]
        assert answer.content == ""


def test_odd_values_are_still_json() -> None:
    for written in ("NaN", "1e999", "{1: 2}", "{'a', 'b'}", "b'x'", "[" * 5000, "-" * 5000, "()"):
        text = f"<function=get_weather><parameter=where>{written}</parameter></function>"
        ((_, _, arguments),) = parse([text], tool_format="qwen3_coder", tools=TOOLS).calls
        assert set(json.loads(arguments)) == {"where"}
