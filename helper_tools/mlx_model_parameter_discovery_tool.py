#!/usr/bin/env python3
"""Finds the settings that suit a local model, and merges them into config.json if asked to."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import (
    EXIT_CODES,
    file_name,
    general,
    load_in_process,
    model_folders,
    run,
)

from mlx_router.cli.parser import EXIT_OK, Parser
from mlx_router.cli.terminal import Terminal, gigabytes, print_json, tokens
from mlx_router.domain import ModelKind
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from _discovery import Discovered

PROGRAM = "mlx_model_parameter_discovery_tool.py"
PLAN = {"prompts": (128, 1024, 4096), "streams": (1,), "tokens": 64, "longest_prompt": 30.0}
QUICK_PLAN = {"prompts": (128,), "streams": (1,), "tokens": 32, "runs": 1}

EPILOG = f"""\
examples:
  uv run python helper_tools/{PROGRAM} Qwen3-8B-4bit
  uv run python helper_tools/{PROGRAM} Qwen3-8B-4bit --benchmark
  uv run python helper_tools/{PROGRAM} ~/models/org/model --write config.json --dry-run
  uv run python helper_tools/{PROGRAM} mlx_router/demo/model --benchmark --quick

Without --benchmark nothing is loaded: all is read from the model's files, and
the memory that it needs is estimated. With it, the model is loaded in a process
of its own and measured. Code that ships with a model is never run.

Writes discovered_configs_MODEL.json and, with --benchmark,
benchmark_results_MODEL_TIME.json. --write changes the model's entry in a config
file and nothing else in it, shows what it changes, and keeps a copy of the file
as it was.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} MODEL [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="its folder, id or short name")
    what = parser.add_argument_group("what is done")
    what.add_argument("--benchmark", action="store_true", help="load it, and measure it")
    what.add_argument("--quick", action="store_true", help="with --benchmark: less, and once")
    what.add_argument(
        "--write", metavar="FILE", type=Path, help="merge the entry into this config file"
    )
    what.add_argument(
        "--replace",
        action="store_true",
        help="with --write: what is found comes before what the file has for this model",
    )
    what.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="folder of the results (default: this one)",
    )
    general(parser)
    return parser


