"""Tagged, marked and channelled calls: the same result however the text is cut, in linear time."""

# ruff: noqa: RUF001 - DeepSeek writes its tokens so

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.parsing import CHANNELLED
from tests.parsing_support import Answer, StrictParser, calls, parse, parsing_seconds
from tests.test_tool_families import TOOLS
from tests.test_tool_families_more import (
    DEEP,
    KIMI,
    KIMI_CALL,
    ONE,
    SECTION,
    deepseek,
    kimi,
    results,
)
from tests.tool_formats import CALLS, TOOL

# --- chunks ---------------------------------------------------------------------------------

_COMMON = (
    *("\n", " ", "<", "</", "<|", ">", "{", "}", "[", "]", '"', "\\", ":", ",", "f", "city", "é"),
    *("{}", '{"a": "', '{"a": 1}', "```", "json", "STOP", "<think>", "</think>", "1"),
)
_TAGS = {
    "glm47": (
        *("<tool_call>", "</tool_call>", "<arg_key>city", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>", "</arg_key>\n<arg_value>", "<tool_call>get_weather\n"),
    ),
    "minimax_m2": (
        *("<minimax:tool_call>", "</minimax:tool_call>", "<invoke", "</invoke>"),
        *('<invoke name="f">', '<parameter name="city">', "</parameter>", "<parameter", ' name="'),
    ),
    "kimi_k2": (*KIMI, *KIMI_CALL, kimi("f:0", "{}"), KIMI_CALL[0] + "f" + KIMI_CALL[1]),
    "deepseek": (*SECTION, *DEEP, deepseek("f", "{}"), "function", "f\n```json\n"),
    "deepseek_v32": (
        *("<｜DSML｜function_calls>", '<｜DSML｜invoke name="f">', "</｜DSML｜invoke>"),
        *('<｜DSML｜parameter name="a" string="true">', "</｜DSML｜parameter>", "</｜DSML｜"),
    ),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>', "call:", "call:f{", "a:", '<|"|>x<|"|>'),
    "function_gemma": ("<start_function_call>", "<end_function_call>", "<escape>", "call:f{", "a:"),
    "gemma": ("```tool_code", "\n```", "f()", "f(a=", ")", "```tool_code\nf(a=1)", "print(", "-"),
    "harmony": (
        *("<|start|>assistant", "<|channel|>", "<|channel|>analysis", "<|message|>"),
        *("<|end|>", "<|call|>", " to=functions.f", "<|channel|>c to=f<|message|>", "final"),
    ),
    "minicpm5": (
        *("<function name=", '<function name="f">', "</function>", '<param name="city">', "<param"),
        *("</param>", "<![CDATA[", "]]>", '"f">'),
    ),
    "kimi_k3": (
        *("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", "<|open|>response<|sep|>", "<|sep|>"),
        *('<|open|>call tool="f"<|sep|>', "<|close|>call<|sep|>", "<|open|>json", "<|open|>"),
        *('<|open|>argument key="a" type="number"<|sep|>', "<|close|>argument<|sep|>"),
    ),
    "granite": ("<|tool_call|>", "<tool_call>", "</tool_call>", '[{"name": "f", "arguments": {}}]'),
    "phi4": ("<|tool_call|>", "<|/tool_call|>", "functools[", '{"name": "f", "arguments": {}}'),
}


@st.composite
def _pieces(draw: st.DrawFn, tool_format: str) -> list[str]:
    own = st.sampled_from(_TAGS[tool_format])
    scraps = st.one_of(own, own, st.sampled_from(_COMMON))
    text = "".join(draw(st.lists(scraps, max_size=16)))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in pairwise((0, *places, len(text)))]


