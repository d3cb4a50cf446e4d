"""``mlx-router shutdown``: a running server ends."""

from __future__ import annotations

import argparse
import sys
import time

from mlx_router.cli.parser import EXIT_CODES, EXIT_FAILURE, EXIT_OK, Parser, add_general
from mlx_router.cli.remote import Remote, ServerRefused, ServerUnreachable, add_server

EPILOG = f"""\
examples:
  mlx-router shutdown
  mlx-router shutdown --yes --no-wait

Answers under way have server.grace_seconds to finish; new requests are refused.
On a terminal it asks first if there are any. A server that runs as a service
stays off until the service is started again.

{EXIT_CODES}"""

_LOOK_SECONDS = 0.1
_MARGIN_SECONDS = 20.0  # past the grace time: the server frees its models, and gives up what hangs


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router shutdown",
        usage="mlx-router shutdown [options]",
        description="Ends a running server, and waits until it is gone.",
        epilog=EPILOG,
    )
    how = parser.add_argument_group("how")
    how.add_argument("-y", "--yes", action="store_true", help="do not ask")
    how.add_argument("--no-wait", action="store_true", help="return as soon as it is told")
    add_server(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    server = Remote.of(arguments)
    count = len(server.status()["requests"])
    if count and not arguments.yes and sys.stdin.isatty() and not _confirmed(count):
        print("Nothing was done.")
        return EXIT_FAILURE
    answer = server.post("/admin/shutdown")
    if not isinstance(answer, dict) or answer.get("object") != "server.shutdown":
        raise server.stranger()
    if arguments.no_wait:
        print(f"{server.base} is shutting down.")
        return EXIT_OK
    grace = float(answer["grace_seconds"])
    _wait_until_gone(server, grace, grace + _MARGIN_SECONDS)
    print(f"{server.base} has shut down.")
    return EXIT_OK


def _confirmed(count: int) -> bool:
    under_way = "1 request is" if count == 1 else f"{count} requests are"
    try:
        said = input(f"{under_way} under way. Shut down? [y/N] ")
    except EOFError:
        return False
    return said.strip().lower() in ("y", "yes")


def _wait_until_gone(server: Remote, grace: float, seconds: float) -> None:
    from mlx_router.cli.control import spinner

    end = time.monotonic() + seconds
    with spinner(f"waiting for the last answers, at most {grace:g} s"):
        while time.monotonic() < end:
            try:
                server.get("/health", timeout=2.0)
            except ServerUnreachable:
                return
            except ServerRefused:  # it answers still, if only to say that it ends
                pass
            time.sleep(_LOOK_SECONDS)
    raise ServerRefused(
        f"{server.base} still answers after {seconds:g} seconds: look at its log. Was it started "
        "again by a service manager? Then stop the service."
    )