def command(arguments: argparse.Namespace) -> int:
    """Raises RouterError."""
    from _discovery import discover, find
    from _merging import merge

    _check(arguments)
    folders = model_folders(arguments.model_dir)
    subject = find(arguments.model, folders)
    if arguments.benchmark and subject.card.kind not in (ModelKind.TEXT, ModelKind.VISION):
        raise ConfigError(f"{subject.card.id} writes no text, and only that is measured")
    if arguments.write is not None:  # a fault in the file is told before minutes of measuring
        found = discover(subject)
        merge(arguments.write, found.model, found.entry, replace=arguments.replace)
    measured = None
    if arguments.benchmark and not arguments.dry_run:
        plan = QUICK_PLAN if arguments.quick else PLAN
        measured = load_in_process(subject.card, folders, plan)
    found = discover(subject, measured)
    if arguments.json:
        print_json({**found.as_json(), "measured": measured})
    else:
        show(found, measured, Terminal())
    if arguments.dry_run:
        _say(arguments, "dry run: no file was written" + ", nothing loaded" * arguments.benchmark)
    else:
        _write_results(arguments, found, measured)
    if arguments.write is not None:
        _merge_into(arguments, found)
    return EXIT_OK


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError."""
    if arguments.quick and not arguments.benchmark:
        raise ConfigError("--quick has a meaning with --benchmark only")
    if arguments.replace and arguments.write is None:
        raise ConfigError("--replace has a meaning with --write FILE only")
    if not arguments.output.is_dir() or not os.access(arguments.output, os.W_OK):
        raise ConfigError(f"--output: {arguments.output} is no folder to write into")


def _write_results(
    arguments: argparse.Namespace, found: Discovered, measured: Mapping[str, Any] | None
) -> None:
    name = file_name(found.model)
    results = {f"discovered_configs_{name}.json": found.as_json()}
    if measured is not None:
        from mlx_router.cli.bench_report import about

        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        of = about(argparse.Namespace(url=None, engine="mlx"))
        results[f"benchmark_results_{name}_{stamp}.json"] = {**of, **measured}
    for file, content in results.items():
        path = arguments.output / file
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _say(arguments, f"written: {path}")


def _merge_into(arguments: argparse.Namespace, found: Discovered) -> None:
    from _merging import merge, write

    change = merge(arguments.write, found.model, found.entry, replace=arguments.replace)
    for key, (there, new) in change.kept.items():
        _say(arguments, f"kept: {key} is {json.dumps(there)} there (found: {json.dumps(new)})")
    if change.kept:
        _say(arguments, "--replace takes what was found")
    diff = change.diff()
    if not diff:
        _say(arguments, f"{arguments.write} needs no change")
        return
    _say(arguments, diff.rstrip())
    if arguments.dry_run:
        _say(arguments, f"{arguments.write} would be changed like that")
        return
    backup = write(change)
    kept = f"; as it was: {backup}" if backup is not None else ""
    _say(arguments, f"{arguments.write} was changed{kept}")
    _say(arguments, "A running server takes it over with `uv run mlx-router reload`.")


def _say(arguments: argparse.Namespace, text: str) -> None:
    """On stderr, if stdout is for JSON."""
    print(text, file=sys.stderr if arguments.json else sys.stdout)


def show(found: Discovered, measured: Mapping[str, Any] | None, terminal: Terminal) -> None:
    terminal.line(found.model, style="bold")
    able = [
        what
        for what, is_so in (
            ("tools", found.supports_tools),
            ("images", found.supports_vision),
            ("reasoning", found.supports_reasoning),
        )
        if is_so
    ]
    sampling = ", ".join(f"{name} {value:g}" for name, value in found.sampling.items())
    rows = {
        "kind": f"{found.kind}, {found.architecture}, {found.quantization or '-'}",
        "family": found.family,
        "size": gigabytes(found.size_bytes),
        "context": f"{tokens(found.context_length)} tokens",
        "template": f"its own ({found.template})" if found.template else "none",
        "abilities": ", ".join(able) or "text only",
        "sampling": f"{sampling or '-'} (from {found.sampling_source})",
        "needs": f"{gigabytes(found.required_bytes)} of memory ({found.required_source})",
    }
    if measured is not None:
        rows |= _measured_rows(measured)
    for name, value in rows.items():
        terminal.line(f"  {name:<10} {value}")
    terminal.line()
    terminal.line("For config.json:")
    entry = json.dumps({"models": {found.model: found.entry}}, indent=2, ensure_ascii=False)
    for line in entry.splitlines():
        terminal.line(line)
    terminal.line()


def _measured_rows(measured: Mapping[str, Any]) -> dict[str, str]:
    from mlx_router.cli.bench_report import rate, seconds

    figures = measured["benchmark"]
    rows = {"loaded in": seconds(measured["load_seconds"])}
    if measured.get("peak_bytes"):
        rows["peak"] = f"{gigabytes(measured['peak_bytes'])} of MLX's memory while it was measured"
    for prompt in figures["prompts"]:
        cold = prompt["cold"]
        rows[f"{prompt['prompt_tokens']} tokens"] = (
            f"first token after {seconds(cold['first_token_seconds'])}, "
            f"{rate(cold['prefill_tokens_per_second'])} tokens/s"
        )
    rows["decoding"] = f"{rate(figures['decode_tokens_per_second'])} tokens/s"
    for number, note in enumerate((*figures["notes"], *figures["failures"]), 1):
        rows[f"note {number}"] = note
    return rows


def main(words: Sequence[str] | None = None) -> int:
    return run(make_parser, command, words)


if __name__ == "__main__":
    sys.exit(main())
