"""``mlx-router bench``: how fast models are on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_router.cli.bench_options import check, make_parser, plan
from mlx_router.cli.parser import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, overrides
from mlx_router.errors import ConfigError, RouterError

if TYPE_CHECKING:
    from mlx_router.bench.results import Results
    from mlx_router.bench.target import Subject, Target
    from mlx_router.config.settings import Settings

__all__ = ["make_parser", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Measure and show. Raises ConfigError, ModelNotFound and what else keeps it from beginning."""
    from mlx_router.bench.results import Results
    from mlx_router.cli.bench_report import about, show
    from mlx_router.cli.remote import Remote
    from mlx_router.cli.terminal import Terminal
    from mlx_router.config.loading import load_settings

    check(arguments)
    settings = load_settings(arguments.config, overrides(arguments))
    if arguments.url is not None:
        arguments.url = Remote(arguments.url).base  # raises for what is no address
    results = Results(plan(arguments), about(arguments))
    progress = Progress(quiet=arguments.quiet)
    try:
        asyncio.run(_measure(arguments, settings, results, progress))
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        progress.end()
    if arguments.json != "-" and results.models:
        show(results, Terminal())
    if arguments.json is not None:
        _write(arguments.json, results.as_json())
    for failure in results.failures:
        print(f"mlx-router: {failure}", file=sys.stderr)
    if results.interrupted:
        print("mlx-router: stopped; what is missing was not measured", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILURE if results.failures else EXIT_OK


async def _measure(
    arguments: argparse.Namespace, settings: Settings, results: Results, progress: Progress
) -> None:
    from mlx_router.bench.suite import Suite

    async with AsyncExitStack() as stack:
        progress.say("starting")
        target = await _target(arguments, settings, max(results.plan.streams), stack)
        subjects = await _choose(target, arguments, results)
        if arguments.url is None and arguments.engine != "scripted":
            from mlx_router.engine.device import prepare_process

            await asyncio.to_thread(prepare_process)  # else it would count as a model's load
        await Suite(target, results.plan, results, progress.step).run(subjects)
        progress.say("ending")


async def _target(
    arguments: argparse.Namespace, settings: Settings, most_streams: int, stack: AsyncExitStack
) -> Target:
    """What is measured, until the stack is closed."""
    if arguments.url is not None:
        from mlx_router.bench.server import ServerTarget
        from mlx_router.cli.remote import given_key

        key = given_key(arguments.api_key)  # the config's keys are for its own server
        return await stack.enter_async_context(ServerTarget(arguments.url, key))
    from mlx_router.bench.library import LibraryTarget, bench_settings
    from mlx_router.runtime.manager import MLXModelManager

    manager = MLXModelManager(
        bench_settings(settings, most_streams), engine=arguments.engine, demo=arguments.demo
    )
    await manager.astart(preload=False)
    stack.push_async_callback(manager.aclose)
    return LibraryTarget(manager)


async def _choose(target: Target, arguments: argparse.Namespace, results: Results) -> list[Subject]:
    """The models to measure, each once. Raises ModelNotFound, ConfigError."""
    if arguments.all:
        subjects = await target.subjects()
        for subject in subjects:
            if subject.refusal is not None:
                results.notes.append(f"{subject.id}: left out. {subject.refusal}")
        subjects = [subject for subject in subjects if subject.refusal is None]
        if not subjects:
            raise RouterError("there is no model here that fits; see `mlx-router models`")
        return subjects
    names: Sequence[str] = arguments.names
    if not names:
        default = await target.default()
        names = [default] if default else [each.id for each in await target.subjects()]
        if not names:
            raise RouterError("there is no model here; try `mlx-router bench --demo`")
        if len(names) > 1:
            raise ConfigError(f"which model? Name one or several, or --all: {', '.join(names)}")
    found = {subject.id: subject for subject in [await target.find(name) for name in names]}
    for subject in found.values():
        if not subject.writes_text:
            raise ConfigError(f"{subject.id} writes no text, and only that is measured")
    return list(found.values())


def _write(name: str, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if name == "-":
        print(text)
        return
    try:
        Path(name).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RouterError(f"--json: {name} cannot be written: {error.strerror}") from None


class Progress:
    """Says on stderr what is measured now: on a terminal in one line, else in lines."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._in_place = sys.stderr.isatty()

    def step(self, what: str, number: int, total: int) -> None:
        self.say(f"[{number}/{total}] {what}")

    def say(self, text: str) -> None:
        if self._quiet:
            return
        if self._in_place:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._in_place and not self._quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
