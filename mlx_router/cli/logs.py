"""``mlx-router logs``: the latest log lines of a running server."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general
from mlx_router.cli.remote import Remote, ServerUnreachable, add_server
from mlx_router.errors import ConfigError

EPILOG = f"""\
examples:
  mlx-router logs
  mlx-router logs -f --level warning
  mlx-router logs -n 1000 --request req_4f2a
  mlx-router logs --json | jq -r 'select(.level == "ERROR").text'

A server keeps its latest 1000 lines for this; older ones are in its log file.
-f goes on over a restart of the server; Ctrl+C ends it.

{EXIT_CODES}"""

_KEPT = 1000
_LOOK_SECONDS = 0.5
_LEVELS = ("debug", "info", "warning", "error")
_STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
LogLine = dict[str, Any]


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router logs",
        usage="mlx-router logs [options]",
        description="Shows the latest log lines of a running server.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("which lines")
    what.add_argument("-n", "--lines", metavar="N", default="50", help="how many (default: 50)")
    what.add_argument("-f", "--follow", action="store_true", help="and new ones as they come")
    what.add_argument("--level", choices=_LEVELS, help="this bad, or worse")
    what.add_argument(
        "--request", metavar="ID", help="of this request: its X-Request-ID, or how it begins"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print each line as a JSON object")
    add_server(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    if not arguments.lines.isdecimal() or int(arguments.lines) > _KEPT:
        raise ConfigError(f"--lines: {arguments.lines!r} is not allowed; use 0 to {_KEPT}")
    server, show = Remote.of(arguments), _printer(as_json=arguments.json)
    lines = _lines(server, after=0)
    wanted = [line for line in lines if _matches(line, arguments)]
    for line in wanted[max(0, len(wanted) - int(arguments.lines)) :]:
        show(line)
    if arguments.follow:
        try:
            for line in _new_lines(server, lines):
                if _matches(line, arguments):
                    show(line)
        except KeyboardInterrupt:
            pass
    return EXIT_OK


def _lines(server: Remote, after: int) -> list[LogLine]:
    answer = server.get(f"/hub/logs?lines={_KEPT}&after={after}")
    try:
        found: list[LogLine] = [line for line in answer["lines"] if line["number"] > after]
    except (LookupError, TypeError):
        raise server.stranger() from None
    return found


def _new_lines(server: Remote, seen: list[LogLine]) -> Iterator[LogLine]:
    """What is logged after ``seen``, for ever. A server that was started again counts from 1 anew:
    then time tells what is new."""
    number, moment, lost = 0, 0.0, False
    while True:
        if seen:
            number, moment = seen[-1]["number"], seen[-1]["time"]
        time.sleep(_LOOK_SECONDS)
        try:
            found = _lines(server, after=0 if lost else number)
        except ServerUnreachable as error:
            if not lost:
                print(f"mlx-router: {error.message} Waiting for it.", file=sys.stderr)
            lost, seen = True, []
            continue
        seen = [line for line in found if line["time"] > moment] if lost else found
        lost = False
        yield from seen


def _matches(line: LogLine, arguments: argparse.Namespace) -> bool:
    levels = logging.getLevelNamesMapping()
    least = levels[arguments.level.upper()] if arguments.level else 0
    return levels.get(line["level"], logging.INFO) >= least and (
        not arguments.request or line["request_id"].startswith(arguments.request)
    )


def _printer(*, as_json: bool) -> Callable[[LogLine], None]:
    from mlx_router.cli.terminal import Terminal, print_json

    if as_json:
        return lambda line: print_json(line, indent=None)
    terminal = Terminal()

    def show(line: LogLine) -> None:
        for part in line["text"].splitlines():
            terminal.line(part, _STYLES.get(line["level"]))

    return show
