"""``mlx-router config import FILE``: another tool's config becomes one of MLX Router."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_router.cli.parser import EXIT_OK, Parser
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from mlx_router.cli.terminal import Terminal
    from mlx_router.config.importing import Imported, Note
    from mlx_router.config.settings import Settings

SHOWN_MODELS = 20


def add_import(parser: Parser) -> None:
    """The options that only ``import`` has."""
    group = parser.add_argument_group("import")
    group.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="config to write (default: the one a server would read, else config.json)",
    )
    group.add_argument(
        "--merge",
        action="store_true",
        help="add to the config that is there; where both say something, it keeps its word",
    )
    group.add_argument("--force", action="store_true", help="replace the config that is there")
    group.add_argument(
        "--dry-run", action="store_true", help="write nothing: config on stdout, report on stderr"
    )


def refuse_import_options(arguments: argparse.Namespace) -> None:
    """Raises ConfigError if one of them was given to another action."""
    for name in ("output", "merge", "force", "dry_run"):
        if getattr(arguments, name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is for import, not for {arguments.action} (see mlx-router config --help)"
            )


def run_import(arguments: argparse.Namespace) -> int:
    """Import, report, write. Raises ConfigError, and then nothing was written."""
    from mlx_router.cli.terminal import Terminal
    from mlx_router.config.files import expanded
    from mlx_router.config.importing import import_file, merged
    from mlx_router.config.loading import read_config
    from mlx_router.config.settings import Settings

    if arguments.file is None:
        raise ConfigError(
            "import needs a file: mlx-router config import hub.yaml (see mlx-router config --help)"
        )
    if arguments.merge and arguments.force:
        raise ConfigError("--merge keeps the config that is there, --force does not: use one")
    in_force = arguments.config or os.environ.get("MLX_ROUTER_CONFIG") or "config.json"
    source, output = expanded(arguments.file), expanded(arguments.output or in_force)
    if os.path.realpath(source) == os.path.realpath(output):
        raise ConfigError(f"{output}: is the file to import; name another one with --output")
    imported = import_file(source)
    config, kept = imported.config, list[str]()
    settings = Settings(**config)
    if output.exists() and not arguments.force:
        if not (arguments.merge or arguments.dry_run):
            raise ConfigError(
                f"{output}: is there already, and nothing was written; add to it with --merge, "
                "replace it with --force, look first with --dry-run, or name another --output"
            )
        if arguments.merge:
            there = read_config(output)  # without comments
            settings = _validated(merged(there, config)[0], output)
            there = json.loads(output.read_text(encoding="utf-8-sig"))
            config, kept = merged(there, config)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    terminal = Terminal(sys.stderr if arguments.dry_run else None)
    _report(source, imported, kept, terminal)
    _say_what_is_missing(settings, imported, terminal)
    if arguments.dry_run:
        sys.stdout.write(text)
    else:
        _write(output, text)
        terminal.line()
        terminal.line(f"Written: {output}", style="bold green")
    return EXIT_OK


def _validated(config: dict[str, Any], output: Path) -> Settings:
    """Raises ConfigError: what was imported is valid alone, but may not go with what is there."""
    from pydantic import ValidationError

    from mlx_router.config.problems import problem_lines
    from mlx_router.config.settings import Settings

    try:
        return Settings.model_validate(config)
    except ValidationError as error:
        lines = problem_lines(error, f"{output}, merged", {})
        raise ConfigError("\n".join([*lines, "nothing was written"])) from None


def _write(path: Path, text: str) -> None:
    from mlx_router.config.files import replace_text

    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; name another --output"
        ) from None


def _report(path: Path, imported: Imported, kept: Iterable[str], terminal: Terminal) -> None:
    from mlx_router.config.importing import Outcome

    terminal.line(f"{path}: {imported.kind}", style="bold")
    for outcome, title, style in (
        (Outcome.TAKEN, "Taken over:", "green"),
        (Outcome.LEFT, "No counterpart:", "yellow"),
        (Outcome.WRONG, "Wrong in the file:", "red"),
    ):
        notes = [note for note in imported.notes if note.outcome == outcome]
        if notes:
            terminal.line()
            terminal.line(title, style=style)
        for where, key, text in _gathered(notes):
            terminal.item(f"{where}, {key}", text)
    if kept := list(kept):
        terminal.line()
        terminal.line("As it was in the config that is there:")
        for line in kept:
            terminal.line(f"  {line}")


def _gathered(notes: Iterable[Note]) -> list[tuple[str, str, str]]:
    """``(line 3, key, text)``; what is said of a key in several lines is said once."""
    lines: dict[tuple[str, str], list[int]] = {}
    for note in notes:
        lines.setdefault((note.key, note.text), []).append(note.line)
    return [
        (f"line{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}", key, text)
        for (key, text), found in lines.items()
    ]


def _say_what_is_missing(settings: Settings, imported: Imported, terminal: Terminal) -> None:
    """Which models of the Hub are not on this machine yet."""
    if not imported.hub_models:
        return
    from mlx_router.cli.completion import found_models

    here = {name.casefold() for name in found_models(settings)}
    missing = [name for name in imported.hub_models if name.casefold() not in here]
    if missing:
        terminal.line()
        terminal.line("Not on this machine yet; to fetch them:", style="yellow")
        for name in missing[:SHOWN_MODELS]:
            terminal.line(f"  mlx-router pull {name}")
        if len(missing) > SHOWN_MODELS:
            terminal.line(f"  … and {len(missing) - SHOWN_MODELS} more")
