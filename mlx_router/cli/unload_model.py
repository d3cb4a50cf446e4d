"""``mlx-router unload-model``: a running server frees a model's memory."""

from __future__ import annotations

import argparse

from mlx_router.cli.control import act, make_model_parser
from mlx_router.cli.parser import EXIT_CODES, EXIT_OK, Parser

EPILOG = f"""\
examples:
  mlx-router unload-model Qwen3-4B-4bit

Answers under way are finished first. The next request for the model loads it
again.

{EXIT_CODES}"""


def make_parser() -> Parser:
    description = "Lets a running server unload a model, and waits until its memory is free."
    return make_model_parser("unload-model", description, EPILOG)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable and ServerRefused."""
    act(arguments, "unload", {"model": arguments.model}, "unloading")
    return EXIT_OK
