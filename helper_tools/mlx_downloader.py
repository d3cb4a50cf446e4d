#!/usr/bin/env python3
"""Downloads MLX models from the Hugging Face Hub, and looks after them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _common import EXIT_CODES, general, load_in_process, model_folders, run
from _listing import PROGRAM, advice, local_model, resolve, show_list, show_status

from mlx_router.cli.parser import EXIT_FAILURE, EXIT_OK, Parser
from mlx_router.cli.terminal import gigabytes
from mlx_router.domain import ModelKind
from mlx_router.errors import ConfigError, InsufficientMemory, RouterError

if TYPE_CHECKING:
    from _local import LocalModel

COMMANDS = ("download", "list", "status", "clean", "remove", "clean-all")

EPILOG = f"""\
commands:
  MODEL             download a model: org/name, a number of `list`, or a name from it
  download MODEL    the same
  list              models worth a try, and those that are here, numbered
  status [MODEL]    what is here of a model, or of all
  clean MODEL       delete what unfinished downloads of a model have left
  clean-all         the same for all models
  remove MODEL      delete a model from the disk; asks before

examples:
  uv run python helper_tools/mlx_downloader.py list
  uv run python helper_tools/mlx_downloader.py 4
  uv run python helper_tools/mlx_downloader.py mlx-community/Qwen3-8B-4bit
  uv run python helper_tools/mlx_downloader.py Qwen3-8B-4bit --dry-run
  uv run python helper_tools/mlx_downloader.py status --json
  uv run python helper_tools/mlx_downloader.py remove Qwen3-8B-4bit

A download that was cut goes on where it stopped: give the same command again.
Each file is checked against the Hub's hash, and in the end the model is loaded
once, in a process of its own, and lets go of its memory again.
Gated models: run `uv run hf auth login` first, or set HF_TOKEN.

states: complete, incomplete, not_downloaded, error (it is here, but of no use)

