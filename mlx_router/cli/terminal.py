"""Lines and tables on stdout: styled and fitted on a terminal, plain text in a pipe or a file."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TextIO

from mlx_router.domain import GIB

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
        self._console.print(_printable(text), style=style, soft_wrap=True)
        self._flush()

    def item(self, name: str, text: str, indent: int = 2) -> None:
        """A name and a text that folds under itself."""
        from rich.padding import Padding
        from rich.text import Text

        body = Text(_printable(name), style="bold").append(
            f": {_printable(text)}", style="not bold"
        )
        self._console.print(Padding(body, (0, 0, 0, indent)))
        self._flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column folds where room is short, the others are right as they are."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, header in enumerate(headers):
            if number == 0:
                table.add_column(header, overflow="fold")
            else:
                table.add_column(header, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        self._console.print(table)
        self._flush()

    def _flush(self) -> None:
        """In a pipe, lines end where their text ends."""
        if not self.is_terminal:
            for line in self._buffer.getvalue().splitlines():
                self._out.write(line.rstrip() + "\n")
            self._buffer.seek(0)
            self._buffer.truncate()
        self._out.flush()


def _printable(text: str) -> str:
    """Names and reasons come from files of strangers: no control codes for the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def gigabytes(size: int) -> str:
    """Bytes as people read them: ``2.3 GB``."""
    if size >= GIB:
        return f"{size / GIB:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"


def tokens(count: int) -> str:
    """A context length: ``32k`` for 32768, ``5000`` for 5000."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else str(count)
