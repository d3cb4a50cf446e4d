"""``mlx-router pin``: a running server keeps a model in memory."""

from __future__ import annotations

import argparse

from mlx_router.cli.control import act, make_model_parser
from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser

EPILOG = f"""\
examples:
  mlx-router pin Qwen3-4B-4bit
  mlx-router pin Qwen3-4B-4bit --off

A pinned model stays in memory once it is loaded; pinning does not load it.
Holds until the server ends: for longer,
set "pinned": true in the model's config entry.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = make_model_parser(
        "pin", "Lets a running server keep a model in memory, or no longer.", EPILOG
    )
    parser.add_argument(
        "--off", action="store_true", help="unpin: it may go when its place is needed"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    act(arguments, "pin", {"model": arguments.model, "pinned": not arguments.off}, "pinning")
    return EXIT_OK
