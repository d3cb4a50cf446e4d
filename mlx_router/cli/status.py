"""``mlx-router status``: how a running server is doing, on one screen."""

from __future__ import annotations

import argparse

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general
from mlx_router.cli.remote import Remote, add_server

EPILOG = f"""\
examples:
  mlx-router status
  mlx-router status -p 8801
  mlx-router status --json | jq .memory_pressure

Live: mlx-router watch, or the status page at /hub/ of the server.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router status",
        usage="mlx-router status [options]",
        description="Shows a running server: memory, the models in it, and the requests under way.",
        epilog=EPILOG,
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print what GET /hub/status answers")
    add_server(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    from mlx_router.cli.terminal import Terminal, print_json

    server = Remote.of(arguments)
    status = server.status()
    if arguments.json:
        print_json(status)
        return EXIT_OK
    from mlx_router.cli.dashboard import screen

    terminal = Terminal()
    terminal.show(screen(status, server.base, terminal.width))
    return EXIT_OK
