"""Tool calls, as every family writes them, are taken out of the text; what is no call stays."""

from __future__ import annotations

import re

import pytest

from mlx_router.parsing import OutputParser, get_parser, known_formats, new_call_id
from mlx_router.parsing.tools import hermes as hermes_module
from tests.parsing_support import CALL, CLOSE, OPEN, WEATHER, calls, parse

# --- calls ----------------------------------------------------------------------------------


def test_a_call_is_taken_out_of_the_content() -> None:
    answer = parse([f"Let me look.\n{CALL}"])
    assert answer.content == "Let me look.\n"
    assert calls(answer) == [("get_weather", {"city": "Oslo"})]
    assert answer.calls[0][0] == "call_0"


def test_several_calls_in_one_answer() -> None:
    text = f"\n{CALL}\n{CALL}\n\n{CALL}\n"
    for pieces in ([text], list(text)):
        answer = parse(pieces)
        assert answer.content == ""
        assert calls(answer) == [("get_weather", {"city": "Oslo"})] * 3
        assert [call_id for call_id, _, _ in answer.calls] == ["call_0", "call_1", "call_2"]


def test_a_call_after_reasoning_and_text_after_the_call() -> None:
    answer = parse([f"<think>hm</think>\n\n{CALL}\nDone."])
    assert (answer.reasoning, answer.content) == ("hm", "\nDone.")
    assert len(answer.calls) == 1


def test_arguments_stream_as_soon_as_the_name_is_known() -> None:
    parser = OutputParser(None, None, "hermes", tools=[WEATHER], new_id=lambda: "call_x")
    assert parser.feed('<tool_call>\n{"name": "get_weather", ').tool_calls == ()
    first = parser.feed('"arguments": {"ci').tool_calls
    assert [(d.id, d.name, d.arguments) for d in first] == [
        ("call_x", "get_weather", ""),
        (None, None, '{"ci'),
    ]
    assert [d.arguments for d in parser.feed('ty": "Os').tool_calls] == ['ty": "Os']
    assert [d.arguments for d in parser.feed('lo"}}\n</tool').tool_calls] == ['lo"}']
    assert parser.feed("_call>").tool_calls == ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', {"a": 1}),
        ('{"name": "f", "parameters": {"a": [1, {"b": "}"}]}}', {"a": [1, {"b": "}"}]}),
        ('{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', {"a": "é"}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f"}', {}),
        ('{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', {"a": 1}),
        ('{"id": 7, "name": "f", "arguments": {"a": "\\\\\\""}, "x": [true]}', {"a": '\\"'}),
        ('[{"name": "f", "arguments": {}}]', {}),
        ('{"name": "f", "arguments": {}}}', {}),
    ],
)
def test_every_way_to_write_a_call(body: str, expected: object) -> None:
    text = f"{OPEN}{body}{CLOSE}"
    for pieces in ([text], list(text)):
        answer = parse(pieces)
        assert calls(answer) == [("f", expected)]
        assert answer.content == ""


def test_two_calls_between_one_pair_of_markers() -> None:
    body = '{"name": "f", "arguments": {"a": 1}}\n{"name": "g", "arguments": {}}'
    assert calls(parse(list(OPEN + body + CLOSE))) == [("f", {"a": 1}), ("g", {})]


def test_a_forgotten_closing_marker_ends_with_the_next_call_or_the_text() -> None:
    body = '{"name": "f", "arguments": {}}'
    answer = parse(list(f"{OPEN}{body}\n{OPEN}{body}\n<think>so</think>ok"))
    assert calls(answer) == [("f", {}), ("f", {})]
    assert answer.reasoning == "so"
    assert answer.content.strip() == "ok"


def test_control_characters_in_arguments_are_escaped() -> None:
    body = '{"name": "f", "arguments": {"code": "a\nb\tc\\\nd"}}'
    for pieces in ([OPEN + body + CLOSE], list(OPEN + body + CLOSE)):
        assert calls(parse(pieces)) == [("f", {"code": "a\nb\tc\nd"})]


def test_a_call_that_is_cut_off_keeps_what_was_said() -> None:
    answer = parse(['<tool_call>\n{"name": "f", "arguments": {"city": "Os'])
    assert answer.calls == [("call_0", "f", '{"city": "Os')]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call>none</tool_call>",
        "<tool_call>\n{'name': 'f'}\n</tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "argum',
        '<tool_call>{"arguments": {"a": 1}, "name": "f"',
        "a <tool_call><tool_call> b",
        "<tool_call>[1]</tool_call>\n",
    ],
)
def test_a_malformed_call_is_shown_as_it_is(text: str) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces)
        assert (answer.content, answer.calls) == (text, [])


def test_a_call_after_a_malformed_one_is_found() -> None:
    answer = parse(list(f"<tool_call>oops {CALL}"))
    assert answer.content == "<tool_call>oops "
    assert len(answer.calls) == 1


def test_without_tools_the_markers_are_text() -> None:
    assert parse([CALL], parse_tools=False).content == CALL
    assert parse([CALL], tool_format=None).content == CALL
    assert parse([CALL], tool_format="no such family").content == CALL


def test_a_parser_that_raises_costs_the_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, text: str, pos: int) -> int:
        raise AttributeError("a fault of ours")

    monkeypatch.setattr(hermes_module.Hermes, "feed", broken)
    for pieces in ([f"a {CALL} b"], list(f"a {CALL} b")):
        answer = parse(pieces, parser_class=OutputParser)
        assert answer.content == f"a {CALL} b"
        assert answer.calls == []


def test_ids_are_as_openai_writes_them() -> None:
    assert re.fullmatch(r"call_[0-9a-f]{24}", new_call_id())
    assert new_call_id() != new_call_id()


def test_families_are_found_by_name() -> None:
    assert {"hermes", "json"} <= set(known_formats())
    assert all(get_parser(name) is not None for name in known_formats())
    assert get_parser("nothing") is None


# --- bare JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_a_bare_json_object_is_a_call_if_it_names_a_tool(key: str) -> None:
    text = f' {{"name": "get_weather", "{key}": {{"city": "Oslo"}}}}\n'
    for pieces in ([text], list(text)):
        answer = parse(pieces, tool_format="json")
        assert calls(answer) == [("get_weather", {"city": "Oslo"})]
        assert answer.content == ""


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "arguments": {}}',
        '{"name": "get_weather"}',
        '{"answer": 42}',
        '  [1, 2, {"a": 3}]\n',
        "{",
        'Call {"name": "get_weather", "arguments": {}}',
    ],
)
def test_a_json_answer_is_no_call(text: str) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces, tool_format="json")
        assert (answer.content, answer.calls) == (text, [])


def test_a_json_answer_streams_from_its_first_foreign_key() -> None:
    parser = OutputParser(None, None, "json", tools=[WEATHER])
    assert parser.feed('{"answer"').content == '{"answer"'
    assert parser.feed(": 4").content == ": 4"
