"""The options of ``mlx-router bench``, and what they mean together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_router.cli.parser import Parser, add_general, add_model_sources
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from mlx_router.bench.results import Plan

MOST_TOKENS = 1_000_000
MOST_STREAMS = 256
MOST_RUNS = 100

PROMPTS, QUICK_PROMPTS = (128, 1024, 4096), (128, 1024)
STREAMS, QUICK_STREAMS = (1, 2, 4, 8, 16), (1, 4)
TOKENS, QUICK_TOKENS = 64, 32
LONGEST_PROMPT_SECONDS = 30.0  # of those that nobody has asked for

DESCRIPTION = """\
Measures how fast models are on this machine, through the same engine as the
server's: loading, the time to the first token of short and long prompts and of
the same ones asked again, tokens per second of one stream and of several
together, and swapping one model for another. Takes a minute or two per model.
"""

EPILOG = """\
examples:
  mlx-router bench --demo                  see it work, with nothing to download
  mlx-router bench Qwen3-8B-4bit
  mlx-router bench Qwen3-8B-4bit --quick   a glance, in a fraction of the time
  mlx-router bench Qwen3-8B-4bit gemma-3-12b-it-4bit   and swaps between the two
  mlx-router bench --all --json report.json
  mlx-router bench Qwen3-8B-4bit --prompt 16384 --streams 1,32 --runs 5
  mlx-router bench --url http://127.0.0.1:8800 Qwen3-8B-4bit

Prompts are new ones, so that nothing is known of them but where a prompt is
asked again. Figures are medians of the runs. Stop the server and other heavy
programs first: they share the memory and its bandwidth. Ctrl+C shows what has
been measured so far.

exit codes:
  0    done
  1    something could not be measured; the message says what and why
  2    wrong use, or a fault in the config
  130  stopped by Ctrl+C
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router bench",
        usage="mlx-router bench [MODEL ...] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument(
        "names", metavar="MODEL", nargs="*", help="model to measure (default: the default model)"
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--all", action="store_true", help="every model that fits into memory")
    what.add_argument("--quick", action="store_true", help="less of everything, and once")
    what.add_argument(
        "--prompt",
        metavar="N,…",
        type=_numbers(MOST_TOKENS),
        help=f"lengths of prompts in tokens (default: {_list(PROMPTS)})",
    )
    what.add_argument(
        "--streams",
        metavar="N,…",
        type=_numbers(MOST_STREAMS),
        help=f"answers decoded together (default: {_list(STREAMS)})",
    )
    what.add_argument(
        "--tokens",
        metavar="N",
        type=_number(2, MOST_TOKENS),
        help=f"tokens of such an answer (default: {TOKENS})",
    )
    what.add_argument(
        "--runs",
        metavar="N",
        type=_number(1, MOST_RUNS),
        help="runs of each measurement (default: 3, less of what takes over 10 s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", metavar="FILE", help="write every run as JSON; - for stdout, and no table"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    server = parser.add_argument_group("a running server")
    server.add_argument(
        "--url", help="measure a server over HTTP in place of this process, like "
        "http://127.0.0.1:8800; its models stay loaded, and if it has several, name one"
    )  # fmt: skip
    server.add_argument(
        "--api-key", metavar="KEY", help="of that server (default: $MLX_ROUTER_API_KEY)"
    )
    add_model_sources(parser)
    add_general(parser)
    return parser


def plan(arguments: argparse.Namespace) -> Plan:
    """What is to be measured."""
    from mlx_router.bench.results import Plan

    quick = arguments.quick
    return Plan(
        prompts=arguments.prompt or (QUICK_PROMPTS if quick else PROMPTS),
        streams=arguments.streams or (QUICK_STREAMS if quick else STREAMS),
        tokens=arguments.tokens or (QUICK_TOKENS if quick else TOKENS),
        runs=arguments.runs or (1 if quick else None),
        longest_prompt=None if arguments.prompt else LONGEST_PROMPT_SECONDS,
    )


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that do not go together, before anything is measured."""
    if arguments.all and arguments.names:
        raise ConfigError("--all measures every model: leave it or the names out")
    local = {"--demo": arguments.demo, "--model-dir": arguments.model_dir}
    local["--engine"] = arguments.engine != "mlx"
    if arguments.url is not None and (given := [flag for flag in local if local[flag]]):
        raise ConfigError(f"{given[0]} has no meaning with --url: the server has its own models")
    if arguments.json not in (None, "-"):
        path = Path(arguments.json)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ConfigError(
                f"--json: {path} cannot be written; name a file in an existing folder"
            )


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text) if text.strip().isdecimal() else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; use a whole number from {least} to {most}"
            )
        return value

    return number


def _numbers(most: int) -> Callable[[str], tuple[int, ...]]:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(sorted({_number(1, most)(part) for part in text.split(",")}))

    return numbers


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
