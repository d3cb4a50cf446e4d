"""Where the models are: walking model directories, by names alone.

Known layouts, in one directory mixed as they come::

    model/                                    id "model"
    org/model/                                id "org/model"
    org--model/                               id "org/model"
    models--org--model/snapshots/REVISION/    id "org/model" (a Hugging Face cache)
    hub/models--org--model/snapshots/...      the same, one level down

Any of these folders may be a symlink. Hidden folders are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_router.catalog.names import is_model_name

_CACHE_PREFIX = "models--"
_NOT_MODELS = ("datasets--", "spaces--")
_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class Location:
    """A folder that looks like a model's."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Discovery:
    """``notes`` say what was passed over and why, a sentence each, without paths."""

    locations: tuple[Location, ...] = ()
    notes: tuple[str, ...] = field(default=())


def discover(directories: Sequence[Path]) -> Discovery:
    """Walk the directories; of two models with one id, the one that comes first wins.

    Blocks while it lists folders; opens nothing but ``refs/main`` of a Hugging Face cache.
    """
    found: dict[str, Location] = {}
    notes: list[str] = []
    for directory in directories:
        try:
            os.scandir(directory).close()
        except OSError as error:
            notes.append(f"model directory {directory.name}: {error.strerror or 'unreadable'}")
            continue
        for location in _walk(directory):
            if not is_model_name(location.id):
                notes.append(
                    f"{location.id[:80]!a} cannot be a model's name; its folder is ignored"
                )
            elif location.id not in found:
                found[location.id] = location
            elif not _same(found[location.id].path, location.path):
                notes.append(f"{location.id} was found twice; the first one is used")
    return Discovery(tuple(found.values()), tuple(notes))


def _walk(directory: Path) -> Iterator[Location]:
    for entry in _folders(directory):
        location = _location(entry, entry.name.replace("--", "/", 1))
        if location is not None:
            yield location
        elif not entry.name.startswith((_CACHE_PREFIX, *_NOT_MODELS)) and not _loops(entry):
            for inner in _folders(Path(entry.path)):
                if (location := _location(inner, f"{entry.name}/{inner.name}")) is not None:
                    yield location


def _loops(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it lies in: its models are found there already."""
    if not entry.is_symlink():
        return False
    target = os.path.join(os.path.realpath(entry.path), "")
    return os.path.join(os.path.realpath(os.path.dirname(entry.path)), "").startswith(target)


def _location(entry: os.DirEntry[str], plain_id: str) -> Location | None:
    if entry.name.startswith(_CACHE_PREFIX):
        snapshot = _snapshot(Path(entry.path))
        repo = entry.name.removeprefix(_CACHE_PREFIX).replace("--", "/", 1)
        return Location(repo, snapshot) if snapshot is not None else None
    if entry.name.startswith(_NOT_MODELS) or not _holds_model(entry.path):
        return None
    return Location(plain_id, Path(entry.path))


def _folders(directory: Path) -> list[os.DirEntry[str]]:
    """The folders in a folder, and links to folders, by name; none if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            folders = [e for e in entries if not e.name.startswith(".") and _is_folder(e)]
    except OSError:
        return []
    return sorted(folders, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where we may not look
        return False


def _holds_model(path: str) -> bool:
    try:
        names = os.listdir(path)
    except OSError:
        return False
    return any(name == "config.json" or name.endswith(_WEIGHTS) for name in names)


def _snapshot(repo: Path) -> Path | None:
    """The revision that refs/main names, else the newest; None if there is none."""
    revisions = {entry.name: Path(entry.path) for entry in _folders(repo / "snapshots")}
    try:
        with open(repo / "refs" / "main", encoding="ascii") as file:
            main = file.read(100).strip()
    except (OSError, ValueError):
        main = ""
    if main in revisions:
        return revisions[main]
    return max(revisions.values(), key=_modified, default=None)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
