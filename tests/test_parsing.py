"""What the output parser promises: reasoning apart from content, nothing lost, the same result
however the text was cut, and linear work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.parsing import OutputParser, known_formats
from mlx_router.parsing.matcher import Patterns, Scanner
from tests.parsing_support import CALL, CLOSE, OPEN, Answer, parse, parsing_seconds

# --- plain text and reasoning ---------------------------------------------------------------


def test_plain_text_passes_at_once_and_unchanged() -> None:
    parser = OutputParser(None, None, None)
    assert [parser.feed(text).content for text in ("Hel", "lo\n", " <b>")] == [
        "Hel",
        "lo\n",
        " <b>",
    ]
    assert parser.finish().content == ""


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nLet me see.\n</think>\n\nIt is 4.", "Let me see.", "It is 4."),
        ("<think>a</think>b", "a", "b"),
        ("<think>\n\n\na\n\nb\n\n</think>\n \n\t\n  b\n", "a\n\nb", "  b\n"),
        ("<think>\n\n</think>\n\nHi", "", "Hi"),
        ("<think></think>", "", ""),
        ("<think> \n</think>\n", "", ""),
        ("\n<think>x</think>y", "x", "y"),
        ("<think>never closed\n\n", "never closed\n\n", ""),
        ("<think>a</think>b<think>c</think>\nd", "ac", "bd"),
        ("<think>a < b </thin k></think>c", "a < b </thin k>", "c"),
        ("a </think> b", "", "a </think> b"),
        ("a <thin", "", "a <thin"),
        ("<think>a</thin", "a</thin", ""),
        ("  indented\n", "", "  indented\n"),
        (" \n", "", " \n"),
    ],
)
def test_reasoning_is_apart_from_content(text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces)
        assert (answer.reasoning, answer.content) == (reasoning, content)


@pytest.mark.parametrize("text", ["so\n</think>\n\nyes", "<think>\nso\n</think>yes"])
def test_an_answer_may_start_inside_the_reasoning(text: str) -> None:
    for pieces in ([text], list(text)):
        answer = parse(pieces, starts_in_reasoning=True)
        assert (answer.reasoning, answer.content) == ("so", "yes")


def test_a_thinking_marker_within_reasoning_is_text() -> None:
    answer = parse(list("<think>the <think> tag</think>x"))
    assert (answer.reasoning, answer.content) == ("the <think> tag", "x")


def test_only_an_end_marker_is_enough_when_the_prompt_opened_the_reasoning() -> None:
    answer = parse(list("a◁/think▷b"), markers=(None, "◁/think▷"), starts_in_reasoning=True)
    assert (answer.reasoning, answer.content) == ("a", "b")


# --- chunks ---------------------------------------------------------------------------------

_COMMON = (
    *("<think>", "</think>", "\n", "\n\n", " ", "<", "</", "[", "]", "{", "}", '"', "\\", ":", ","),
    *("name", "é", "🙂", "ab", "STOP", "ST", "\x00", "\u2028", "'", "(", ")", "="),
)
_JSON = ('{"name": "f", "arguments": {}}', '{"name": "f", "arguments": ', '"parameters": {"a": "')
_SCRAPS = {
    "hermes": (OPEN, CLOSE, CALL, "<tool", '"name"', *_JSON, '"arguments": "{}"'),
    "json": (*_JSON, '{"name": "get_weather", "arguments": {"a', '{"name": "get_weather", '),
    "llama3_json": ("<|python_tag|>", "; ", '{"name": "get_weather", "parameters": {}}', *_JSON),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "f[ARGS]{}", 'f[ARGS]{"a": "', *_JSON),
    "pythonic": ("<|tool_call_start|>", "<|tool_call_end|>", "[f(", "get_weather(", "a=1", "f()"),
    "qwen3_coder": (
        *(OPEN, CLOSE, "<function=", "</function>", "<parameter=", "</parameter>", ">", "city>"),
        *("<function=get_weather>\n", "<parameter=city>\nOs", "\n</parameter>\n</function>"),
    ),
}


def _texts(tool_format: str) -> st.SearchStrategy[str]:
    # A family without scraps of its own is still fed everybody's.
    known = _SCRAPS.get(tool_format, sum(_SCRAPS.values(), ()))
    scraps = st.one_of(st.sampled_from(known), st.sampled_from(known), st.sampled_from(_COMMON))
    return st.lists(scraps, max_size=14).map("".join)


@st.composite
def _pieces(draw: st.DrawFn, tool_format: str) -> list[str]:
    text = draw(_texts(tool_format))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in pairwise((0, *places, len(text)))]


@pytest.mark.parametrize("tool_format", known_formats())
def test_the_result_does_not_depend_on_the_pieces(tool_format: str) -> None:
    @settings(max_examples=60, deadline=None)  # of every family
    @given(
        pieces=_pieces(tool_format),
        stop=st.sampled_from([(), ("STOP",), ("\n\n", "ab"), ("</", "}")]),
        starts_in_reasoning=st.booleans(),
    )
    def check(pieces: list[str], stop: tuple[str, ...], starts_in_reasoning: bool) -> None:
        def result(some: Sequence[str]) -> Answer:
            return parse(
                some, tool_format=tool_format, stop=stop, starts_in_reasoning=starts_in_reasoning
            )

        text = "".join(pieces)
        whole = result([text])
        assert result(pieces) == whole
        assert result(list(text)) == whole
        if not (whole.calls or starts_in_reasoning or stop or "think>" in text):
            assert whole.content == text, "what is no call is never lost"

    check()


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=200),
    size=st.integers(1, 9),
    tool_format=st.sampled_from(known_formats()),
)
def test_no_text_raises_or_is_lost(text: str, size: int, tool_format: str) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert parse(pieces, markers=(None, None), tool_format=tool_format).content == text


# --- work -----------------------------------------------------------------------------------

_ADVERSARIES = {
    "start markers": OPEN,
    "opened objects": OPEN + "{",
    "named calls": OPEN + '{"name":"f","arguments":{',
    "whole calls": CALL,
    "partial markers": "<tool_cal",
    "thinking": "<think>a</think>",
    "nesting": '{"a":[',
    "newlines": "\n",
    "spaces": " ",
    "stop prefixes": "a",
    "escapes": "\\",
    "quotes": '"',
    "control characters": '"\x01',
    "brackets": "[",
    "parentheses": "f(a=",
    "signs": "-",
    "mistral markers": "[TOOL_CALLS]f[ARGS]",
    "functions": "<function=f>",
    "parameters": "<parameter=a>\n",
    "ends": "\n</parameter",
}
_BEFORE = {
    "nothing": ("", None),
    "a marker": (OPEN, "hermes"),
    "arguments": (OPEN + '{"name":"f","arguments":[', "hermes"),
    "early arguments": (OPEN + '{"arguments":"', "hermes"),
    "reasoning": ("<think>", "hermes"),
    "a call": (CALL, "hermes"),
    "a bare object": ('{"arguments":{', "json"),
    "mistral's marker": ("[TOOL_CALLS]", "mistral"),
    "mistral's arguments": ("[TOOL_CALLS]f[ARGS]{", "mistral"),
    "a python list": ("<|tool_call_start|>[f(a=", "pythonic"),
    "a bare python list": ("[", "pythonic"),
    "a function": (OPEN + "<function=get_weather>", "qwen3_coder"),
    "a value": (OPEN + "<function=get_weather>\n<parameter=city>\n", "qwen3_coder"),
}


@pytest.mark.parametrize("before", _BEFORE)
def test_parsing_time_is_linear(before: str) -> None:
    prefix, tool_format = _BEFORE[before]
    for name, unit in _ADVERSARIES.items():
        for size in (10**9, 16):
            short, long = (
                parsing_seconds(
                    prefix + unit * (length // len(unit)), size, tool_format, stop=["a" * 60 + "b"]
                )
                for length in (4_000, 16_000)
            )
            # Four times the text: quadratic work would take sixteen times as long. The constant
            # is for a busy machine.
            assert long <= 8 * short + 0.02, f"{name} in pieces of {size}: {short=} {long=}"


def _lookups(text: str, texts: Sequence[str]) -> int:
    """How often a scan of ``text`` takes a step of the automaton."""
    counted = 0

    class Counting(dict[str, int]):
        def __contains__(self, key: object) -> bool:
            nonlocal counted
            counted += 1
            return super().__contains__(key)

    searched = Patterns(texts)
    searched.step = [Counting(step) for step in searched.step]
    Scanner(searched).scan(text)
    return counted


def test_a_scan_takes_at_most_two_steps_a_character() -> None:
    for text, searched in (
        ("a" * 20_000, ["a" * 500 + "b"]),
        ("ab" * 10_000, ["ab" * 200 + "c", "ba" * 100 + "d"]),
        ("<" * 20_000, ["<think>", "<tool_call>"]),
    ):
        assert _lookups(text, searched) <= 2 * len(text)


def test_the_first_complete_match_wins_and_is_not_shown() -> None:
    scanner = Scanner(Patterns(["abcd", "bc", "x"]))
    assert scanner.scan("zabcd") == ("za", 1, 4)
    assert scanner.scan("zabcd", 4) == ("d", -1, 5)
    for piece in "ab":
        assert scanner.scan(piece) == ("", -1, 1)
    assert scanner.holding
    assert scanner.scan("e") == ("abe", -1, 1)
    assert not scanner.holding
