"""Reads the files of models that wait to be loaded into the system's page cache."""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlx_router.domain import ModelCard

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_ADVISED_BYTES = 4 * _CHUNK_BYTES  # so that the disk has more to do than the chunk that is read
_MARGIN_BYTES = 1 << 30
_LOWEST_PRIORITY = 19
_F_RDADVISE = 44  # macOS; Python has no name for it


class ReadAhead:
    """One thread of low priority reads, one model after the other; it exists only while there is
    something to read. ``available``: bytes of memory that are free, or could be. Less a margin,
    that is the most that is read in all: more would push out what is of more use.
    """

    def __init__(self, available: Callable[[], int]) -> None:
        self._available = available
        self._lock = threading.Lock()
        self._queued: dict[str, ModelCard] = {}
        self._read: dict[str, int] = {}  # of those that wait, what has been read: bytes
        self._room = 0
        self._thread: threading.Thread | None = None

    def follow(self, queued: Sequence[ModelCard]) -> None:
        """These models wait to be loaded, the next one first. Of others nothing more is read, but
        the chunk under way. Returns at once."""
        if [card.id for card in queued] == list(self._queued):
            return
        room = self._available() - _MARGIN_BYTES if queued else 0
        with self._lock:
            self._queued = {card.id: card for card in queued}
            self._read = {key: size for key, size in self._read.items() if key in self._queued}
            self._room = room
            if self._thread is None and self._queued.keys() - self._read.keys():
                # A daemon: a disk that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if sys.platform == "linux":  # where it goes for a thread, not for the whole process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        buffer = bytearray(_CHUNK_BYTES)
        while (following := self._next()) is not None:
            card, room = following
            total = 0
            try:
                for size in _chunks(card.path, buffer, room):
                    total += size
                    if card.id not in self._queued:
                        break
            except OSError as error:  # the load will find it, and say so
                log.debug("%s cannot be read ahead: %s", card.id, error)
            log.debug("read %d MB of %s ahead", total >> 20, card.id)
            with self._lock:
                if card.id in self._queued:
                    self._read[card.id] = total

    def _next(self) -> tuple[ModelCard, int] | None:
        """The model to read now, and how much of it at most; None ends the thread, and then a
        change of the queue starts another."""
        with self._lock:
            for card in self._queued.values():
                if card.id not in self._read:
                    return card, self._room - sum(self._read.values())
            self._thread = None
            return None


def _chunks(folder: Path, buffer: bytearray, room: int) -> Iterator[int]:
    """Read the weights in chunks, at most ``room`` bytes; yields the size of each."""
    # What mlx-lm loads is called like this, and shards have their layers in ascending order.
    for path in sorted(folder.glob("model*.safetensors")):
        if room < len(buffer):
            return
        read = 0
        with path.open("rb", buffering=0) as file:
            while room >= len(buffer):
                _advise(file.fileno(), read + len(buffer))
                size = file.readinto(buffer)
                if not size:
                    break
                read += size
                room -= size
                yield size


def _advise(descriptor: int, offset: int) -> None:
    """Have the system fetch what comes next. A hint, so it may be refused."""
    with suppress(OSError):
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, _ADVISED_BYTES, os.POSIX_FADV_WILLNEED)
        elif sys.platform == "darwin":
            import fcntl

            # struct radvisory: off_t ra_offset, int ra_count
            fcntl.fcntl(descriptor, _F_RDADVISE, struct.pack("=qixxxx", offset, _ADVISED_BYTES))
