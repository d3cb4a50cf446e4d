"""The families that write calls as JSON objects: between a pair of markers, in a list, or bare."""

from __future__ import annotations

import re
from typing import ClassVar, Protocol

from mlx_router.parsing.tools.base import ToolParser
from mlx_router.parsing.tools.json_call import JsonCall
from mlx_router.parsing.tools.markers import MarkerReader

_OPENING = re.compile(r"[ \t\r\n\[]*")
# What may stand between or after calls: list punctuation, and brackets that a model wrote too many.
_FRAME = re.compile(r"[ \t\r\n,;\]}]+")


class CallReader(Protocol):
    """Reads one call and gives it to the sink.

    It is ``done`` or ``bad`` when it stops. Until it has ``announced`` the call to the sink, all
    that it read is in ``raw``, and then in ``rest`` (which is to be read again).
    """

    @property
    def bad(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    @property
    def announced(self) -> bool: ...
    @property
    def raw(self) -> list[str]: ...
    @property
    def rest(self) -> str: ...

    def feed(self, text: str, pos: int) -> int: ...


class JsonCalls(ToolParser):
    """Reads one call after another until ``close`` or anything that is no call.

    White space after the calls is shown only if content follows it directly.
    """

    close: ClassVar[str] = ""
    known_tools_only: ClassVar[bool] = False

    def begin(self, marker: str, shown: str) -> None:
        self.active = True
        self._call: CallReader | None = None
        self._shown = [shown]
        self._marker = MarkerReader()
        self._calls = 0

    def feed(self, text: str, pos: int) -> int:
        while self.active and pos < len(text):
            if self._call is None and not self._marker.held:
                self._call = self.reader(text[pos])
            if self._call is not None:
                pos = self._read_call(self._call, text, pos)
            else:
                pos = self._read_frame(text, pos)
        return pos

    def finish(self) -> None:
        call, self._call = self._call, None
        if call is not None and not call.announced:
            self._show(call)
        elif call is None and not self._calls:
            self._show()
        # After a call the start of a closing marker was cut off; any other text is text.
        elif not self.close.startswith(self._marker.held):
            self.rest = self._marker.take()
        self.active = False

    def reader(self, character: str) -> CallReader | None:
        """Who reads the call that begins with ``character``; None if none does."""
        if character != "{":
            return None
        return JsonCall(self.sink, self.accepts, bare=self.known_tools_only)

    def accepts(self, name: str) -> bool:
        return name in self.tools if self.known_tools_only else bool(name)

    def _read_call(self, call: CallReader, text: str, pos: int) -> int:
        pos = call.feed(text, pos)
        if call.announced:
            self._shown.clear()
        if call.bad and not call.announced:
            self._show(call)
        elif call.bad:
            self.active = False
        if call.done or call.bad:
            self._call = None
            self._calls += 1
        return pos

    def _read_frame(self, text: str, pos: int) -> int:
        if not self._marker.held:
            allowed = (_FRAME if self._calls else _OPENING).match(text, pos)
            if allowed is not None and allowed.end() > pos:
                space = allowed.group()
                if self._calls and (punctuation := space.rstrip()):
                    self._shown.clear()  # it belongs to the calls, with the space before it
                    space = space[len(punctuation) :]
                self._shown.append(space)
                return allowed.end()
        # The closing marker or, where that was forgotten, the next opening one.
        expected = (self.close, *self.starts) if self._calls else ()
        stop, found = self._marker.read(text, pos, expected)
        if found == self.close:
            self.active = False
        elif found is not None:
            self._shown.append(found)
            self._calls = 0
        elif stop == pos:
            self.rest = self._marker.take()
            self._show()
        return stop

    def _show(self, call: CallReader | None = None) -> None:
        """This is no call: show what was read of it, and stop."""
        if call is not None:
            self._shown += call.raw
            self.rest = call.rest
        self.sink.content("".join(self._shown))
        self._shown.clear()
        self.active = False
