"""Where parsers put what they find: stop strings are looked for here, and calls are numbered."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_router.domain import ToolCallDelta
from mlx_router.parsing.matcher import Scanner, patterns


@dataclass(slots=True)  # not frozen: one is made per token, and that would cost five times as much
class Parsed:
    """What a piece of a model's text turned out to be. ``stopped``: a stop string was reached,
    and whatever comes after it is discarded."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stopped: bool = False


def new_call_id() -> str:
    """A fresh id for a tool call, as OpenAI writes them."""
    return "call_" + secrets.token_hex(12)


class Sink:
    """Gathers content, reasoning and tool calls until :meth:`take`.

    Stop strings are looked for in content and in reasoning, each by itself: one that is spread
    over a tool call or over the end of the reasoning is none.
    """

    def __init__(self, stop: Sequence[str], new_id: Callable[[], str] = new_call_id) -> None:
        self.stopped = False
        self.committed = False
        self._new_id = new_id
        self._stops = Scanner(patterns(tuple(dict.fromkeys(text for text in stop if text))))
        self._texts: tuple[list[str], list[str]] = ([], [])
        self._channel = 0
        self._calls: list[ToolCallDelta] = []
        self._count = 0
        self._fragments: list[str] = []

    @property
    def holding(self) -> bool:
        return self._stops.holding

    def content(self, text: str) -> None:
        self._put(0, text)

    def reasoning(self, text: str) -> None:
        self._put(1, text)

    def call(self, name: str) -> None:
        """A call of the tool ``name`` begins; its arguments follow."""
        if self.stopped:
            return
        self.release()
        self._close_fragments()
        self.committed = True
        self._calls.append(ToolCallDelta(index=self._count, id=self._new_id(), name=name))
        self._count += 1

    def arguments(self, fragment: str) -> None:
        """More JSON text of the arguments of the call that began last."""
        if fragment and not self.stopped:
            self.committed = True
            self._fragments.append(fragment)

    def release(self) -> None:
        """Let go of what might have become a stop string, and did not."""
        if held := self._stops.release():
            self._texts[self._channel].append(held)

    def take(self) -> Parsed:
        """All that was gathered since the last time."""
        content, reasoning = self._texts
        self._close_fragments()
        taken = Parsed("".join(content), "".join(reasoning), tuple(self._calls), self.stopped)
        content.clear()
        reasoning.clear()
        self._calls.clear()
        return taken

    def _put(self, channel: int, text: str) -> None:
        if self.stopped or not text:
            return
        if channel != self._channel:
            self.release()
            self._channel = channel
        certain, match, _ = self._stops.scan(text)
        self.stopped = match >= 0
        if certain:
            self._texts[channel].append(certain)

    def _close_fragments(self) -> None:
        if self._fragments:
            text = "".join(self._fragments)
            self._fragments.clear()
            self._calls.append(ToolCallDelta(index=self._count - 1, arguments=text))
