"""``mlx-router pull ORG/NAME``: a model of the Hugging Face Hub, into the model directory.

The work and its checks are those of the server's own downloads.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlx_router.cli.copies import AGAIN, is_incomplete, is_linked, is_refused, replace_model
from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    add_general,
    overrides,
)
from mlx_router.errors import ConfigError, ModelCorrupt, ModelNotFound, RouterError

if TYPE_CHECKING:
    from mlx_router.downloads import Job

EPILOG = f"""\
examples:
  mlx-router pull mlx-community/Qwen3-4B-Instruct-2507-4bit
  mlx-router pull mlx-community/Qwen3-4B-Instruct-2507-4bit --dry-run
  mlx-router pull org/model --revision v1.0 --model-dir /Volumes/Big/models

Ctrl+C stops it; the same command goes on from there. A model whose files are
missing or truncated is fetched again and replaced when all of it is here; one
that is a link is left alone. A running server finds the model by itself.
For gated and private models log in first: `hf auth login`, or set HF_TOKEN.

{EXIT_CODES}"""

T = TypeVar("T")
LOOK_SECONDS = 0.1
LINE_SECONDS = 5.0  # between two lines where there is no terminal


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router pull",
        usage="mlx-router pull ORG/NAME [options]",
        description="Downloads a model from the Hugging Face Hub into the model directory.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what to download")
    what.add_argument("name", metavar="ORG/NAME", help="the model, as its page on the Hub calls it")
    what.add_argument(
        "--revision", metavar="REVISION", help="branch, tag or commit (default: main)"
    )
    what.add_argument(
        "--dry-run", action="store_true", help="show what would be fetched, and fetch nothing"
    )
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--model-dir",
        metavar="DIR",
        action="append",
        help="model directory (default: the config's first, $MLX_MODEL_DIR, else ~/models)",
    )
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Download a model. Raises ConfigError, and RouterError for what the Hub, the disk or the
    memory has against it."""
    from mlx_router.config.loading import load_settings
    from mlx_router.downloads import Job, is_repository_name
    from mlx_router.runtime.build import make_monitor
    from mlx_router.runtime.downloading import download_rules

    name: str = arguments.name
    if not is_repository_name(name):
        raise ConfigError(
            f"{name!r} is no model of the Hugging Face Hub: they are called ORG/NAME, like "
            f"mlx-community/Qwen3-4B-Instruct-2507-4bit{_suggested(name)}"
        )
    settings = load_settings(arguments.config, overrides(arguments))
    rules = replace(download_rules(name, settings, make_monitor(settings)), allowed=True)
    models = rules.folder
    state = state_of(models / name, rules.trust_remote_code)
    if state is not State.ABSENT and arguments.revision:
        raise RouterError(
            f"{models / name} is there already, and nothing says of which revision it is. To get "
            f"{arguments.revision}, remove that folder and pull again, or pull it beside it with "
            "--model-dir."
        )
    if state is State.COMPLETE:
        how = ", linked" if is_linked(models / name) else ""
        print(f"{name} is here already{how}: {models / name}")
        return EXIT_OK
    if state is State.INCOMPLETE:  # the new one takes its place when all of it is here
        rules = replace(rules, folder=models / AGAIN)
    job = Job(name, rules, threading.Semaphore(), lambda _: 0, arguments.revision)
    if arguments.dry_run:
        explained(lambda: _show_plan(job, models), name)
        return EXIT_OK
    if not explained(lambda: fetch(job), name):
        here = f"with {_size(job.done)} of {_size(job.total)} here" if job.total else "at once"
        print(f"\nStopped {here}; the same command goes on from there.", file=sys.stderr)
        return EXIT_INTERRUPTED
    if state is State.INCOMPLETE:
        replace_model(models, name)
    print(f"{name} is here: {models / name} ({_size(job.total)})")
    return EXIT_OK


class State(Enum):
    """What is in a model's folder: nothing, too little, or all of it."""

    ABSENT = auto()
    INCOMPLETE = auto()
    COMPLETE = auto()


