"""A model's text, as it comes, told apart into content, reasoning and tool calls."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from enum import Enum, auto

from mlx_router.domain import Tool
from mlx_router.parsing.matcher import Scanner, patterns
from mlx_router.parsing.sink import Parsed, Sink, new_call_id
from mlx_router.parsing.tools import ToolParser, get_parser

_log = logging.getLogger(__name__)
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_SPACE = " \t\r\n"


class _In(Enum):
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()


class OutputParser:
    """Parses one answer. Never raises, and the joined result is the same however it was cut.

    - ``think_start`` … ``think_end`` is reasoning; with ``starts_in_reasoning`` the answer begins
      inside. Newlines at both ends of it, and blank lines after it, belong to the markers.
    - With ``parse_tools`` the calls of the family ``tool_format`` are taken out; white space
      alone, before, between or after calls, is no content.
    - ``stop`` strings end the answer, and are never shown; they count in content and reasoning.
    - Text that may yet become a marker or a stop string is held back until that is decided.
    """

    def __init__(
        self,
        think_start: str | None,
        think_end: str | None,
        tool_format: str | None,
        *,
        stop: Sequence[str] = (),
        tools: Sequence[Tool] = (),
        starts_in_reasoning: bool = False,
        parse_tools: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._sink = Sink(stop, new_id)
        self._stop = tuple(text for text in stop if text)
        self._think_start = (think_start or None) if think_end else None
        self._think_end = think_end or None
        family = get_parser(tool_format) if parse_tools and tool_format else None
        self._tool: ToolParser | None = family(tools, self._sink) if family else None
        # Where a family marks content too, it may be asked for that alone.
        self._takes_calls = bool(tools or (family and not family.dropped))
        self._set_patterns()
        self._in = _In.CONTENT
        self._enter_content(after_reasoning=False)
        self._only_space_counts = True
        self._call_text: list[str] = []
        self._called = False
        self._prompted = starts_in_reasoning
        if starts_in_reasoning and self._think_end:
            self._enter_reasoning()
        self._set_fast_path()

    def feed(self, text: str) -> Parsed:
        """What is certain with ``text``, the next piece of the answer."""
        fast = self._fast
        if fast is not None and fast.search(text) is None:
            return Parsed(text) if self._fast_content else Parsed("", text)
        self._read(text)
        self._set_fast_path()
        return self._sink.take()

    def finish(self) -> Parsed:
        """What was held back: the answer ends here. Call it once."""
        if self._in is _In.CALL and self._tool is not None:
            try:
                self._tool.finish()
            except Exception as error:
                self._tool_failed(error)
            else:
                self._enter_content(after_reasoning=False)
                self._read(self._tool.take_rest())
        if self._in is _In.CONTENT:
            self._add_content(self._content_scan.release())
            if self._lead and self._only_space_counts:
                self._sink.content("".join(self._lead))
        else:
            self._add_reasoning(self._reasoning_scan.release())
            if not self._blank:
                self._sink.reasoning("\n" * self._newlines)
        self._sink.release()
        return self._sink.take()

    def _read(self, text: str) -> None:
        pos = 0
        while pos < len(text) and not self._sink.stopped:
            if self._in is _In.CONTENT:
                pos = self._feed_content(text, pos)
            elif self._in is _In.REASONING:
                pos = self._feed_reasoning(text, pos)
            else:
                pos = self._feed_call(text, pos)

    # --- content ----------------------------------------------------------------------------

    def _set_patterns(self) -> None:
        starts = self._tool.starts if self._tool and self._takes_calls else ()
        first = (self._think_start,) if self._think_start else ()
        starts = (*starts, *(self._tool.dropped if self._tool else ()))
        self._content_scan = Scanner(patterns((*first, *starts)))
        self._reasoning_scan = Scanner(
            patterns((self._think_end, *first)) if self._think_end else patterns(())
        )
        self._marked = bool(first or self._tool)
        self._content_fast = _none_of((*first, *starts, *self._stop))
        self._reasoning_fast = _none_of((self._think_end or "\n", *first, *self._stop, "\n"))

    def _enter_content(self, *, after_reasoning: bool) -> None:
        self._in = _In.CONTENT
        # White space at the start of content waits until it is known what follows it.
        self._lead: list[str] | None = [] if self._marked or after_reasoning else None
        self._drop_blank_lines = after_reasoning
        self._may_open = bool(self._tool and self._tool.openers)

    def _feed_content(self, text: str, pos: int) -> int:
        if self._may_open and not self._content_scan.holding:
            found = _NOT_SPACE.search(text, pos)
            if found is None:
                self._add_content(text[pos:])
                return len(text)
            self._may_open = False
            assert self._tool is not None
            if found.group() in self._tool.openers:
                self._add_content(text[pos : found.start()])
                self._begin_call("")
                return found.start()
        certain, match, pos = self._content_scan.scan(text, pos)
        self._add_content(certain)
        if match == 0 and self._think_start:
            self._only_space_counts = False
            self._prompted = False
            self._enter_reasoning()
        elif match >= 0 and self._tool is not None:
            marker = self._content_scan.texts[match]
            if marker in self._tool.dropped:
                self._drop_marker()
            else:
                self._begin_call(marker)
        return pos

    def _drop_marker(self) -> None:
        self._only_space_counts = False
        if self._lead is not None:
            self._lead.clear()

    def _add_content(self, text: str) -> None:
        if self._lead is None or not text:
            self._sink.content(text)
            return
        shown = text.lstrip(_SPACE)
        self._lead.append(text[: len(text) - len(shown)])
        if shown:
            lead, self._lead = "".join(self._lead), None
            if self._drop_blank_lines:
                lead = lead[lead.rfind("\n") + 1 :]
            self._sink.content(lead + shown)

    # --- reasoning --------------------------------------------------------------------------

    def _enter_reasoning(self) -> None:
        self._in = _In.REASONING
        self._blank = True
        self._space: list[str] = []
        self._newlines = 0

    def _feed_reasoning(self, text: str, pos: int) -> int:
        certain, match, pos = self._reasoning_scan.scan(text, pos)
        self._add_reasoning(certain)
        if match == 0:
            self._only_space_counts = False
            self._enter_content(after_reasoning=True)
        elif match > 0:
            # A model that repeats the marker its prompt ended with; elsewhere it is just text.
            if self._blank and self._prompted:
                self._prompted = False
            else:
                self._add_reasoning(self._think_start or "")
        return pos

    def _add_reasoning(self, text: str) -> None:
        if not text:
            return
        if self._blank:
            shown = text.lstrip(_SPACE)
            self._space.append(text[: len(text) - len(shown)])
            if not shown:
                return
            self._blank = False
            text = "".join(self._space).lstrip("\n") + shown
        body = text.rstrip("\n")
        if body:
            self._sink.reasoning("\n" * self._newlines + body)
            self._newlines = 0
        self._newlines += len(text) - len(body)

    # --- calls ------------------------------------------------------------------------------

    def _begin_call(self, marker: str) -> None:
        assert self._tool is not None
        shown = "".join(self._lead or ()) + marker
        self._lead = None
        self._in = _In.CALL
        self._call_text = [shown]
        self._called = self._sink.committed = False
        self._tool.begin(marker, shown)
        if not self._tool.active:  # a marker that is a whole by itself
            self._note_call("")

    def _feed_call(self, text: str, pos: int) -> int:
        assert self._tool is not None
        try:
            stop = self._tool.feed(text, pos)
        except Exception as error:
            self._call_text.append(text[pos:])
            self._tool_failed(error)
            return len(text)
        self._note_call(text[pos:stop])
        return stop

    def _note_call(self, text: str) -> None:
        """Keep account of a call of which ``text`` was read; go on with content where it ends."""
        assert self._tool is not None
        if self._sink.committed:
            self._called, self._sink.committed = True, False
            self._only_space_counts = False
            self._call_text.clear()
        else:
            self._call_text.append(text)
        if not self._tool.active:
            self._enter_content(after_reasoning=False)
            self._may_open = False
            if not self._called:
                self._lead = None  # its text was shown: what follows continues that
            self._read(self._tool.take_rest())

    def _tool_failed(self, error: Exception) -> None:
        """A parser's fault costs the call, never the answer: its text is shown as it is."""
        # The type only: a message may hold what the model wrote.
        _log.error("A tool-call parser failed (%s): the text is shown", type(error).__name__)
        self._tool = None
        self._set_patterns()
        self._enter_content(after_reasoning=False)
        self._lead = None
        self._sink.content("".join(self._call_text))

    def _set_fast_path(self) -> None:
        """Most pieces hold nothing that matters: one search tells, and nothing else is done."""
        self._fast: re.Pattern[str] | None = None
        self._fast_content = self._in is _In.CONTENT
        if self._sink.stopped or self._sink.holding or self._in is _In.CALL:
            return
        if self._in is _In.CONTENT:
            if self._lead is None and not (self._may_open or self._content_scan.holding):
                self._fast = self._content_fast
        elif not (self._blank or self._newlines or self._reasoning_scan.holding):
            self._fast = self._reasoning_fast


def _none_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Finds any character that one of ``texts`` begins with."""
    return patterns(tuple(dict.fromkeys(text[0] for text in texts))).first
