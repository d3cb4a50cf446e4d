"""``mlx-router load-model``: a running server brings a model into memory."""

from __future__ import annotations

import argparse

from mlx_router.cli.control import act, make_model_parser
from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser

EPILOG = f"""\
examples:
  mlx-router load-model Qwen3-4B-4bit
  mlx-router load-model Qwen3-4B-4bit && mlx-router pin Qwen3-4B-4bit

Returns when the model is ready. It may push out another one, as a request for
it would. Where the config allows downloads, a missing model is fetched.
Ctrl+C stops the waiting; the server goes on.

{EXIT_CODES}"""


def make_parser() -> Parser:
    description = "Lets a running server load a model, and waits until it is ready."
    return make_model_parser("load-model", description, EPILOG)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    act(arguments, "load", {"model": arguments.model}, "loading")
    return EXIT_OK
