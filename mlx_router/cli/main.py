"""``mlx-router``: finds the command, and runs it.

Imports nothing heavy: ``--version`` and ``--help`` answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from mlx_router.cli.ending import ended
from mlx_router.cli.parser import Parser, unknown
from mlx_router.telemetry.logging import configure_logging

# Name of a command: its module, which has make_parser() and run(arguments) -> exit code.
COMMANDS = {
    "serve": "mlx_router.cli.serve",
    "models": "mlx_router.cli.models",
    "config": "mlx_router.cli.config",
    "reload": "mlx_router.cli.reload",
    "status": "mlx_router.cli.status",
    "watch": "mlx_router.cli.watch",
    "logs": "mlx_router.cli.logs",
    "load-model": "mlx_router.cli.load_model",
    "unload-model": "mlx_router.cli.unload_model",
    "pin": "mlx_router.cli.pin",
    "shutdown": "mlx_router.cli.shutdown",
    "chat": "mlx_router.cli.chat",
    "pull": "mlx_router.cli.pull",
    "bench": "mlx_router.cli.bench",
    "doctor": "mlx_router.cli.doctor",
    "completion": "mlx_router.cli.completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (``argv`` None: this process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return ended("mlx-router", lambda: _run(words))


def _run(words: list[str]) -> int:
    serve = importlib.import_module(COMMANDS["serve"])
    parser: Parser = serve.make_parser()
    position = _command_position(words, parser.flags_with_value())
    if position is None:
        return _call(serve, parser, words)
    name = words[position]
    if name not in COMMANDS:
        left = parser.parse_known_args(words)[1]
        if left[0] == name:
            parser.error(f"{unknown('command', name, COMMANDS)} (commands: {', '.join(COMMANDS)})")
        parser.parse(words)  # raises: a flag before it is unknown, and this may be its value
    command = importlib.import_module(COMMANDS[name])
    return _call(command, command.make_parser(), [*words[:position], *words[position + 1 :]])


def _call(command: ModuleType, parser: Parser, words: list[str]) -> int:
    arguments = parser.parse(words)
    if arguments.debug:
        configure_logging(debug=True)
    code: int = command.run(arguments)
    return code


def _command_position(words: Sequence[str], flags_with_value: set[str]) -> int | None:
    """Where the command stands: options may come before it, and may have values."""
    is_value = False
    for position, word in enumerate(words):
        if is_value:
            is_value = False
        elif word.startswith("-"):
            is_value = word in flags_with_value
        else:
            return position
    return None
