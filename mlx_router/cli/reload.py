"""``mlx-router reload``: a running server reads its config again."""

from __future__ import annotations

import argparse

from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser, add_general
from mlx_router.cli.remote import Remote, add_server

EPILOG = f"""\
examples:
  mlx-router reload
  mlx-router reload -p 8801

Answers under way go on, and models in memory stay as they were loaded. A config
with a fault changes nothing. The same: kill -HUP PID, or POST /admin/reload.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router reload",
        usage="mlx-router reload [options]",
        description="Lets a running server read its config again, and shows what changed.",
        epilog=EPILOG,
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the changes as JSON")
    add_server(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError and ServerRefused."""
    from mlx_router.cli.terminal import print_json
    from mlx_router.config.changes import Change, TakesEffect

    server = Remote.of(arguments)
    answer = server.post("/admin/reload")
    try:
        changes = [
            Change(**{**change, "takes_effect": TakesEffect(change["takes_effect"])})
            for change in answer["changes"]
        ]
    except (LookupError, TypeError, ValueError):
        raise server.stranger() from None
    if arguments.json:
        print_json({"changes": answer["changes"]})
        return EXIT_OK
    if not changes:
        print("Nothing has changed.")
    for change in changes:
        print(change)
    return EXIT_OK
