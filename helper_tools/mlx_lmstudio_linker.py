#!/usr/bin/env python3
"""Shares models between MLX Router and LM Studio by symbolic links, so that none is there twice."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import EXIT_CODES, catalog_of, general, model_folders, run
from _links import LinkState, Place, link, look, places, state_of, unlink

from mlx_router.cli.parser import EXIT_FAILURE, EXIT_OK, Parser
from mlx_router.cli.terminal import Terminal, gigabytes, print_json
from mlx_router.errors import ConfigError, RouterError

if TYPE_CHECKING:
    from mlx_router.domain import ModelCard

PROGRAM = "mlx_lmstudio_linker.py"
NEED_MODEL, ALONE = ("link", "unlink"), ("list", "status", "link-all", "unlink-all")
PUBLISHER = "local"  # of models whose name has none: LM Studio wants publisher/model

EPILOG = f"""\
commands:
  list            the models of one side, and whether they are linked into the other
  link-all        link all of them
  link MODEL      link one
  unlink MODEL    remove the links of one; unlink-all: of all
  status          both folders, how many links there are, and how many are broken

examples:
  uv run python helper_tools/mlx_lmstudio_linker.py list
  uv run python helper_tools/mlx_lmstudio_linker.py link-all --dry-run
  uv run python helper_tools/mlx_lmstudio_linker.py link Qwen3-8B-4bit
  uv run python helper_tools/mlx_lmstudio_linker.py link-all --to models
  uv run python helper_tools/mlx_lmstudio_linker.py unlink Qwen3-8B-4bit

--to lmstudio (the default) shows LM Studio the models of MLX Router; --to models
shows MLX Router those of LM Studio. A linked model is a folder publisher/model
with a link to each file. Real files, folders and links that were not made by
this tool are never touched. GGUF models are left out: MLX cannot load them.

{EXIT_CODES}"""


@dataclass(frozen=True, slots=True)
class Direction:
    """``sources`` are the folders whose models are linked into ``target``."""

    name: str
    sources: tuple[Path, ...]
    target: Path

    def place(self, model_id: str) -> Place:
        name = model_id if "/" in model_id else f"{PUBLISHER}/{model_id}"
        return look(self.target / name)


@dataclass(frozen=True, slots=True)
class Standing:
    """A model of the source and its place in the target; ``reason`` says why it is not linked."""

    card: ModelCard
    place: Place
    state: LinkState
    reason: str = ""


def make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [MODEL] [options]",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("command", metavar="COMMAND", help=f"{', '.join((*NEED_MODEL, *ALONE))}")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="its id or short name")
    where = parser.add_argument_group("folders")
    where.add_argument(
        "--to",
        choices=("lmstudio", "models"),
        default="lmstudio",
        help="into whose folder models are linked (default: lmstudio)",
    )
    where.add_argument(
        "--lmstudio-dir", metavar="DIR", type=Path, help="LM Studio's model folder, if not found"
    )
    general(parser)
    return parser


def command(arguments: argparse.Namespace) -> int:
    """Raises RouterError."""
    name, model = arguments.command, arguments.model
    if name not in (*NEED_MODEL, *ALONE):
        raise ConfigError(
            f"unknown command {name!r}; use {', '.join((*NEED_MODEL, *ALONE))} "
            f"(see {PROGRAM} --help)"
        )
    if (model is None) == (name in NEED_MODEL):
        raise ConfigError(
            f"{name} needs the name of a model; see {PROGRAM} list"
            if model is None
            else f"{name} takes no model; did you mean {name.removesuffix('-all')} {model}?"
        )
    models, studio = model_folders(arguments.model_dir), lm_studio(arguments.lmstudio_dir)
    _check_apart(models, studio)
    if name == "status":
        return show_status(models, studio, as_json=arguments.json)
    if arguments.to == "lmstudio":
        direction = Direction("LM Studio", tuple(models), studio)
    else:
        direction = Direction("MLX Router", (studio,), models[0])
    if name == "list":
        return show_list(direction, as_json=arguments.json)
    if name.startswith("unlink"):
        return remove_links(direction, model, dry_run=arguments.dry_run)
    code = make_links(direction, model, dry_run=arguments.dry_run)
    if arguments.to == "models" and not _is_usual(studio):
        print(
            f"MLX Router follows links into {studio} only if the config names it: add it to "
            "defaults.model_directory"
        )
    return code


def _is_usual(studio: Path) -> bool:
    """Whether MLX Router finds LM Studio's folder by itself."""
    from mlx_router.catalog.stores import lm_studio_folders

    return studio in lm_studio_folders(Path.home())