{EXIT_CODES}"""


def make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] [MODEL] [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("words", metavar="COMMAND, MODEL", nargs="*", help="see below")
    how = parser.add_argument_group("downloading")
    how.add_argument(
        "--download-only",
        "--no-verify",
        dest="no_verify",
        action="store_true",
        help="do not load the model in the end",
    )
    how.add_argument(
        "--force-redownload",
        action="store_true",
        help="fetch it anew; what is here is replaced when all of it has come",
    )
    how.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="also fetch Python code that ships with the model; it is not run here",
    )
    parser.add_argument_group("removing").add_argument(
        "--yes", action="store_true", help="do not ask"
    )
    general(parser)
    return parser


def command(arguments: argparse.Namespace) -> int:
    """Raises RouterError."""
    name, model = _command(arguments.words)
    folders = model_folders(arguments.model_dir)
    if name == "list":
        return show_list(folders, as_json=arguments.json)
    if name == "clean-all":
        return clean(folders, None, dry_run=arguments.dry_run)
    if name == "status" and model is None:
        return show_status(folders, None, as_json=arguments.json)
    if model is None:
        raise ConfigError(
            f"which model? Name one or give its number in `list` (see {PROGRAM} --help)"
        )
    name_of_it = resolve(model, folders, COMMANDS)
    if name == "status":
        return show_status(folders, name_of_it, as_json=arguments.json)
    if name == "clean":
        return clean(folders, name_of_it, dry_run=arguments.dry_run)
    if name == "remove":
        return remove(folders, name_of_it, yes=arguments.yes, dry_run=arguments.dry_run)
    return download(folders, name_of_it, arguments)


def _command(words: Sequence[str]) -> tuple[str, str | None]:
    if not words:
        raise ConfigError(f"what is to be done? Name a model, or `list` (see {PROGRAM} --help)")
    if words[0] not in COMMANDS:
        words = ["download", *words]
    name, *models = words
    if len(models) > (name not in ("list", "clean-all")):
        raise ConfigError(
            f"{models[-1]!r} is one word too many: a command takes one model (see {PROGRAM} --help)"
        )
    return name, models[0] if models else None


# --- downloading ----------------------------------------------------------------------------


def download(folders: Sequence[Path], name: str, arguments: argparse.Namespace) -> int:
    """Raises RouterError."""
    from _fetching import Order, check_name, fetch, plan
    from _local import State

    check_name(name)
    before = local_model(name, folders)
    order = Order(name, folders[0], with_code=arguments.trust_remote_code)
    if before.state is State.COMPLETE and not arguments.force_redownload:
        print(f"{name} is here already: {before.path} (--force-redownload fetches it anew)")
        return EXIT_OK
    if before.state is State.ERROR and not arguments.force_redownload:
        why = f"{before.problem}. {advice(before)}".rstrip()
        raise RouterError(f"{name} is here, but cannot be used: {why}")
    if arguments.dry_run:
        files = plan(order, before)
        size, here = sum(each.file.size for each in files), sum(each.done for each in files)
        print(
            f"would download {name}: {len(files)} files, {gigabytes(size)}, of which "
            f"{gigabytes(here)} are here already, into {order.folder / name}"
        )
        return EXIT_OK
    fetch(order, before)
    model = local_model(name, folders)
    if model.card is None or not model.card.usable:
        if not arguments.trust_remote_code:
            raise RouterError(f"{name} was downloaded, but cannot be used: {model.problem}.")
        print(f"downloaded {name}: {model.path}\nnot verified: {model.problem}")
        return EXIT_OK
    print(f"downloaded {name}: {gigabytes(model.size_bytes)} in {model.path}")
    return EXIT_OK if arguments.no_verify else verify(folders, model)


def verify(folders: Sequence[Path], model: LocalModel) -> int:
    """Load the model once. One that does not fit now is no failure: it may later."""
    assert model.card is not None
    if model.card.kind is ModelKind.RERANKER:
        print("not verified: this kind of model cannot be loaded here")
        return EXIT_OK
    print("loading it once, to see that it works …", file=sys.stderr, flush=True)
    try:
        told = load_in_process(model.card, folders)
    except InsufficientMemory as error:
        print(f"not verified, since it does not fit into memory now: {error.message}")
        return EXIT_OK
    except RouterError as error:
        print(
            f"{PROGRAM}: {model.id} was downloaded, but does not load: {error.message}",
            file=sys.stderr,
        )
        if next_step := advice(local_model(model.id, folders)):
            print(next_step, file=sys.stderr)
        return EXIT_FAILURE
    needs = gigabytes(told["required_bytes"])
    print(f"verified: loaded in {told['load_seconds']:.1f} s; it needs {needs} of memory")
    return EXIT_OK


# --- tidying up -----------------------------------------------------------------------------


def clean(folders: Sequence[Path], name: str | None, *, dry_run: bool) -> int:
    """Delete what unfinished downloads have left, of one model or of all. Finished files stay."""
    from _local import delete_staged, local_models, size_of, unfinished_files

    models = local_models(folders)
    chosen = models.values() if name is None else [local_model(name, folders)]
    would, freed = "would delete" if dry_run else "deleted", 0
    for model in chosen:
        for place in model.staged:
            size = size_of(place)
            if not dry_run:
                delete_staged(place)
            freed += size
            print(f"{would} an unfinished download of {model.id} ({gigabytes(size)})")
        for file in unfinished_files(model):
            size = file.stat().st_size
            if not dry_run:
                file.unlink()
            freed += size
            print(f"{would} {model.id}: {file.name} ({gigabytes(size)})")
    print(f"{would} {gigabytes(freed)} in all" if freed else "nothing to clean")
    if name is not None and (left := local_model(name, folders)).path and left.problem:
        print(f"what is finished stays, in {left.path}; to delete it too: {PROGRAM} remove {name}")
    return EXIT_OK


def remove(folders: Sequence[Path], name: str, *, yes: bool, dry_run: bool) -> int:
    """Delete a model from the disk. Raises RouterError, and ConfigError if nobody can be asked."""
    from _local import State, check_removable, delete_model

    model = local_model(name, folders)
    if model.state is State.NOT_DOWNLOADED:
        raise RouterError(f"{name} is not here: nothing to remove; see {PROGRAM} status")
    check_removable(model, folders)
    what = f"{name} ({gigabytes(model.size_bytes)})"
    if model.path is not None and model.path.is_symlink():
        what = f"the link to {name} (its files stay where they are)"
    if dry_run:
        print(f"would remove {what}")
        return EXIT_OK
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked here: add --yes to remove it all the same")
        if not _agreed(f"Remove {what} from the disk? [y/N] "):
            print("nothing was removed")
            return EXIT_FAILURE
    delete_model(model, folders)
    print(f"removed {what}")
    return EXIT_OK


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl+D
        return False


def main(words: Sequence[str] | None = None) -> int:
    return run(make_parser, command, words)


if __name__ == "__main__":
    sys.exit(main())
