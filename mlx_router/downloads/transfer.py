"""One file from the Hub to the disk: it goes on where it stopped, and is checked in the end."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

from mlx_router.downloads import hub
from mlx_router.downloads.hub import NotAHub, Repository
from mlx_router.downloads.selection import RepoFile

log = logging.getLogger(__name__)

_TRIES = 5  # in a row, without a byte
_FIRST_PAUSE = 1.0  # seconds, then twice as long each time


class Stopped(Exception):
    """The server is shutting down."""


class Transfer:
    """Fetches ``file`` to ``target``. ``done`` says how many of its bytes are here; another thread
    may read it at any time. What is not complete has the suffix ``.incomplete``."""

    def __init__(
        self, source: Repository, file: RepoFile, target: Path, stop: threading.Event
    ) -> None:
        self.file = file
        self._source = source
        self._target = target
        self._partial = target.with_name(target.name + ".incomplete")
        self._stop = stop
        present = _size(target) if target.exists() else _size(self._partial)
        self.done = min(present, file.size)

    def run(self) -> None:
        """Returns when the file is complete and checked. Raises Stopped, NotAHub, OSError, and
        what huggingface_hub and its httpx raise."""
        if _size(self._target) == self.file.size and self._target.exists():
            return
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._read_all()
        if not self._is_right():
            log.warning("%s came damaged and is fetched again", self.file.name)
            self._partial.unlink()
            self._read_all()
            if not self._is_right():
                raise NotAHub(f"{self.file.name} has another content than announced")
        with self._partial.open("rb") as content:
            os.fsync(content.fileno())  # its name says that it was checked, after a power cut too
        os.replace(self._partial, self._target)

    def _read_all(self) -> None:
        tries = 0
        while True:
            before = _size(self._partial)
            try:
                self._read()
            except Exception as error:
                if not (isinstance(error, NotAHub) or hub.is_passing(error)):
                    raise
                tries = 1 if _size(self._partial) > before else tries + 1
                if tries >= _TRIES:
                    raise
                log.info("%s: %s; it goes on", self.file.name, type(error).__name__)
                self._pause(_FIRST_PAUSE * 2 ** (tries - 1))
            else:
                return

    def _read(self) -> None:
        """Raises NotAHub if the file ends early."""
        with self._partial.open("ab") as out:
            if out.tell() > self.file.size:
                out.truncate(0)
            self.done = out.seek(0, os.SEEK_END)
            if self.done == self.file.size:
                return
            with hub.reading(self._source, self.file, self.done) as response:
                if self.done and response.status_code != 206:
                    out.truncate(0)
                    self.done = 0
                self._write(response, out)
        if self.done < self.file.size:
            raise NotAHub(f"{self.file.name} ends early")

    def _write(self, response: Any, out: Any) -> None:
        for chunk in response.iter_raw():
            if self._stop.is_set():
                raise Stopped
            room = self.file.size - self.done
            out.write(chunk[:room])
            self.done += min(len(chunk), room)
            if len(chunk) > room:
                return  # more than announced; the check says whether the beginning is right

    def _is_right(self) -> bool:
        file = self.file
        if _size(self._partial) != file.size:
            return False
        if file.sha256 is not None:
            return self._digest(hashlib.sha256()) == file.sha256
        header = b"blob %d\0" % file.size
        return self._digest(hashlib.sha1(header, usedforsecurity=False)) == file.git_sha1

    def _digest(self, digest: Any) -> str:
        with self._partial.open("rb") as content:
            while chunk := content.read(2**20):
                if self._stop.is_set():
                    raise Stopped
                digest.update(chunk)
        return str(digest.hexdigest())

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
