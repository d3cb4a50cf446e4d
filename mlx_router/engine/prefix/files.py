"""A private folder of files with a budget in bytes, which processes may share."""

from __future__ import annotations

import io
import logging
import os
import secrets
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_router.engine.prefix.blocks import VERSION, Entry, parse

log = logging.getLogger(__name__)

_TEMPORARY = "writing-"
_CHUNK = 2**20  # bytes
_STALE = 600.0  # seconds after which a temporary file belongs to nobody
_LOOK_AGAIN = 10.0  # seconds after which other processes may have written much
_FULL = 0.9  # of the budget is left after files were removed, so that this is not done each time


class Folder:
    """Files of computed prompts, ``max_bytes`` together; those used last stay.

    For one thread. Other processes may add and remove files at any time; what they added since the
    folder was last listed (10 s while files are written) may exceed the budget for so long.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._bytes = 0  # as far as is known
        self._listed = float("-inf")  # when that was

    def open(self) -> None:
        """Make the folder, for this user alone. Raises OSError if that cannot be had."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.stat()
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{self.path} belongs to another user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            strange = next((name for name in os.listdir(self.path) if not _ours(name)), None)
            if (
                strange is not None
            ):  # somebody else's folder: its permissions are not ours to change
                raise PermissionError(
                    f"{self.path} is open to other users and holds other files ({strange}); "
                    "give prefix_cache.directory a folder of its own"
                )
            self.path.chmod(0o700)

    def entries(self) -> list[Entry]:
        """All files of this version. Removes what nobody can use: files of another version, open
        to other users, or left behind in the middle of a write."""
        return [entry for entry, _, _ in self._list()]

    def room_for(self, size: int) -> list[Entry] | None:
        """Remove the files that were used longest ago until ``size`` bytes more fit; the files
        there are then, if that had to be looked up."""
        due = time.monotonic() - self._listed > _LOOK_AGAIN
        if not due and self._bytes + size <= self.max_bytes:
            return None
        files = sorted(self._list(), key=lambda file: file[2])
        if self._bytes + size > self.max_bytes:
            room = int(self.max_bytes * _FULL) - size
            removed = 0
            while removed < len(files) and self._bytes > room:
                self.remove(files[removed][0])
                self._bytes -= files[removed][1]
                removed += 1
            files = files[removed:]
        return [entry for entry, _, _ in files]

    def write(self, entry: Entry, save: Callable[[io.FileIO], None], used: int) -> Entry:
        """A new file, last used at ``used`` (ns), that ``save`` fills; ``entry`` with the checksum
        of that. It appears as a whole or not at all. Raises OSError."""
        temporary = self.path / f"{_TEMPORARY}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with _Checked(os.open(temporary, flags, 0o600), "wb") as file:
                save(file)
                size = file.tell()
            written = replace(entry, check=file.check)
            os.utime(temporary, ns=(used, used))
            os.replace(temporary, self.path / written.file)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        self._bytes += size
        return written

    def checked(self, entry: Entry) -> Path | None:
        """The file, whose content is what was written; None: it cannot be had, or is something
        else, and then it is removed. Safe on any thread."""
        path, check = self.path / entry.file, 0
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with io.FileIO(os.open(path, flags)) as file:
                private, buffer = _private(os.fstat(file.fileno())), memoryview(bytearray(_CHUNK))
                while private and (count := file.readinto(buffer)):
                    check = zlib.crc32(buffer[:count], check)
        except OSError:
            return None
        if private and check == entry.check:
            return path
        log.warning("a computed prompt on disk is damaged and removed: %s", entry.file)
        self.remove(entry)
        return None

    def touch(self, entry: Entry, used: int) -> bool:
        """Note that a file was used at ``used`` (ns); False: it is gone."""
        try:
            os.utime(self.path / entry.file, ns=(used, used), follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:  # of a read-only folder it can be read all the same
            return True
        return True

    def remove(self, entry: Entry) -> None:
        with suppress(OSError):
            (self.path / entry.file).unlink()

    def _list(self) -> list[tuple[Entry, int, int]]:
        """Entry, size in bytes and time of its last use (ns) of each file."""
        files = list(self._scan())
        self._bytes = sum(size for _, size, _ in files)
        self._listed = time.monotonic()
        return files

    def _scan(self) -> Iterator[tuple[Entry, int, int]]:
        with os.scandir(self.path) as found:
            for file in found:
                if not _ours(file.name):
                    continue
                try:
                    status = file.stat(follow_symlinks=False)
                except OSError:
                    continue
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                entry = parse(file.name)
                if entry is not None and entry.version == VERSION and _private(status):
                    yield entry, status.st_size, status.st_mtime_ns
                elif entry is not None or time.time() - status.st_mtime > _STALE:
                    with suppress(OSError):
                        os.unlink(file.path)


class _Checked(io.FileIO):
    """Knows the checksum of what is written to it, which is all of it or OSError."""

    check = 0

    def write(self, data: Any) -> int:
        self.check = zlib.crc32(data, self.check)
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def _ours(name: str) -> bool:
    return name.startswith(_TEMPORARY) or parse(name) is not None


def _private(status: os.stat_result) -> bool:
    """Whether only this user could have written and read it."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )
