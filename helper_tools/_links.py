"""A model in another program's folder: a folder of its own there, with a link to each file.

A hidden file beside the links lists those that were made here, and where they lead. Only they are
ever removed, and only as long as they lead there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mlx_router.catalog.folder import is_partial, read_regular
from mlx_router.errors import RouterError

LIST = ".mlx-router-links.json"
_MAX_LIST_BYTES = 10_000_000
_LITTER = (".DS_Store",)  # of the Finder, in any folder that it has shown


class LinkState(StrEnum):
    """How a model stands in the other folder."""

    LINKED = "linked"
    PARTLY = "partly"  # files have come or gone since
    NOT_LINKED = "not_linked"
    PRESENT = "present"  # as a folder that somebody else made
    CLASH = "clash"  # another model has the place


@dataclass(frozen=True, slots=True)
class Place:
    """A model's folder in the other program's folder, as it is now. ``model`` is the id of what was
    linked there; ``links`` are ours, by name; ``broken`` those of them that lead nowhere;
    ``foreign`` is what others have put there."""

    path: Path
    exists: bool = False
    model: str = ""
    links: dict[str, Path] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """``publisher/model``, as the other program has it."""
        return f"{self.path.parent.name}/{self.path.name}"


def look(path: Path) -> Place:
    """What is in a model's place."""
    if path.is_symlink() or not path.is_dir():
        exists = os.path.lexists(path)
        return Place(path, exists, foreign=(path.name,) if exists else ())
    model, listed = _read_list(path)
    links = {name: target for name, target in listed.items() if _leads(path / name, target)}
    broken = tuple(name for name in links if not (path / name).exists())
    rest = sorted({entry.name for entry in path.iterdir()} - links.keys() - {LIST, *_LITTER})
    return Place(path, True, model, links, broken, tuple(rest))


def places(root: Path) -> Iterator[Place]:
    """All folders of two levels under ``root`` in which there are links of ours."""
    for file in sorted(root.glob(f"*/*/{LIST}")):
        if not file.parent.is_symlink() and not file.parent.parent.is_symlink():
            place = look(file.parent)
            if place.links:
                yield place


def files_of(model: Path) -> dict[str, Path]:
    """What is linked of a model: its files and the folders in it, by name; nothing hidden, and
    nothing that a download has not finished."""
    return {
        entry.name: Path(os.path.abspath(entry))
        for entry in sorted(model.iterdir())
        if not entry.name.startswith(".") and not is_partial(entry.name) and entry.exists()
    }


def state_of(place: Place, model_id: str, model: Path) -> LinkState:
    """How a model, whose folder is ``model``, stands in a place."""
    if place.links and place.model != model_id:
        return LinkState.CLASH
    if not place.links:
        return LinkState.PRESENT if place.foreign else LinkState.NOT_LINKED
    return LinkState.LINKED if place.links == files_of(model) else LinkState.PARTLY


def link(place: Place, model_id: str, model: Path, root: Path, *, dry_run: bool) -> int:
    """Make the links of a model that are missing, and remove those of ours that are of no use any
    more; returns how many were made. For a place that is not linked, or partly. Raises
    RouterError."""
    parent = place.path.parent
    if os.path.realpath(parent) != os.path.join(os.path.realpath(root), parent.name):
        raise RouterError(
            f"{parent} is a link to another place, and nothing is linked through it: remove that "
            "link first."
        )
    wanted = files_of(model)
    missing = {name: file for name, file in wanted.items() if place.links.get(name) != file}
    if clashing := sorted(missing.keys() & set(place.foreign)):
        raise RouterError(
            f"{place.path} has {', '.join(clashing)} of another origin, which is left alone: move "
            "it away, then link again."
        )
    if dry_run:
        return len(missing)
    place.path.mkdir(parents=True, exist_ok=True)
    for name, target in place.links.items():
        if wanted.get(name) != target:
            (place.path / name).unlink()
    _write_list(place.path, model_id, wanted)  # first, so that no link is ever without an owner
    for name, file in missing.items():
        (place.path / name).symlink_to(file)
    return len(missing)


def unlink(place: Place, root: Path, *, dry_run: bool) -> int:
    """Remove our links, and the folders that are empty then; returns how many links there were.
    What others have put there stays."""
    if dry_run:
        return len(place.links)
    for name in (*place.links, LIST):
        (place.path / name).unlink()
    for folder in (place.path, place.path.parent):
        left = {entry.name for entry in folder.iterdir()}
        if folder == root or left - set(_LITTER):
            break
        for name in left:
            (folder / name).unlink()
        folder.rmdir()
    return len(place.links)


def _leads(link_path: Path, target: Path) -> bool:
    return link_path.is_symlink() and os.readlink(link_path) == str(target)


def _read_list(path: Path) -> tuple[str, dict[str, Path]]:
    """The model and the links that a folder's list names; nothing if there is none to be read."""
    try:
        content = json.loads(read_regular(path / LIST, _MAX_LIST_BYTES))
        links = {str(name): Path(target) for name, target in content["links"].items()}
        return str(content["model"]), {n: t for n, t in links.items() if "/" not in n}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", {}


def _write_list(path: Path, model_id: str, links: dict[str, Path]) -> None:
    content = {"model": model_id, "links": {name: str(file) for name, file in links.items()}}
    temporary = path / f"{LIST}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path / LIST)