def lm_studio(given: Path | None) -> Path:
    """LM Studio's model folder, absolute. Raises RouterError if there is none."""
    from mlx_router.catalog.stores import lm_studio_folders
    from mlx_router.config.files import expanded

    folder = lm_studio_folders(Path.home())[0] if given is None else expanded(given)
    if not folder.is_dir():
        raise RouterError(
            f"LM Studio's model folder was not found at {folder}. Start LM Studio once, or name "
            "the folder that its My Models page shows: --lmstudio-dir DIR"
        )
    return Path(os.path.abspath(folder))


def _check_apart(models: Sequence[Path], studio: Path) -> None:
    """Raises ConfigError if one folder is the other, or in it: a link would lead to itself."""
    real = Path(os.path.realpath(studio))
    for folder in models:
        other = Path(os.path.realpath(folder))
        if real == other or real in other.parents or other in real.parents:
            raise ConfigError(
                f"{folder} and LM Studio's {studio} are one folder, or one is in the other: both "
                "programs have the same models already"
            )


def standings(direction: Direction) -> list[Standing]:
    """How the models of the source stand in the target. Those that are links to the target's own
    are left out."""
    found, taken = [], dict[str, str]()
    for card in catalog_of(direction.sources).cards():
        if _comes_from(card, direction.target):
            continue
        place = direction.place(card.id)
        state, reason = state_of(place, card.id, card.path), ""
        key = str(place.path).casefold()  # many disks do not tell A from a
        if key in taken:
            state, reason = LinkState.CLASH, f"{taken[key]} has the same place there"
        elif state is LinkState.CLASH:
            reason = f"{place.model} has the same place there"
        elif state is LinkState.PRESENT:
            reason = "is there already, as a folder that was not made by this tool"
        elif card.problem is not None and state is LinkState.NOT_LINKED:
            reason = f"cannot be used: {card.problem}"
        taken.setdefault(key, card.id)
        found.append(Standing(card, place, state, reason))
    return found


def _comes_from(card: ModelCard, target: Path) -> bool:
    """Whether a model lies in the target, and is here by links only."""
    config = os.path.realpath(card.path / "config.json")
    return Path(os.path.realpath(target)) in Path(config).parents


def _find(direction: Direction, name: str) -> Standing:
    """Raises ModelNotFound, which names the nearest ones."""
    card = catalog_of(direction.sources).resolve(name)
    for standing in standings(direction):
        if standing.card.id == card.id:
            return standing
    raise RouterError(f"{card.id} is a link to a model of {direction.name} itself: nothing to link")


def make_links(direction: Direction, name: str | None, *, dry_run: bool) -> int:
    """Link one model, or all. Raises RouterError where one cannot be; of all, it says why and goes
    on."""
    chosen = standings(direction) if name is None else [_find(direction, name)]
    would, failed, new = "would link" if dry_run else "linked", 0, 0
    for each in chosen:
        if each.reason:
            clash = each.state is LinkState.CLASH or (name is not None and not each.card.usable)
            failed += clash
            print(f"not linked: {each.card.id}: {each.reason}", file=sys.stderr)
            continue
        if each.state is LinkState.LINKED:
            print(f"linked already: {each.card.id}")
            continue
        try:
            count = link(
                each.place, each.card.id, each.card.path, direction.target, dry_run=dry_run
            )
        except RouterError as error:
            failed += 1
            print(f"not linked: {each.card.id}: {error.message}", file=sys.stderr)
            continue
        new += 1
        print(f"{would} {each.card.id} ({_count(count)}): {each.place.path}")
    print(f"{would} {new} of {len(chosen)} models, into {direction.target}")
    return EXIT_FAILURE if failed else EXIT_OK


