"""A call that is cut off or damaged: never an error, and no word of it is lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.parsing import known_formats
from tests.parsing_support import Answer, calls, parse
from tests.tool_formats import CALLS, TOOL

CITY = "Ulan Bator 4711"
WORDS = re.compile(r"Ulan|Bator|4711|Moment|Danke")
AT_THE_START = {"json", "llama3_json"}  # the whole answer is the call


def whole(tool_format: str) -> str:
    """An answer with text around a call."""
    before = "" if tool_format in AT_THE_START else "Moment. "
    return before + CALLS[tool_format](CITY) + "\nDanke."


def read(pieces: Sequence[str], tool_format: str) -> Answer:
    return parse(pieces, tool_format=tool_format, tools=(TOOL,), markers=(None, None))


def words(text: str) -> list[str]:
    return sorted(WORDS.findall(text))


def said(answer: Answer) -> list[str]:
    called = (f"{name} {arguments}" for _, name, arguments in answer.calls)
    return words(" ".join((answer.content, answer.reasoning, *called)))


def test_there_is_a_call_of_every_family() -> None:
    assert set(CALLS) == set(known_formats())


@pytest.mark.parametrize("tool_format", CALLS)
def test_the_call_is_read_and_the_text_around_it_stays(tool_format: str) -> None:
    text = whole(tool_format)
    for pieces in ([text], list(text)):
        answer = read(pieces, tool_format)
        assert calls(answer) == [("get_weather", {"city": CITY})]
        assert answer.content.split() == re.findall(r"Moment\.|Danke\.", text)


@pytest.mark.parametrize("tool_format", CALLS)
def test_wherever_an_answer_is_cut_off_all_words_are_there(tool_format: str) -> None:
    text = whole(tool_format)
    for end in range(len(text)):
        answer = read([text[:end]], tool_format)
        assert answer == read(list(text[:end]), tool_format)
        assert said(answer) == words(text[:end]), text[:end]


@pytest.mark.parametrize("tool_format", CALLS)
def test_whatever_is_damaged_all_words_are_there(tool_format: str) -> None:
    text = whole(tool_format)
    places = st.integers(0, len(text))

    @settings(max_examples=60, deadline=None)  # of every family
    @given(
        start=places,
        length=st.integers(0, 12),
        scrap=st.one_of(st.text("<>|{}[]()\"'\\:,=` \nab/_", max_size=3), st.just(text)),
        cuts=st.sets(places, max_size=6),
    )
    def check(start: int, length: int, scrap: str, cuts: set[int]) -> None:
        damaged = text[:start] + scrap + text[start + length :]
        answer = read([damaged], tool_format)
        pieces = [damaged[a:b] for a, b in pairwise((0, *sorted(cuts), len(damaged)))]
        assert read(pieces, tool_format) == answer
        assert said(answer) == words(damaged), damaged

    check()