@pytest.mark.parametrize("tool_format", _TAGS)
def test_the_result_does_not_depend_on_the_pieces(tool_format: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(pieces=_pieces(tool_format), stop=st.sampled_from([(), ("STOP",), ("</", "}")]))
    def check(pieces: list[str], stop: tuple[str, ...]) -> None:
        def result(some: Sequence[str]) -> Answer:
            return parse(some, tool_format=tool_format, stop=stop, tools=TOOLS)

        text = "".join(pieces)
        whole = result([text])
        assert result(pieces) == whole
        assert result(list(text)) == whole
        if not (whole.calls or stop or "think>" in text or tool_format in CHANNELLED):
            assert whole.content == text, "what is no call is never lost"

    check()


@settings(max_examples=80, deadline=None)
@given(value=st.text(max_size=40))
def test_any_string_survives_the_tags(value: str) -> None:
    if "\r" in value or "<" in value or value.encode("utf-8", "replace").decode() != value:
        return
    for tool_format, text in (
        ("glm47", f"<tool_call>f<arg_key>a</arg_key><arg_value>{value}</arg_value></tool_call>"),
        ("gemma4", f'<|tool_call>call:f{{a:<|"|>{value}<|"|>}}<tool_call|>'),
        ("harmony", f"<|channel|>c to=f<|message|>{json.dumps({'a': value})}<|call|>"),
    ):
        if tool_format == "glm47" and value.strip()[:1] in ("{", "[", "("):
            continue  # without a type, this may be an object or a list
        for answer in results(text, tool_format):
            assert calls(answer) == [("f", {"a": value})]


# --- work -----------------------------------------------------------------------------------


def _steps(text: str, tool_format: str) -> float:
    """How many functions run for each piece of ``text``, those in C included."""
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    parser = StrictParser("<think>", "</think>", tool_format, tools=(TOOL,))
    pieces = [text[at : at + 8] for at in range(0, len(text), 8)]
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for piece in pieces:
            parser.feed(piece)
        parser.finish()
    finally:
        sys.setprofile(before)
    return counted / len(pieces)


@pytest.mark.parametrize("tool_format", CALLS)
def test_the_work_for_long_arguments_is_linear(tool_format: str) -> None:
    short, long = (
        _steps(CALLS[tool_format]("Ulan Bator " * (length // 11)), tool_format)
        for length in (8 * 1024, 32 * 1024)
    )
    assert long <= 1.1 * short
    assert long <= 70


_BEFORE = {
    "glm47": ("", "<tool_call>f", "<tool_call>f<arg_key>city</arg_key><arg_value>"),
    "minimax_m2": ("", '<minimax:tool_call><invoke name="f">', "<minimax:tool_call><invoke"),
    "kimi_k2": ("", KIMI_CALL[0], KIMI_CALL[0] + "f" + KIMI_CALL[1] + '{"a":', ONE["kimi_k2"]),
    "deepseek": ("", DEEP[0], DEEP[0] + "f" + DEEP[1] + '{"a":', ONE["deepseek"]),
    "deepseek_v32": ("",),
    "gemma4": ("", "<|tool_call>call:f{", "<|tool_call>call:f{a:", '<|tool_call>call:f{a:<|"|>'),
    "function_gemma": ("", "<start_function_call>call:f{a:["),
    "gemma": ("", "```tool_code\n", "```tool_code\nf(a="),
    "harmony": ("", "<|channel|>", "<|channel|>final<|message|>", "<|channel|> to=f<|message|>{"),
    "granite": ("", "<tool_call>"),
    "minicpm5": ("", '<function name="f">', '<function name="f"><param name="city">'),
    "kimi_k3": (
        "",
        '<|open|>tools<|sep|><|open|>call tool="f"<|sep|>',
        '<|open|>tools<|sep|><|open|>call tool="f"<|sep|><|open|>json<|sep|>{',
    ),
    "phi4": ("", "<|tool_call|>"),
}


@pytest.mark.parametrize("tool_format", _BEFORE)
def test_parsing_time_is_linear(tool_format: str) -> None:
    units = (
        *_TAGS[tool_format],
        "{",
        "[",
        '{"a":[',
        "a:{",
        "a:[",
        "a:1,",
        '"',
        "\\",
        " ",
        "a",
        "```",
    )
    for before in _BEFORE[tool_format]:
        for unit in units:
            for size in (10**9, 16):
                short, long = (
                    parsing_seconds(
                        before + unit * (length // len(unit)), size, tool_format, tools=TOOLS
                    )
                    for length in (2_000, 8_000)
                )
                # Four times the text: quadratic work would take sixteen times as long. The
                # constant is for a busy machine.
                assert long <= 8 * short + 0.02, f"{before!r} {unit!r} of {size}: {short=} {long=}"