def remove_links(direction: Direction, name: str | None, *, dry_run: bool) -> int:
    """Remove the links of one model, or of all: also of models that are gone."""
    ours = list(places(direction.target))
    if name is not None:
        ours = [place for place in ours if _is_named(place, name)]
        if not ours:
            raise RouterError(
                f"{name} has no links of this tool in {direction.target}: nothing to remove; see "
                f"{PROGRAM} status (--to says which folder is meant)"
            )
        if len(ours) > 1:
            shown = " or ".join(place.id for place in ours)
            raise ConfigError(f"{name!r} may be {shown}: name it in full")
    for place in ours:
        count = unlink(place, direction.target, dry_run=dry_run)
        print(f"{'would unlink' if dry_run else 'unlinked'} {place.id} ({_count(count)})")
        if place.foreign:
            print(f"  left alone, not made by this tool: {', '.join(place.foreign)}")
    if not ours:
        print("no links to remove")
    return EXIT_OK


def _is_named(place: Place, name: str) -> bool:
    wanted = name.casefold()
    return wanted in (place.id.casefold(), place.path.name.casefold())


def _count(links: int) -> str:
    return f"{links} link{'s' if links != 1 else ''}"


def show_list(direction: Direction, *, as_json: bool) -> int:
    found = standings(direction)
    if as_json:
        entries = [
            {
                "id": each.card.id,
                "state": each.state.value,
                "path": str(each.card.path),
                "link_path": str(each.place.path),
                "links": len(each.place.links),
                "broken_links": len(each.place.broken),
                "size_bytes": each.card.size_bytes,
                "reason": each.reason or None,
            }
            for each in found
        ]
        print_json({"target": str(direction.target), "models": entries})
        return EXIT_OK
    terminal = Terminal()
    if found:
        rows = [(each.card.id, gigabytes(each.card.size_bytes), each.state) for each in found]
        terminal.table(("model", "size", f"in {direction.name}"), rows)
        reasons = [(each.card.id, each.reason) for each in found if each.reason]
        if reasons:
            terminal.line()
        for name, reason in reasons:
            terminal.item(name, reason)
    else:
        terminal.line(f"no models of its own in {', '.join(map(str, direction.sources))}")
    return EXIT_OK


def show_status(models: Sequence[Path], studio: Path, *, as_json: bool) -> int:
    ways = (
        Direction("LM Studio", tuple(models), studio),
        Direction("MLX Router", (studio,), models[0]),
    )
    told = [_status(way) for way in ways]
    if as_json:
        print_json(dict(zip(("lmstudio", "models"), told, strict=True)))
        return EXIT_OK
    terminal = Terminal()
    for way, status in zip(ways, told, strict=True):
        terminal.line(f"{way.name}: {way.target}", style="bold")
        terminal.line(
            f"  linked from {', '.join(map(str, way.sources))}: {status['models']} models, "
            f"{_count(status['links'])}, {status['broken_links']} broken"
        )
        for name, files in status["broken"].items():
            terminal.item(name, f"broken: {', '.join(files)}", indent=4)
    if any(status["broken_links"] for status in told):
        terminal.line()
        terminal.line(f"Links break when a model is moved or removed: {PROGRAM} unlink MODEL")
    return EXIT_OK


def _status(way: Direction) -> dict[str, Any]:
    found = list(places(way.target))
    broken = {place.id: list(place.broken) for place in found if place.broken}
    return {
        "folder": str(way.target),
        "models": len(found),
        "links": sum(len(place.links) for place in found),
        "broken_links": sum(map(len, broken.values())),
        "broken": broken,
    }


def main(words: Sequence[str] | None = None) -> int:
    return run(make_parser, command, words)


if __name__ == "__main__":
    sys.exit(main())
