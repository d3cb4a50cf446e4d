"""Lines and tables on stdout: styled and fitted on a terminal, plain text in a pipe or a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO
from unicodedata import category

from mlx_router.domain import GIB

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 200


class Terminal:
    """Writes to a stream; ``width`` in columns (None: the terminal's, or 200 in a pipe)."""

    def __init__(self, out: TextIO | None = None, width: int | None = None) -> None:
        from rich.console import Console

        self._out = out or sys.stdout
        self.is_terminal = self._out.isatty()
        self._buffer = io.StringIO()
        self._console = Console(
            file=self._out if self.is_terminal else self._buffer,
            width=width or (None if self.is_terminal else PIPE_WIDTH),
            highlight=False,
            markup=False,
            emoji=False,
        )

    def line(self, text: str = "", style: str | None = None) -> None:
        """Never folded by us: a command in it can be copied whole."""
        self._console.print(printable(text), style=style, soft_wrap=True)
        self._flush()

    def item(self, name: str, text: str, indent: int = 2) -> None:
        """A name and a text that folds under itself."""
        from rich.padding import Padding
        from rich.text import Text

        body = Text(printable(name), style="bold").append(f": {printable(text)}", style="not bold")
        self._console.print(Padding(body, (0, 0, 0, indent)))
        self._flush()

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, optional: int = 0
    ) -> None:
        """The first column folds where room is short, the others are right as they are. Before it
        folds, the last ``optional`` columns are left out, one by one."""
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        cells = [headers, *([printable(cell) for cell in row] for row in rows)]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        shown = len(headers)
        while shown > len(headers) - optional and sum(widths[:shown]) + 2 * shown - 2 > self.width:
            shown -= 1
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, header in enumerate(headers[:shown]):
            if number == 0:
                table.add_column(header, overflow="fold")
            else:
                table.add_column(header, no_wrap=True)
        for row in cells[1:]:
            table.add_row(*map(Text, row[:shown]))
        self._console.print(table)
        self._flush()

    def show(self, what: RenderableType) -> None:
        """Anything that rich can draw. Names in it must be printable: see :func:`printable`."""
        self._console.print(what)
        self._flush()

    @property
    def width(self) -> int:
        return self._console.width

    def _flush(self) -> None:
        """In a pipe, lines end where their text ends."""
        if not self.is_terminal:
            for line in self._buffer.getvalue().splitlines():
                self._out.write(line.rstrip() + "\n")
            self._buffer.seek(0)
            self._buffer.truncate()
        self._out.flush()


def print_json(value: object, *, indent: int | None = 2) -> None:
    """``indent`` None: on one line."""
    print(json.dumps(value, indent=indent, ensure_ascii=False), flush=True)


def printable(text: str) -> str:
    """Names and reasons come from files of strangers: no control codes for the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def without_controls(text: str) -> str:
    """A model's text for a terminal: lines and tabs stay, what would steer the terminal goes."""
    return "".join(c for c in text if c in "\n\t" or category(c) != "Cc")


def gigabytes(size: int) -> str:
    """Bytes as people read them: ``2.3 GB``."""
    if size >= GIB:
        return f"{size / GIB:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"


def tokens(count: int) -> str:
    """A context length: ``32k`` for 32768, ``5000`` for 5000."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else str(count)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``5 d 3 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
