"""``mlx-router doctor``: looks at all that a server needs, and says how to fix what is missing."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_FAILURE,
    EXIT_OK,
    Parser,
    add_general,
    overrides,
)
from mlx_router.errors import ConfigError
from mlx_router.version import __version__

if TYPE_CHECKING:
    from mlx_router.cli.checks.finding import Finding, Patient

EPILOG = f"""\
examples:
  mlx-router doctor
  mlx-router doctor --json              for a bug report or a script
  mlx-router doctor --config my.json    as a server with this config would find it

Nothing is changed. Exit code 0: no problem, warnings at most; 1: there is a problem.

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router doctor",
        usage="mlx-router doctor [options]",
        description="Checks this machine, the config and the models, and says how to fix each.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to check")
    what.add_argument("--no-mlx", action="store_true", help="do not let MLX compute")
    what.add_argument("--json", action="store_true", help="print JSON")
    where = parser.add_argument_group("as the server would be started")
    where.add_argument("--ip", help="address to listen on")
    where.add_argument("-p", "--port", metavar="PORT", help="port to listen on")
    where.add_argument(
        "--model-dir", metavar="DIR", action="append", help="folder with models; may be repeated"
    )
    where.add_argument("--demo", action="store_true", help="with the tiny built-in models")
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Check everything, and print it. Never raises for what it finds."""
    if not arguments.debug:  # what the parts would log is among the findings
        logging.getLogger("mlx_router").addHandler(logging.NullHandler())
    findings = examine(arguments)
    problems = sum(finding.level == "problem" for finding in findings)
    if arguments.json:
        _print_json(findings)
    else:
        _show(findings)
    return EXIT_FAILURE if problems else EXIT_OK


def examine(arguments: argparse.Namespace) -> list[Finding]:
    """The findings of all checks, in a fixed order. A check that crashes is a finding itself."""
    from mlx_router.cli.checks import machine, setup

    patient = _patient(arguments)
    checks: dict[str, Callable[[Patient], Iterable[Finding]]] = {
        "Python": machine.python,
        "packages": machine.packages,
        "MLX": machine.mlx,
        "memory": machine.memory,
        "config": setup.config,
        "models": setup.models,
        "images": machine.images,
        "folders": setup.folders,
        "address": setup.address,
        "access": setup.access,
        "service": setup.service,
    }
    if arguments.no_mlx:
        del checks["MLX"]
    # MLX takes the longest, and does so beside the others.
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(_run, name, check, patient) for name, check in checks.items()]
        return [finding for run in runs for finding in run.result()]


def _run(
    name: str, check: Callable[[Patient], Iterable[Finding]], patient: Patient
) -> list[Finding]:
    from mlx_router.cli.checks.finding import Finding, Level

    try:
        return list(check(patient))
    except ConfigError as error:
        return [Finding(name, Level.PROBLEM, error.message, "correct it where it is set")]
    except Exception as error:
        text = f"this check failed: {type(error).__name__}: {error}"
        return [Finding(name, Level.PROBLEM, text, "please report it")]


def _patient(arguments: argparse.Namespace) -> Patient:
    from mlx_router.cli.checks.finding import Patient
    from mlx_router.config.loading import find_config, load_settings
    from mlx_router.config.settings import Settings

    try:
        settings = load_settings(arguments.config, overrides(arguments))
        config = find_config(arguments.config, os.environ)
        return Patient(arguments, settings, config)
    except ConfigError as error:
        return Patient(arguments, Settings(), faults=tuple(error.message.splitlines()))


def _print_json(findings: Sequence[Finding]) -> None:
    from dataclasses import asdict

    from mlx_router.cli.terminal import print_json

    counts = {
        f"{level}s": sum(finding.level == level for finding in findings)
        for level in ("problem", "warning")
    }
    print_json(
        {"version": __version__, **counts, "findings": [asdict(finding) for finding in findings]}
    )


_STYLES = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "bold red")}


def _show(findings: Sequence[Finding]) -> None:
    """A line for each: with a sign in a terminal, with the word in a pipe."""
    from mlx_router.cli.terminal import Terminal

    terminal = Terminal()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        sign, style = _STYLES[finding.level.value]
        mark = sign if terminal.is_terminal else f"{finding.level.value:<7}"
        fix = f"; to fix it: {finding.fix}" if finding.fix else ""
        style = "" if finding.level == "ok" else style
        terminal.line(f"{mark} {finding.name:<{width}}  {finding.text}{fix}", style=style or None)
    counts = [
        f"{count} {level}{'' if count == 1 else 's'}"
        for level in ("problem", "warning")
        if (count := sum(finding.level == level for finding in findings))
    ]
    terminal.line()
    terminal.line(", ".join(counts) or "All is well.", style="bold")
