"""``mlx-router watch``: a running server, live."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general
from mlx_router.cli.remote import Remote, ServerRefused, add_server
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

EPILOG = f"""\
examples:
  mlx-router watch
  mlx-router watch --interval 5 >> watch.txt
  mlx-router watch --count 60 --json | jq .tokens_per_second

q or Ctrl+C ends it. In a pipe or a file it writes lines of name=value: for the
server, for every model in memory and for every request.

{EXIT_CODES}"""

_KEYS = "q ends it"
_HEAD_LINES = 14  # of the screen, that are not rows of its tables
_DAY = 86_400.0


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router watch",
        usage="mlx-router watch [options]",
        description="Shows a running server live: memory, models, and the requests under way.",
        epilog=EPILOG,
    )
    how = parser.add_argument_group("how")
    how.add_argument("--interval", metavar="S", default="1", help="seconds between (default: 1)")
    how.add_argument("--count", metavar="N", help="end after so many (default: never)")
    how.add_argument("--json", action="store_true", help="print GET /hub/status, one line each")
    add_server(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, and ServerUnreachable and ServerRefused if it cannot begin."""
    interval = _number("--interval", arguments.interval, least=0.1, most=_DAY)
    count = None if arguments.count is None else int(_count(arguments.count))
    server = Remote.of(arguments)
    status = server.status()
    try:
        if arguments.json or not sys.stdout.isatty():
            _write(server, status, interval, count, as_json=arguments.json)
        else:
            _draw(server, status, interval, count)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def _write(
    server: Remote, status: dict[str, Any], interval: float, count: int | None, *, as_json: bool
) -> None:
    from mlx_router.cli.dashboard import lines
    from mlx_router.cli.terminal import print_json

    while True:
        if as_json:
            print_json(status, indent=None)
        else:
            print("\n".join(lines(status)), flush=True)
        if count is not None and (count := count - 1) <= 0:
            return
        time.sleep(interval)
        status = server.status()


def _draw(server: Remote, status: dict[str, Any], interval: float, count: int | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from mlx_router.cli.dashboard import screen

    console = Console(highlight=False, markup=False, emoji=False)

    def picture(note: str) -> RenderableType:
        rows = max(2, console.height - _HEAD_LINES)
        drawn = screen(status, server.base, console.width, rows)
        return Group(drawn, Text(), Text(note, "dim" if note == _KEYS else "bold red"))

    live = Live(picture(_KEYS), console=console, screen=True, auto_refresh=False)
    with _keys() as pressed, live:
        while count is None or (count := count - 1) > 0:
            if pressed(interval):
                return
            note = _KEYS
            try:
                status = server.status(timeout=max(5.0, interval))
            except ServerRefused as error:  # it may be started again
                note = error.message
            live.update(picture(note), refresh=True)


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits for so many seconds, and says whether q was pressed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds)
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([keyboard], [], [], left)[0] and os.read(keyboard, 1) in b"qQ":
                return True  # or the terminal has gone: then nothing was read
        return False

    try:
        tty.setcbreak(keyboard)
        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _count(text: str) -> float:
    if not text.isdecimal():
        raise ConfigError(f"--count: {text!r} is not allowed; use a whole number, 1 or more")
    return _number("--count", text, least=1, most=1e9)


def _number(flag: str, text: str, *, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        allowed = f"a number from {least:g} to {most:g}"
        raise ConfigError(f"{flag}: {text!r} is not allowed; use {allowed}")
    return value