def state_of(folder: Path, trust_remote_code: bool = False) -> State:
    """What is in a model's folder. Raises ModelCorrupt for what fetching it would not help, and
    for what is not ours to replace."""
    from mlx_router.catalog import inspect_folder

    if folder.is_symlink() and not folder.exists():
        raise ModelCorrupt(f"{folder} is a link to nothing. Remove it, then pull again.")
    if not folder.is_dir():
        return State.ABSENT
    card = inspect_folder(folder, folder.name, trust_remote_code=trust_remote_code)
    if card is None and not (folder / "config.json").exists():
        return State.ABSENT  # empty, or told of by the download
    if card is not None and card.problem is None:
        return State.COMPLETE
    problem = (card.problem if card and card.problem else "it is no model").rstrip(".")
    said = f"{folder} is there, and cannot be used: {problem}."
    if is_linked(folder) or folder.parent.is_symlink():
        raise ModelCorrupt(
            f"{said} It is a link, or made of links, to another program's files, and is left "
            "alone: complete it there, or remove the links, then pull again."
        )
    if is_incomplete(problem):
        return State.INCOMPLETE
    if is_refused(problem):
        raise ModelCorrupt(f"{said} There is nothing to fetch: its files are not what is wrong.")
    raise ModelCorrupt(f"{said} Remove the folder, then pull again.")


def fetch(job: Job) -> bool:
    """Run the job on a thread and show how far it is; False if Ctrl+C ended it. Raises as
    the job."""
    from mlx_router.downloads import Stopped

    failed: list[Exception] = []

    def work() -> None:
        try:
            job.run()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        _show_progress(job, thread)
    except KeyboardInterrupt:
        job.stop()
        with contextlib.suppress(KeyboardInterrupt):  # a second one does not wait
            thread.join(LINE_SECONDS)
        return False
    if failed and not isinstance(failed[0], Stopped):
        raise failed[0]
    return not failed


def _show_progress(job: Job, thread: threading.Thread) -> None:
    """A bar in a terminal, else a line now and then; on stderr, until the thread ends."""
    if not sys.stderr.isatty():
        shown = ""
        while thread.is_alive():
            if job.under_way and job.text != shown:
                shown = job.text
                print(shown, file=sys.stderr, flush=True)
            thread.join(LINE_SECONDS if shown else LOOK_SECONDS)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("asking the Hub", total=None)
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if job.total:
                progress.update(task, description=job.name, completed=job.done, total=job.total)
            elif job.under_way:
                progress.update(task, description=job.text)


def _show_plan(job: Job, folder: Path) -> None:
    from mlx_router.cli.terminal import Terminal

    files = job.plan()
    terminal = Terminal()
    rows = [
        (entry.file.name, _size(entry.file.size), _size(entry.done) if entry.done else "-")
        for entry in files
    ]
    terminal.table(("file", "size", "here already"), rows)
    terminal.line()
    left = _size(job.total - job.done)
    terminal.line(f"{left} of {_size(job.total)} would be fetched into {folder / job.name}")


def explained(work: Callable[[], T], name: str) -> T:
    """What the work gives; its errors in our words, for a person at a terminal."""
    from mlx_router.downloads import hub

    try:
        return work()
    except Exception as fault:
        error = hub.explain(fault, name)
        if isinstance(error, ModelNotFound) and error.code == ModelNotFound.code:
            error = ModelNotFound(
                f"The Hugging Face Hub has no model {name}{_suggested(name)}. If it is private "
                "there, log in with `hf auth login` or set HF_TOKEN."
            )
        raise error from None


def _suggested(name: str) -> str:
    """``; the nearest are: …``, or nothing: who is offline has no use for a second error."""
    from mlx_router.downloads import hub

    try:
        near = hub.nearest(name)
    except Exception:
        return ""
    return f"; the nearest are: {', '.join(near)}" if near else ""


def _size(size: int) -> str:
    from mlx_router.cli.terminal import gigabytes

    return gigabytes(size) if size >= 1024 else f"{size} B"
