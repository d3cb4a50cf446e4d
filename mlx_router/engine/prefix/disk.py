"""Computed prompts on disk: they outlive an unload and a restart."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Any

import mlx.core as mx

from mlx_router.engine import device
from mlx_router.engine.prefix import packing
from mlx_router.engine.prefix.blocks import (
    BLOCK,
    Entry,
    Index,
    Kind,
    chain,
    digest_of,
    root,
)
from mlx_router.engine.prefix.files import Folder
from mlx_router.engine.prefix.layers import Key

log = logging.getLogger(__name__)

_QUEUED = 2**30  # bytes of arrays that may wait to be written; then the oldest write is dropped
_PAUSE = 60.0  # seconds without writes after one that failed
_LISTING = 1.0  # seconds that the first look-up waits for the listing of the folder
_CHECKING = 2  # threads that read files ahead, to check them
_STEP = 1_000_000  # ns: a block was used by so much later than the one after it
_PATIENCE = 10.0  # seconds that close waits for a file that is being read or written


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    start: str
    key: Key
    snapshot: packing.Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    start: str
    key: Key
    result: Future[list[Any] | None]


class PrefixDisk:
    """The computed prompts of one model in ``folder``, which models and processes may share;
    ``max_bytes`` are for all of them. 0: nothing is kept, nor is the folder touched.

    Caches of another ``fingerprint`` are not seen: it stands for all that decides what a cache
    holds. The methods are for the model's thread; files are read and written on a thread of its
    own. What goes wrong with files is logged and costs no more than their use.
    """

    def __init__(self, folder: Path, max_bytes: int, fingerprint: str) -> None:
        self._folder = Folder(folder, max_bytes)
        self._fingerprint = fingerprint
        self._index = Index()
        self._listed = Event()
        self._listed_by = time.monotonic() + _LISTING
        self._wake = Condition()  # guards the two queues and _deadline; never held while computing
        self._reads: deque[_Read] = deque()
        self._writes: deque[_Write] = deque()
        self._deadline: float | None = None  # of closing
        self._paused_until = 0.0
        self._failing = False
        self._thread: Thread | None = None
        if max_bytes > 0:
            self._thread = Thread(target=self._run, name="prefix-disk", daemon=True)
            self._thread.start()

    @property
    def enabled(self) -> bool:
        return self._thread is not None

    def write(
        self, scope: str, key: Key, cache: list[Any], marks: Mapping[int, Mapping[int, Any]]
    ) -> None:
        """Keep ``cache``, which holds all of ``key``; its arrays are evaluated. ``marks``: numbers
        of tokens, and for each the layers that cannot be cut, by their index, as they were then;
        the end of ``key`` counts as one. Returns at once: what is done to the cache afterwards does
        not matter. A cache of a kind that cannot be kept is not."""
        if not self.enabled or time.monotonic() < self._paused_until:
            return
        try:
            snapshot = packing.take(cache, len(key), marks)
        except packing.CannotPack as error:
            log.debug("a computed prompt is not kept on disk: %s", error)
            return
        with self._wake:
            if self._deadline is not None:
                return
            self._writes.append(_Write(root(self._fingerprint, scope), key, snapshot))
            queued = sum(write.snapshot.nbytes for write in self._writes)
            while queued > _QUEUED and len(self._writes) > 1:
                queued -= self._writes.popleft().snapshot.nbytes
            self._wake.notify()

    def longest(self, scope: str, key: Key, limit: int) -> int:
        """How many tokens of ``key`` could be read back, at most ``limit``; 0: none. Looks into
        memory only, but the first time it waits for the listing of the folder (1 s at most)."""
        if not self.enabled:
            return 0
        self._listed.wait(max(self._listed_by - time.monotonic(), 0.0))
        return self._index.path(root(self._fingerprint, scope), key, limit)[0]

    def read(self, scope: str, key: Key, tokens: int) -> Future[list[Any] | None]:
        """Layers that hold the first ``tokens`` of ``key`` (see :meth:`longest`), ready to go on
        from; None: they cannot be had. Comes before writes. May be cancelled."""
        result: Future[list[Any] | None] = Future()
        with self._wake:
            if self.enabled and self._deadline is None:
                start = root(self._fingerprint, scope)
                self._reads.append(_Read(start, key[:tokens], result))
                self._wake.notify()
                return result
        result.set_result(None)
        return result

    def drop_writes(self) -> None:
        """Memory is short: what waits to be written is given up."""
        with self._wake:
            self._writes.clear()

    def close(self, seconds: float) -> None:
        """Write what waits, for so many seconds at most, and end the thread. Blocks."""
        if self._thread is None:
            return
        with self._wake:
            self._deadline = time.monotonic() + seconds
            self._wake.notify()
        self._thread.join(seconds + _PATIENCE)
        if self._thread.is_alive():
            log.warning("computed prompts: %s does not respond", self._folder.path)

    # --- on the disk's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._folder.open()
            self._index.replace(self._folder.entries())
        except OSError as error:
            self._pause(error)
        except Exception:
            log.exception("computed prompts on disk cannot be used")
            self._paused_until = float("inf")
        finally:
            self._listed.set()
        try:
            device.begin_thread()
            # Not the GPU: there it would wait for what the model computes, and hold it up.
            with mx.stream(mx.cpu):
                self._work()
        finally:
            with self._wake:
                self._deadline = 0.0  # nothing is accepted any more
                self._writes.clear()
            for left in self._reads:
                if left.result.set_running_or_notify_cancel():
                    left.result.set_result(None)
            device.end_thread()

    def _work(self) -> None:
        writing: Iterator[None] | None = None  # goes on after each file
        while True:
            with self._wake:
                while not (self._reads or self._writes or writing or self._deadline is not None):
                    self._wake.wait()
                if self._deadline is not None:
                    late = time.monotonic() >= self._deadline
                    if late or not (self._reads or self._writes or writing):
                        break
                read = self._reads.popleft() if self._reads else None
                if read is None and writing is None:
                    writing = self._store(self._writes.popleft())
            if read is not None:
                self._answer(read)
            elif writing is not None and not self._next(writing):
                writing = None
            read = None  # else what was read would stay in memory until the next one comes

    def _next(self, writing: Iterator[None]) -> bool:
        """Whether the write goes on."""
        try:
            next(writing)
        except StopIteration:
            return False
        except OSError as error:
            self._pause(error)
            return False
        except Exception:
            log.exception("a computed prompt could not be written to disk")
            return False
        return True

    def _pause(self, error: OSError) -> None:
        self._paused_until = time.monotonic() + _PAUSE
        with self._wake:
            self._writes.clear()
        if not self._failing:
            self._failing = True
            log.warning(
                "computed prompts are not written to %s: %s; tried again every minute",
                self._folder.path,
                error.strerror or error,
            )

    def _store(self, write: _Write) -> Iterator[None]:
        """Write the files that are missing, in the order in which they are read; each step writes
        one at most. No more than half of the budget: else a long prompt would drive out itself."""
        snapshot, key = write.snapshot, write.key
        self._folder.open()
        digests = chain(write.start, key)
        rows = bool(snapshot.rows)
        stateful = bool(snapshot.states)
        now, left = time.time_ns(), self._folder.max_bytes // 2
        counts = sorted({*snapshot.states, *(range(BLOCK, len(key) + 1, BLOCK) if rows else ())})
        for count in counts:
            number, rest = divmod(count, BLOCK)
            used = now - number * _STEP
            wanted: list[tuple[str, int, str, Kind]] = []
            if rows and rest == 0:
                kind: Kind = "part" if stateful else "block"
                wanted.append((digests[number - 1], BLOCK, digests[number], kind))
            if count in snapshot.states:
                parent = digests[number]
                digest = digest_of(parent, key[count - rest : count])
                wanted.append((parent, rest, digest, "state" if rows else "whole"))
            for parent, tokens, digest, kind in wanted:
                there = self._index.get(parent, digest)
                if there is not None and self._folder.touch(there, used):
                    continue
                state = None if tokens == BLOCK else snapshot.states[count]
                first = count - tokens
                size = snapshot.size(first, count, state)
                left -= size
                if left < 0:
                    return
                entries = self._folder.room_for(size)
                if entries is not None:
                    self._index.replace(entries)
                save = partial(snapshot.pack, first=first, end=count, digest=digest, state=state)
                entry = Entry(parent, tokens, digest, kind)
                self._index.add(self._folder.write(entry, save, used))
                self._failing = False
                yield

    def _answer(self, read: _Read) -> None:
        if not read.result.set_running_or_notify_cancel():
            return
        layers = None
        try:
            layers = self._load(read.start, read.key)
        except Exception:  # such as memory that is short
            log.exception("a computed prompt could not be read from disk")
        read.result.set_result(layers)

    def _load(self, start: str, key: Key) -> list[Any] | None:
        tokens, entries = self._index.path(start, key, len(key))
        if tokens != len(key) or not entries:
            return None
        parts = []
        with ThreadPoolExecutor(_CHECKING) as pool:
            files = pool.map(self._folder.checked, entries)  # ahead of what is done here
            for entry, file in zip(entries, files, strict=True):
                try:
                    if file is not None:
                        parts.append(packing.unpack(file, entry.digest))
                        continue
                    self._index.remove(entry)  # evicted by another process, say
                except ValueError as error:
                    self._drop(entry, error)
                pool.shutdown(wait=False, cancel_futures=True)
                return None
        try:
            layers = packing.join(parts, [entry.tokens for entry in entries])
        except ValueError as error:
            for entry in entries:
                self._drop(entry, error)
            return None
        now = time.time_ns()
        for number, entry in enumerate(entries):
            self._folder.touch(entry, now - number * _STEP)
        return layers

    def _drop(self, entry: Entry, error: ValueError) -> None:
        log.warning("a computed prompt on disk is of no use: %s: %s", entry.file, error)
        self._index.remove(entry)
        self._folder.remove(entry)
