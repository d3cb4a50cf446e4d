"""A model's folder: what files it has, and reading them within limits.

Nothing here trusts what it reads: only regular files are opened, never more than a limit is read,
and broken JSON of any sort is one :class:`Problem`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 10_000_000
MAX_FILES = 10_000  # in one folder: the largest models have some hundred
# What clients leave of a file that they have not finished: Hugging Face, LM Studio and Firefox,
# curl and others, Safari, Chrome, aria2 (which makes the file itself at its full size at once).
_CONTROL = ".aria2"
_MAX_FOLDERS = 32  # in a model's folder that are looked into: sentence-transformers has a few
# What a path gives that leads nowhere, or where we may not go. Anything else (too many open files,
# a volume that does not answer) tells nothing of what is there.
_ABSENT = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP),
        errno.ENAMETOOLONG,
    }
)
# What may pass though the file is there. A disk with a bad sector (EIO) is not among them.
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})
_PARTIAL = (".incomplete", ".part", ".partial", ".download", ".crdownload", _CONTROL)


class Problem(Exception):
    """Why a model cannot be used: one sentence for people, naming the file, never a path."""


class Missing(Problem):
    """Something is not there, which may only mean that a download has not finished."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One look at a folder. ``files`` are the regular files at its top, links followed, without
    hidden and unfinished ones; ``dangling`` are links to nothing; ``partial`` is what unfinished
    downloads have left. ``growing``: the files were seen to change. ``inner`` are the first folders
    in it, to one level, of which only the config and the weights are of interest."""

    path: Path
    files: Mapping[str, os.stat_result]
    links: frozenset[str]
    dangling: frozenset[str]
    folders: frozenset[str]
    partial: frozenset[str] = frozenset()
    growing: bool = False
    inner: Mapping[str, ModelFolder] = field(default_factory=dict)

    @classmethod
    def scan(cls, path: Path, *, deep: bool = True) -> ModelFolder:
        """Looks at :data:`MAX_FILES` entries at most; with ``deep``, also into the first folders.
        Raises OSError if the folder cannot be listed, or what is in it not be told for the
        moment (see :func:`is_absent`)."""
        files: dict[str, os.stat_result] = {}
        links, dangling, folders = set[str](), set[str](), set[str]()
        partial = set[str]()
        with os.scandir(path) as entries:
            for entry in islice(entries, MAX_FILES):
                # Hidden are also the ._ files of macOS on other disks; a name that is no text
                # could not be shown.
                if entry.name.startswith(".") or not entry.name.isprintable():
                    continue
                if is_partial(entry.name):
                    partial.add(entry.name)
                    continue
                if entry.is_symlink():
                    links.add(entry.name)
                try:
                    status = entry.stat()
                except OSError as error:
                    if not is_absent(error):
                        raise
                    dangling.add(entry.name)
                    continue
                if stat.S_ISREG(status.st_mode):
                    files[entry.name] = status
                elif stat.S_ISDIR(status.st_mode):
                    folders.add(entry.name)
        for name in partial:
            if name.endswith(_CONTROL):
                files.pop(name.removesuffix(_CONTROL), None)
        return cls(
            path,
            files,
            frozenset(links),
            frozenset(dangling),
            frozenset(folders),
            frozenset(partial),
            inner=_inner(path, sorted(folders)) if deep else {},
        )

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for two looks between which no file was added, removed, replaced or rewritten."""
        files = tuple(
            sorted((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in self.files.items())
        )
        inner = tuple((name, folder.fingerprint) for name, folder in self.inner.items())
        return (files, self.dangling, self.folders, self.partial, self.partial_downloads(), inner)

    def with_inner(self) -> ModelFolder:
        """This folder with the config and weights of those in it among its files, as
        ``2_Dense/model.safetensors``: mlx-vlm loads them with an embedding model. Raises Problem if
        there are too many folders."""
        if len(self.folders) > _MAX_FOLDERS:
            raise Problem(f"the model has more than {_MAX_FOLDERS} folders in its folder")
        files = dict(self.files)
        links, dangling = set(self.links), set(self.dangling)
        for place, folder in self.inner.items():
            for name, status in folder.files.items():
                if _is_part(name):
                    files[f"{place}/{name}"] = status
            links.update(f"{place}/{name}" for name in folder.links if _is_part(name))
            dangling.update(f"{place}/{name}" for name in folder.dangling if _is_part(name))
        return replace(self, files=files, links=frozenset(links), dangling=frozenset(dangling))

    @property
    def model_fingerprint(self) -> str:
        """As :attr:`fingerprint`, of the config and the weights alone, and short; a copy that
        keeps times has the same."""
        files = sorted(
            (name, status.st_size, status.st_mtime_ns)
            for name, status in self.files.items()
            if _is_part(name)
        )
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16] if files else ""

    @property
    def in_cache(self) -> bool:
        """Whether this is a snapshot in a Hugging Face cache, made of links to blobs, or a link to
        one."""
        return self._blobs is not None

    @property
    def _blobs(self) -> str | None:
        path = os.path.realpath(self.path) if os.path.islink(self.path) else str(self.path)
        snapshots = os.path.dirname(path)
        if os.path.basename(snapshots) != "snapshots":
            return None
        return os.path.join(os.path.dirname(snapshots), "blobs")

    @property
    def size_bytes(self) -> int:
        return sum(status.st_size for status in self.files.values())

    def named(self, prefix: str = "", suffix: str = "") -> list[str]:
        """The files whose names begin and end so, sorted."""
        return sorted(n for n in self.files if n.startswith(prefix) and n.endswith(suffix))

    def read(self, name: str, limit: int) -> bytes:
        """The content of one of :attr:`files`; raises Problem if it is larger than the limit or
        cannot be read, and OSError if that may pass."""
        try:
            content = read_regular(self.path / name, min(limit, self.files[name].st_size) + 1)
        except OSError as error:
            raise unreadable(name, error) from error
        if len(content) > limit:
            raise Problem(f"{name} is larger than {limit // 1_000_000} MB")
        return content

    def read_json(self, name: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
        """The JSON object in a file, None if there is no such file; raises Problem."""
        if name not in self.files:
            return None
        content = self.read(name, limit)
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Problem(f"{name} is not valid JSON") from error
        if not isinstance(value, dict):
            raise Problem(f"{name} is not a JSON object")
        return value

    def partial_downloads(self) -> int:
        """How many unfinished files downloads have left for this model, here and in the places
        that the Hugging Face client has for them."""
        place = self._blobs or str(self.path / ".cache" / "huggingface" / "download")
        return len(self.partial) + partial_downloads(place)

    def link_outside(self, roots: Iterable[Path]) -> str | None:
        """The first link that leaves the folder, its cache's blobs and ``roots``; None if none.

        A link to a secret under the name of a weights file would otherwise be read by whoever can
        write into a model folder.
        """
        if not self.links:
            return None
        allowed = [self.path, *roots]
        if self._blobs is not None:
            allowed.append(Path(self._blobs))
        resolved = [os.path.realpath(root) + os.sep for root in allowed]
        for name in sorted(self.links - self.dangling):
            target = os.path.realpath(self.path / name) + os.sep
            if not target.startswith(tuple(resolved)):
                return name
        return None


def is_partial(name: str) -> bool:
    """Whether a name is that of a file whose download is not finished."""
    return name.endswith(_PARTIAL)


def partial_downloads(place: str) -> int:
    """How many unfinished files are in a folder; 0 if it cannot be listed."""
    try:
        with os.scandir(place) as entries:
            return sum(is_partial(entry.name) for entry in islice(entries, MAX_FILES))
    except OSError:
        return 0


def read_regular(path: Path | str, limit: int) -> bytes:
    """The first ``limit`` bytes of a regular file. Raises OSError, for a pipe too, and never waits
    for one."""
    with open(path, "rb", opener=regular_only) as file:
        return file.read(limit)


def regular_only(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` that takes regular files: it raises OSError for a pipe
    and other things, and never waits for one."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def is_absent(error: OSError) -> bool:
    """Whether an error says that there is nothing, or nothing for us; after any other one, what was
    known is still the best guess."""
    return error.errno in _ABSENT


def unreadable(name: str, error: OSError) -> Exception:
    """What to raise for a file that cannot be read: a Problem, or the error itself if the file is
    not its cause."""
    if error.errno in PASSING:
        return error
    return Problem(f"{name} cannot be read ({error.strerror or 'error'})")


def _inner(path: Path, names: list[str]) -> dict[str, ModelFolder]:
    folders = {}
    for name in names[:_MAX_FOLDERS]:
        try:
            folders[name] = ModelFolder.scan(path / name, deep=False)
        except OSError as error:
            if not is_absent(error):
                raise
    return folders


def _is_part(name: str) -> bool:
    return name == "config.json" or name.endswith(".safetensors")
