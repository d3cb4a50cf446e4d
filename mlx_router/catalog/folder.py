"""A model's folder: what files it has, and reading them within limits.

Nothing here trusts what it reads: only regular files are opened, never more than a limit is read,
and broken JSON of any sort is one :class:`Problem`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 10_000_000


class Problem(Exception):
    """Why a model cannot be used: one sentence for people, naming the file, never a path."""


class Missing(Problem):
    """Something is not there, which may only mean that a download has not finished."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One look at a folder. ``files`` are the regular files at its top, links followed, without
    hidden ones; ``dangling`` are links to nothing."""

    path: Path
    files: Mapping[str, os.stat_result]
    links: frozenset[str]
    dangling: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def scan(cls, path: Path) -> ModelFolder:
        """Raises OSError if the folder cannot be listed."""
        files: dict[str, os.stat_result] = {}
        links, dangling, folders = set[str](), set[str](), set[str]()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # among them the ._ files of macOS on other disks
                    continue
                if entry.is_symlink():
                    links.add(entry.name)
                try:
                    status = entry.stat()
                except OSError:
                    dangling.add(entry.name)
                    continue
                if stat.S_ISREG(status.st_mode):
                    files[entry.name] = status
                elif stat.S_ISDIR(status.st_mode):
                    folders.add(entry.name)
        return cls(path, files, frozenset(links), frozenset(dangling), frozenset(folders))

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for two looks between which no file was added, removed, replaced or rewritten."""
        files = tuple(
            sorted((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in self.files.items())
        )
        return (files, self.dangling, self.folders, self.partial_downloads())

    @property
    def in_cache(self) -> bool:
        """Whether this is a snapshot in a Hugging Face cache, made of links to blobs."""
        return self.path.parent.name == "snapshots"

    @property
    def size_bytes(self) -> int:
        return sum(status.st_size for status in self.files.values())

    def named(self, prefix: str = "", suffix: str = "") -> list[str]:
        """The files whose names begin and end so, sorted."""
        return sorted(n for n in self.files if n.startswith(prefix) and n.endswith(suffix))

    def read(self, name: str, limit: int) -> bytes:
        """The content of one of :attr:`files`; raises Problem if it is larger than the limit."""
        try:
            with open(self.path / name, "rb") as file:
                content = file.read(min(limit, self.files[name].st_size) + 1)
        except OSError as error:
            raise Problem(f"{name} cannot be read ({error.strerror or 'error'})") from error
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
        """How many unfinished files the Hugging Face client has left for this model."""
        if self.in_cache:
            place = self.path.parent.parent / "blobs"
        else:
            place = self.path / ".cache" / "huggingface" / "download"
        try:
            return sum(name.endswith(".incomplete") for name in os.listdir(place))
        except OSError:
            return 0

    def link_outside(self, roots: Iterable[Path]) -> str | None:
        """The first link that leaves the folder, its cache's blobs and ``roots``; None if none.

        A link to a secret under the name of a weights file would otherwise be read by whoever can
        write into a model folder.
        """
        if not self.links:
            return None
        allowed = [self.path, *roots]
        if self.in_cache:
            allowed.append(self.path.parent.parent / "blobs")
        resolved = [os.path.realpath(root) + os.sep for root in allowed]
        for name in sorted(self.links - self.dangling):
            target = os.path.realpath(self.path / name) + os.sep
            if not target.startswith(tuple(resolved)):
                return name
        return None
