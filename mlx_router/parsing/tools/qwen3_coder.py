"""Qwen3-Coder: ``<function=name>`` and ``<parameter=key>`` with their ends, in ``<tool_call>``."""

from __future__ import annotations

import json
import re
from enum import Enum, auto

from mlx_router.parsing.matcher import Scanner, patterns
from mlx_router.parsing.tools.base import ToolParser
from mlx_router.parsing.tools.markers import MarkerReader
from mlx_router.parsing.tools.values import as_json, types_of

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD_END = re.compile(r"[>\n<]")
# The line break before the end of a value is not part of it.
_VALUE_END = patterns(("\n" + _END_PARAMETER, _END_PARAMETER))


class _In(Enum):
    OUTSIDE = auto()  # of a function
    NAME = auto()
    FUNCTION = auto()
    KEY = auto()
    VALUE = auto()


class Qwen3Coder(ToolParser):
    """Announces a call with its name, and passes strings on as they come; other values when they
    are complete, since their type decides how they are written."""

    starts = (_OPEN, _FUNCTION)

    def begin(self, marker: str, shown: str) -> None:
        self.active = True
        self._shown = [shown]  # since the last call: to be shown if none follows
        self._calls = 0
        self._marker = MarkerReader()
        self._word: list[str] = []  # a name, a key or a value
        self._value = Scanner(_VALUE_END)
        self._in = _In.NAME if marker == _FUNCTION else _In.OUTSIDE

    def feed(self, text: str, pos: int) -> int:
        while self.active and pos < len(text):
            if self._in is _In.VALUE:
                certain, match, pos = self._value.scan(text, pos)
                self._add_value(certain)
                if match >= 0:
                    self._end_value()
            elif self._in in (_In.NAME, _In.KEY):
                pos = self._read_word(text, pos)
            else:
                pos = self._read_tag(text, pos)
        return pos

    def finish(self) -> None:
        if self._in is _In.VALUE:
            self._add_value(self._value.release())
        elif self._in is _In.FUNCTION:
            self._end_call()
        elif self._in is _In.NAME or not self._calls:
            self._show()
        # After a call the start of a closing tag was cut off; any other text is text.
        elif not _CLOSE.startswith(self._marker.held):
            self.rest = self._marker.take()
        self.active = False

    # --- tags -------------------------------------------------------------------------------

    def _read_tag(self, text: str, pos: int) -> int:
        inside = self._in is _In.FUNCTION
        if not self._marker.held:
            space = _SPACE.match(text, pos)
            assert space is not None
            if space.end() > pos:
                if not inside:
                    self._shown.append(space.group())
                return space.end()
        expected = [_FUNCTION, _CLOSE, _OPEN]
        if inside:
            expected += [_PARAMETER, _END_PARAMETER, _END_FUNCTION]
        stop, found = self._marker.read(text, pos, expected)
        if found is not None:
            self._take_tag(found)
        elif stop == pos:
            if inside:
                self._end_call()
            self._show()
        return stop

    def _take_tag(self, tag: str) -> None:
        if tag == _PARAMETER:
            self._in = _In.KEY
        elif tag != _END_PARAMETER:  # which is one too many
            if self._in is _In.FUNCTION:
                self._end_call()
            if tag == _CLOSE and self._calls:
                self.active = False
            elif tag == _CLOSE:
                self._shown.append(tag)
                self._show()
            elif tag != _END_FUNCTION:
                self._calls = 0
                self._shown.append(tag)
                self._in = _In.NAME if tag == _FUNCTION else _In.OUTSIDE

    def _read_word(self, text: str, pos: int) -> int:
        found = _WORD_END.search(text, pos)
        stop = found.start() if found else len(text)
        self._word.append(text[pos:stop])
        if found is None:
            return stop
        word = "".join(self._word).strip()
        if found.group() != ">" or not word:
            self._bad_word()
            return stop
        self._word.clear()
        if self._in is _In.NAME:
            self._start_call(word)
        else:
            self._start_value(word)
        return stop + 1

    def _bad_word(self) -> None:
        if self._in is _In.KEY:
            self._end_call()
            self._shown.append(_PARAMETER)
        self._show()

    def _show(self) -> None:
        """Here is no call: show what was read since the last one, and stop."""
        self._shown += self._word
        self.rest = self._marker.take()
        self.sink.content("".join(self._shown))
        self.active = False

    # --- calls ------------------------------------------------------------------------------

    def _start_call(self, name: str) -> None:
        self._shown.clear()
        self._calls += 1
        self._in = _In.FUNCTION
        self._tool = self.tools.get(name)
        self._written = "{"  # what goes before the next argument
        self.sink.call(name)

    def _end_call(self) -> None:
        self._in = _In.OUTSIDE
        self.sink.arguments("{}" if self._written == "{" else "}")

    def _start_value(self, key: str) -> None:
        self._in = _In.VALUE
        self._types = types_of(self._tool, key)
        self._first = True
        self._key = self._written + json.dumps(key, ensure_ascii=False) + ": "
        self._written = ", "
        if self._types == {"string"}:
            self.sink.arguments(self._key + '"')

    def _add_value(self, text: str) -> None:
        if not text:
            return
        if self._first:
            self._first = False
            text = text.removeprefix("\n")
        if self._types == {"string"}:
            escaped = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
            self.sink.arguments(escaped[1:-1])
        else:
            self._word.append(text)

    def _end_value(self) -> None:
        self._in = _In.FUNCTION
        if self._types == {"string"}:
            self.sink.arguments('"')
        else:
            self.sink.arguments(self._key + as_json("".join(self._word), self._types))
        self._word.clear()
