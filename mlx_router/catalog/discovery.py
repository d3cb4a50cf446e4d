"""Where the models are: walking model directories, by names alone.

Known layouts, in one directory mixed as they come::

    model/                                    id "model"
    org/model/                                id "org/model"
    org--model/                               id "org/model"
    models--org--model/snapshots/REVISION/    id "org/model" (a Hugging Face cache)
    hub/models--org--model/snapshots/...      the same, one level down

Hidden folders are skipped. Any of these folders may be a symlink, to anywhere: whoever may write
into a model directory put it there. Links to single files are another matter, since a download may
bring them along: see :meth:`mlx_router.catalog.folder.ModelFolder.link_outside`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mlx_router.catalog.folder import (
    MAX_FILES,
    PASSING,
    is_absent,
    is_partial,
    partial_downloads,
    read_regular,
)
from mlx_router.catalog.names import is_model_name
from mlx_router.catalog.watch import Stamp, stamp

MAX_FOLDERS = 10_000  # looked into in one model directory
_MAX_ENTRIES = 200_000  # read in one folder
_MAX_REVISIONS = 8  # of one repository, the newest

_CACHE_PREFIX = "models--"
_NOT_MODELS = ("datasets--", "spaces--")
_WEIGHTS = (".safetensors", ".gguf")

_Entries = list[os.DirEntry[str]]


@dataclass(frozen=True, slots=True)
class Location:
    """A folder that looks like a model's. ``others`` are those to serve if it cannot be used: the
    other revisions of a Hugging Face cache, the newest first."""

    id: str
    path: Path
    others: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Discovery:
    """``notes`` say what was passed over and why, a sentence each, without paths. ``watched`` are
    the folders and files on which the result depends, as they were when they were looked at.
    ``unread`` are those of which nothing could be told for the moment."""

    locations: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()
    watched: Mapping[str, Stamp] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


def discover(directories: Sequence[Path]) -> Discovery:
    """Walk the directories; of two models with one id, the one that comes first wins.

    Blocks while it lists folders; opens nothing but ``refs/main`` of a Hugging Face cache.
    """
    found: dict[str, Location] = {}
    notes: list[str] = []
    watched: dict[str, Stamp] = {}
    unread = set[str]()
    for directory in directories:
        for location in _Walk(directory, notes, watched, unread).locations():
            if not is_model_name(location.id):
                notes.append(
                    f"{location.id[:80]!a} cannot be a model's name; its folder is ignored"
                )
            elif location.id not in found:
                found[location.id] = location
            elif not _same(found[location.id].path, location.path):
                notes.append(f"{location.id} was found twice; the first one is used")
    return Discovery(tuple(found.values()), tuple(dict.fromkeys(notes)), watched, frozenset(unread))


class _Walk:
    """One look at one model directory; adds to ``notes``, ``watched`` and ``unread``."""

    def __init__(
        self, directory: Path, notes: list[str], watched: dict[str, Stamp], unread: set[str]
    ) -> None:
        self._directory = directory
        self._notes = notes
        self._watched = watched
        self._unread = unread
        self._folders_left = MAX_FOLDERS

    def locations(self) -> Iterator[Location]:
        self._watched[str(self._directory)] = stamp(str(self._directory))
        try:
            os.scandir(self._directory).close()
        except OSError as error:
            name, reason = _shown(self._directory.name), error.strerror or "unreadable"
            self._notes.append(f"model directory {name}: {reason}")
            if not is_absent(error):
                self._unread.add(str(self._directory))
            return
        for entry in self._folders(self._list(str(self._directory))):
            if self._folders_left < 0:
                break
            if entry.name.startswith(_CACHE_PREFIX):
                yield from self._cached(entry)
            elif not entry.name.startswith(_NOT_MODELS):
                yield from self._plain(entry)
        if self._folders_left < 0:
            self._notes.append(
                f"model directory {_shown(self._directory.name)} has more than {MAX_FOLDERS:,} "
                "folders; the rest is ignored: give models a directory of their own"
            )

    def _plain(self, entry: os.DirEntry[str]) -> Iterator[Location]:
        """A model's folder, or an organisation's, or another cache one level down."""
        entries = self._list(entry.path)
        if _holds_model(entry.path, entries):
            yield from self._model(entry.name.replace("--", "/", 1), entry, entries)
        elif not _loops(entry):
            for inner in self._folders(entries):
                if inner.name.startswith(_CACHE_PREFIX):
                    yield from self._cached(inner)
                elif not inner.name.startswith(_NOT_MODELS):
                    files = self._list(inner.path)
                    if _holds_model(inner.path, files):
                        yield from self._model(f"{entry.name}/{inner.name}", inner, files)

    def _model(
        self, model_id: str, entry: os.DirEntry[str], entries: _Entries
    ) -> Iterator[Location]:
        if len(entries) > MAX_FILES:
            self._notes.append(
                f"{_shown(model_id)} has more than {MAX_FILES:,} files; it is ignored"
            )
        else:
            yield Location(model_id, Path(entry.path))

    def _cached(self, entry: os.DirEntry[str]) -> Iterator[Location]:
        """A repository of a Hugging Face cache: the revision that refs/main names comes first."""
        model_id = entry.name.removeprefix(_CACHE_PREFIX).replace("--", "/", 1)
        folders = self._folders(self._list(os.path.join(entry.path, "snapshots")))
        main = self._read_main(entry.path)
        folders.sort(key=lambda folder: (folder.name == main, _modified(folder)), reverse=True)
        del folders[_MAX_REVISIONS:]
        for folder in folders:
            self._watched[folder.path] = stamp(folder.path)
        if folders:
            first, *others = (Path(folder.path) for folder in folders)
            if main and first.name != main:
                self._notes.append(
                    f"{_shown(model_id)}: of the revision that refs/main names nothing is there; "
                    f"{first.name[:8]!a} is used"
                )
            yield Location(model_id, first, tuple(others))
        elif partial_downloads(os.path.join(entry.path, "blobs")):
            self._notes.append(
                f"{_shown(model_id)}: the download is incomplete: no file is there yet"
            )

    def _read_main(self, repository: str) -> str:
        path = os.path.join(repository, "refs", "main")
        self._watched[path] = stamp(path)
        try:
            return read_regular(path, 100).decode("ascii").strip()
        except ValueError:
            return ""
        except OSError as error:
            if error.errno in PASSING:  # without it another revision would be served
                self._cannot_read(repository, error)
            return ""

    def _list(self, path: str) -> _Entries:
        """What is in a folder; nothing if it cannot be read or too many were looked at."""
        self._folders_left -= 1
        if self._folders_left < 0:
            return []
        self._watched[path] = stamp(path)
        try:
            with os.scandir(path) as entries:
                return list(islice(entries, _MAX_ENTRIES))
        except PermissionError:
            self._notes.append(f"{_shown(os.path.basename(path))}: may not be read; it is ignored")
        except OSError as error:
            if not is_absent(error):  # else it vanished meanwhile, or is no folder any more
                self._cannot_read(path, error)
        return []

    def _cannot_read(self, path: str, error: OSError) -> None:
        self._unread.add(path)
        name, reason = _shown(os.path.basename(path)), error.strerror or "unreadable"
        self._notes.append(f"{name}: {reason}; what was known of it stays")

    def _folders(self, entries: _Entries) -> _Entries:
        """The folders among them, and links to folders, by name."""
        folders = [e for e in entries if not e.name.startswith(".") and self._is_folder(e)]
        return sorted(folders, key=lambda entry: entry.name)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:  # a link to where we may not look
            if not is_absent(error):
                self._cannot_read(entry.path, error)
            return False


def _loops(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it lies in: its models are found there already."""
    if not entry.is_symlink():
        return False
    target = os.path.join(os.path.realpath(entry.path), "")
    return os.path.join(os.path.realpath(os.path.dirname(entry.path)), "").startswith(target)


def _holds_model(path: str, entries: _Entries) -> bool:
    """Whether a folder has something of a model in it, a download that has just begun included."""
    for entry in entries:
        name = entry.name
        if name == "config.json" or name.endswith(_WEIGHTS):
            return True
        if is_partial(name) and any(weights in name for weights in _WEIGHTS):
            return True
    if all(entry.name != ".cache" for entry in entries):
        return False
    return partial_downloads(os.path.join(path, ".cache", "huggingface", "download")) > 0


def _modified(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _shown(name: str) -> str:
    """A name for a message; it may be anything that a file system takes."""
    return name[:80] if name.isprintable() else ascii(name[:80])
