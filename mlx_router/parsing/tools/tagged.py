"""The families that write every argument between tags of its own, as text.

Two shapes: the name of the tool right after the start marker and the key between tags (GLM), or
both as an attribute of a tag (MiniMax).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import ClassVar

from mlx_router.parsing.matcher import Scanner, patterns
from mlx_router.parsing.tools.arguments import ArgumentWriter
from mlx_router.parsing.tools.base import ToolParser
from mlx_router.parsing.tools.markers import MarkerReader

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD_END = re.compile(r"[<>\n]")
_PLAIN_NAME = re.compile(r"[\w.:/-]+")
_NAME = re.compile(r"""(?:^|\s)name\s*=\s*(?:"([^"]+)"|'([^']+)'|([^\s"']+))""")
_STRING = re.compile(r"""\sstring\s*=\s*["']?(true|false)\b""")


class _In(Enum):
    OUTSIDE = auto()  # of a call
    NAME = auto()
    NAMED = auto()  # after a name that no tag ends: a tag must follow
    CALL = auto()
    KEY = auto()
    KEY_END = auto()
    GAP = auto()  # between key and value
    VALUE = auto()


class TaggedCalls(ToolParser):
    """Announces a call when its name is certain; see :class:`ArgumentWriter` for the rest.

    ``call`` opens and closes a call within the start marker and ``close``; where it is empty, the
    marker opens one call, and the name follows. ``key`` and ``value`` are the tags around those;
    with ``call``, the openings of ``call`` and ``key`` end with ``>``, after the attribute
    ``name``, and ``value`` has only an end. ``trim``: a line break at either end of a value belongs
    to the tags.
    """

    close: ClassVar[str]
    call: ClassVar[tuple[str, str]] = ("", "")
    key: ClassVar[tuple[str, str]]
    value: ClassVar[tuple[str, str]]
    trim: ClassVar[bool] = False

    def begin(self, marker: str, shown: str) -> None:
        self.active = True
        self._shown = [shown]  # since the last thing that is certain: shown if no call follows
        self._word: list[str] = []
        self._name = ""
        self._calls = 0
        self._marker = MarkerReader()
        end = self.value[1]
        self._value = Scanner(patterns(("\n" + end, end) if self.trim else (end,)))
        self._in = _In.OUTSIDE if self.call[0] else _In.NAME

    def feed(self, text: str, pos: int) -> int:
        while self.active and pos < len(text):
            if self._in is _In.VALUE:
                certain, match, pos = self._value.scan(text, pos)
                self._add_value(certain)
                if match >= 0:
                    self._arguments.end()
                    self._in = _In.CALL
            elif self._in in (_In.NAME, _In.KEY):
                pos = self._read_word(text, pos)
            else:
                pos = self._read_tag(text, pos)
        return pos

    def finish(self) -> None:
        held = self._marker.held
        if self._in is _In.VALUE:
            self._add_value(self._value.release())
        elif self._in in (_In.NAME, _In.NAMED) or (self._in is _In.OUTSIDE and not self._calls):
            self._show()
        elif self._in in (_In.OUTSIDE, _In.CALL):
            # The start of a closing tag was cut off; any other text is text.
            cut_off = any(tag.startswith(held) for tag in self._expected() if tag[1:2] == "/")
            if self._in is _In.CALL:
                self._end_call()
            if held and not cut_off:
                self.rest = self._marker.take()
        self.active = False

    # --- tags -------------------------------------------------------------------------------

    def _expected(self) -> tuple[str, ...]:
        if self._in is _In.KEY_END:
            return (self.key[1],)
        if self._in is _In.GAP:
            return (self.value[0],)
        if self._in is _In.NAMED:
            return (self.key[0], self.close)
        outside = (*filter(None, self.call[:1]), self.close, *self.starts)
        if self._in is _In.OUTSIDE:
            return outside
        return (self.key[0], *filter(None, self.call[1:]), *outside)

    def _read_tag(self, text: str, pos: int) -> int:
        if not self._marker.held:
            space = _SPACE.match(text, pos)
            assert space is not None
            if space.end() > pos:
                if self._in is not _In.CALL:
                    self._shown.append(space.group())
                return space.end()
        stop, tag = self._marker.read(text, pos, self._expected())
        if tag is not None:
            self._take_tag(tag)
        elif stop == pos:
            self._give_up()
        return stop

    def _take_tag(self, tag: str) -> None:
        if self._in is _In.NAMED:
            self._start_call()
        if self._in is _In.KEY_END:
            self._shown.append(tag)
            self._in = _In.GAP
        elif self._in is _In.GAP:
            self._start_value()
        elif tag == self.key[0]:
            self._shown = [tag]
            self._in = _In.KEY
        else:
            if self._in is _In.CALL:
                self._end_call()
            self._leave_call(tag)

    def _leave_call(self, tag: str) -> None:
        if tag == self.close and self._calls:
            self.active = False
        elif tag == self.close:
            self._shown.append(tag)
            self._show()
        elif tag != self.call[1]:  # another call, or one more start marker
            self._calls = 0
            self._shown.append(tag)
            self._in = _In.OUTSIDE if self.call[0] and tag != self.call[0] else _In.NAME

    # --- names and keys ---------------------------------------------------------------------

    def _read_word(self, text: str, pos: int) -> int:
        if not self._word:
            space = _SPACE.match(text, pos)
            assert space is not None
            if space.end() > pos:
                self._shown.append(space.group())
                return space.end()
        found = _WORD_END.search(text, pos)
        stop = found.start() if found else len(text)
        self._word.append(text[pos:stop])
        if found is None:
            return stop
        word = "".join(self._word)
        self._shown.append(word)
        self._word.clear()
        if self.call[0]:
            return self._take_attributes(word, found.group(), stop)
        if self._in is _In.NAME:
            self._name = word.strip()
            good = found.group() != ">" and _PLAIN_NAME.fullmatch(self._name) is not None
            self._in = _In.NAMED
        else:
            self._name = word.strip()
            good = found.group() == "<" and bool(self._name)
            self._in = _In.KEY_END
        if not good:
            self._give_up()
        return stop

    def _take_attributes(self, word: str, end: str, stop: int) -> int:
        name = _NAME.search(word)
        if end != ">" or name is None:
            self._give_up()
            return stop
        naming, self._name = self._in is _In.NAME, next(filter(None, name.groups()))
        if naming:
            self._start_call()
        else:
            stated = _STRING.search(word)
            self._start_value(stated.group(1) if stated else "")
        return stop + 1

    # --- calls ------------------------------------------------------------------------------

    def _start_call(self) -> None:
        self._shown.clear()
        self._calls += 1
        self._in = _In.CALL
        self.sink.call(self._name)
        self._arguments = ArgumentWriter(self.sink, self.tools.get(self._name))

    def _start_value(self, is_string: str = "") -> None:
        self._shown.clear()
        self._in = _In.VALUE
        self._first = self.trim
        stated = {"true": frozenset(("string",)), "false": _NOT_STRINGS}.get(is_string)
        self._arguments.start(self._name, stated)

    def _add_value(self, text: str) -> None:
        if text and self._first:
            self._first = False
            text = text.removeprefix("\n")
        if text:
            self._arguments.add(text)

    def _end_call(self) -> None:
        self._shown.clear()
        self._in = _In.OUTSIDE
        self._arguments.close()

    def _give_up(self) -> None:
        """Here is no call, or no more of one."""
        if self._in in (_In.CALL, _In.KEY, _In.KEY_END, _In.GAP):
            self._arguments.close()
        self._show()

    def _show(self) -> None:
        self.rest = self._marker.take()
        self.sink.content("".join((*self._shown, *self._word)))
        self.active = False


_NOT_STRINGS = frozenset(("integer", "number", "boolean", "object", "array", "null"))
