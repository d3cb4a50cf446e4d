"""Stop strings end an answer, are never shown, and hold back no more than they must."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.parsing import OutputParser, Parsed


def read(pieces: Sequence[str], stop: Sequence[str]) -> tuple[str, bool]:
    parser = OutputParser(None, None, None, stop=stop)
    parsed = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    return "".join(part.content for part in parsed), parsed[-1].stopped


def test_a_stop_string_is_never_shown_and_ends_the_answer() -> None:
    parser = OutputParser(None, None, None, stop=["END"])
    assert parser.feed("one E") == Parsed("one ")
    assert parser.feed("N") == Parsed()
    assert parser.feed("D two") == Parsed(stopped=True)
    assert parser.feed("three END") == Parsed(stopped=True)
    assert parser.finish() == Parsed(stopped=True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_it_is_found_over_any_pieces(size: int) -> None:
    text = "Once upon a time"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(pieces, ["upon a"]) == ("Once ", True)


def test_what_only_looked_like_one_is_shown() -> None:
    parser = OutputParser(None, None, None, stop=["\nUser:"])
    assert parser.feed("a\nUs").content == "a"
    assert parser.feed("ed").content == "\nUsed"
    assert parser.feed("\nUser").content == ""
    assert parser.finish() == Parsed("\nUser")


def test_the_first_of_several_wins() -> None:
    assert read(["abcdef"], ["ef", "cd", "zz"]) == ("ab", True)
    assert read(["abcd"], ["abcd", "bc"]) == ("a", True)
    assert read(["aaab"], ["aab"]) == ("a", True)


def test_a_stop_string_at_the_very_start_leaves_nothing() -> None:
    assert read(["END", "x"], ["END"]) == ("", True)


def test_characters_of_many_bytes() -> None:
    assert read(["é🙂", "🙃 é"], ["🙂🙃"]) == ("é", True)


def test_they_count_in_reasoning_and_in_content_but_not_across() -> None:
    parser = OutputParser("<think>", "</think>", None, stop=["ab"])
    assert parser.feed("<think>xa</think>b").reasoning == "xa"
    assert parser.feed("c").content == "c"
    parser = OutputParser("<think>", "</think>", None, stop=["ab"])
    parsed = parser.feed("<think>xab</think>y")
    assert (parsed.reasoning, parsed.content, parsed.stopped) == ("x", "", True)


def test_markers_are_not_content() -> None:
    parser = OutputParser("<think>", "</think>", "hermes", stop=["<", "think", "name"])
    text = '<think>a</think>b<tool_call>{"name": "f", "arguments": {"x": "name<"}}</tool_call>'
    parsed = parser.feed(text)
    assert (parsed.reasoning, parsed.content, parsed.stopped) == ("a", "b", False)
    assert "".join(delta.arguments for delta in parsed.tool_calls) == '{"x": "name<"}'
    assert parser.feed("c<d").stopped


def test_nothing_after_a_stop_string_is_called() -> None:
    parser = OutputParser(None, None, "hermes", stop=["END"])
    parsed = parser.feed('END<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    assert (parsed.tool_calls, parsed.stopped) == ((), True)


def test_empty_stop_strings_are_ignored() -> None:
    assert read(["abc"], ["", "c"]) == ("ab", True)
    assert read(["abc"], [""]) == ("abc", False)


_LETTERS = st.text("ab\n", max_size=30)


@settings(max_examples=500, deadline=None)
@given(
    text=_LETTERS,
    stop=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.sets(st.integers(0, 30), max_size=6),
)
def test_the_answer_ends_where_the_first_stop_string_is_complete(
    text: str, stop: list[str], cuts: set[int]
) -> None:
    ends = [(text.find(one) + len(one), -len(one)) for one in stop if one in text]
    expected = text if not ends else text[: min(ends)[0] + min(ends)[1]]
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert read(pieces, stop) == (expected, bool(ends))


@settings(max_examples=300, deadline=None)
@given(text=_LETTERS, stop=st.text("ab\n", min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stop: str) -> None:
    parser = OutputParser(None, None, None, stop=[stop])
    fed = shown = ""
    for character in text:
        fed += character
        parsed = parser.feed(character)
        shown += parsed.content
        if parsed.stopped:
            break
        held = fed[len(shown) :]
        assert stop.startswith(held)
        longest = max(n for n in range(len(stop)) if fed.endswith(stop[:n]))
        assert len(held) == longest
