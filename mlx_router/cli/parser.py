"""What the commands' argument parsers share. Standard library only: --help must be quick."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mlx_router.errors import ConfigError

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_ADDRESS = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """\
exit codes:
  0    done, or stopped by Ctrl+C or SIGTERM
  1    failure; the message says what failed
  2    wrong use, or a fault in the config
  3    the address or port cannot be used
  4    no server answers where one is asked for
  130  stopped by Ctrl+C (a server: by a second one; 143: by a second SIGTERM)
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, and names the flag that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            add_help=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=28, width=80
            ),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help())  # argparse says nothing of a full disk

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Raises ConfigError for wrong use, and SystemExit(0) after --help and --version."""
        arguments, left = self.parse_known_args(words)
        if left:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(unknown("option" if left[0].startswith("-") else "argument", left[0], flags))
        return arguments

    def flags_with_value(self) -> set[str]:
        """The flags after which the next word is a value."""
        return {flag for flag, action in self._option_string_actions.items() if action.nargs != 0}


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """``unknown option '--prot'; did you mean --port?``"""
    near = difflib.get_close_matches(word.split("=")[0], list(known), n=1, cutoff=0.5)
    return f"unknown {what} {word!r}" + (f"; did you mean {near[0]}?" if near else "")


def add_general(parser: Parser) -> None:
    """The options that every command has."""
    group = parser.add_argument_group("general")
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="config file (default: $MLX_ROUTER_CONFIG, else ./config.json if there)",
    )
    group.add_argument("--debug", action="store_true", default=None, help="log more")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")


def add_model_sources(parser: Parser) -> None:
    """The options that say which models there are."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--model-dir",
        metavar="DIR",
        action="append",
        help="folder with models; may be repeated (default: $MLX_MODEL_DIR, else ~/models)",
    )
    group.add_argument(
        "--demo", action="store_true", help="use the tiny built-in model; no download"
    )
    group.add_argument(
        "--engine",
        choices=("mlx", "scripted"),
        default="mlx",
        help="scripted: canned answers without weights, for testing clients",
    )


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about settings, by dotted name; None where it is silent."""
    from mlx_router.config.loading import number

    names = {
        "server.ip": "ip",
        "server.port": "port",
        "server.debug": "debug",
        "defaults.max_tokens": "max_tokens",
        "defaults.timeout": "timeout",
        "defaults.model": "model",
        "defaults.model_directory": "model_dir",
    }
    values = {name: getattr(arguments, flag, None) for name, flag in names.items()}
    for name in ("server.port", "defaults.max_tokens", "defaults.timeout"):
        if (text := values[name]) is not None:
            values[name] = number(text)
    return values
