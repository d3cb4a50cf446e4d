"""Feeding an output parser, for the tests of parsing."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_router.domain import Tool
from mlx_router.parsing import OutputParser

WEATHER = Tool("get_weather", parameters={"type": "object", "properties": {"city": {}}})
OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class StrictParser(OutputParser):
    """Tells when a parser of tool calls raises, which is otherwise covered up."""

    def _tool_failed(self, error: Exception) -> None:
        raise error


@dataclass
class Answer:
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str | None, str | None, str]] = field(default_factory=list)
    stopped: bool = False


def parse(
    pieces: Sequence[str],
    *,
    tool_format: str | None = "hermes",
    stop: Sequence[str] = (),
    tools: Sequence[Tool] = (WEATHER,),
    starts_in_reasoning: bool = False,
    parse_tools: bool = True,
    markers: tuple[str | None, str | None] = ("<think>", "</think>"),
    parser_class: type[OutputParser] = StrictParser,
) -> Answer:
    """The joined result of feeding ``pieces`` and finishing."""
    numbers = iter(range(10**9))
    parser = parser_class(
        *markers,
        tool_format,
        stop=stop,
        tools=tools,
        starts_in_reasoning=starts_in_reasoning,
        parse_tools=parse_tools,
        new_id=lambda: f"call_{next(numbers)}",
    )
    answer = Answer()
    for parsed in (*(parser.feed(piece) for piece in pieces), parser.finish()):
        answer.content += parsed.content
        answer.reasoning += parsed.reasoning
        answer.stopped = parsed.stopped
        for delta in parsed.tool_calls:
            if delta.id is not None:
                assert delta.index == len(answer.calls), "calls are numbered in order"
                answer.calls.append((delta.id, delta.name, delta.arguments))
            else:
                call_id, name, arguments = answer.calls[delta.index]
                answer.calls[delta.index] = (call_id, name, arguments + delta.arguments)
    return answer


def parsing_seconds(
    text: str,
    size: int,
    tool_format: str | None,
    *,
    stop: Sequence[str] = (),
    tools: Sequence[Tool] = (),
) -> float:
    """CPU time to parse ``text`` in pieces of ``size`` characters; the better of two runs."""

    def once() -> float:
        parser = StrictParser("<think>", "</think>", tool_format, stop=stop, tools=tools)
        start = time.thread_time()
        for at in range(0, len(text), size):
            parser.feed(text[at : at + size])
        parser.finish()
        return time.thread_time() - start

    return min(once() for _ in range(2))


def calls(answer: Answer) -> list[tuple[str | None, object]]:
    return [(name, json.loads(arguments)) for _, name, arguments in answer.calls]
