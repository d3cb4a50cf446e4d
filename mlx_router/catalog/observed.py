"""What models proved to be when they were in memory, kept in a small file between starts.

It corrects what was estimated from files (:mod:`mlx_router.catalog.catalog`) and spares a model a
second trial. It is a convenience: a file that is broken, or cannot be written, is logged once and
costs a measurement, never a request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mlx_router.domain import ModelCard

_log = logging.getLogger(__name__)

FILE_NAME = "models.json"
MAX_MODELS = 512  # remembered; of more, those that were observed longest ago are forgotten
_VERSION = 1
_MAX_FILE_BYTES = 4_000_000
_MAX_NUMBER = 1 << 50
_LEFT_SECONDS = 60.0  # a temporary file of this age is not being written any more


@dataclass(frozen=True, slots=True)
class ObservedMemory:
    """Bytes. ``weights`` of all weights as they were loaded, which may be cast or joined by an
    adapter; ``cache`` of the KV cache of a conversation of the card's ``usual_tokens``, None if the
    model did not tell."""

    weights: int
    cache: int | None = None

    def correct(self, card: ModelCard) -> ModelCard:
        """The card with this in place of what was estimated."""
        cache = card.cache_bytes if self.cache is None else self.cache
        working = card.required_bytes - card.weight_bytes - card.cache_bytes
        return replace(card, cache_bytes=cache, required_bytes=self.weights + cache + working)


@dataclass(frozen=True, slots=True)
class ObservedBatching:
    """Whether the model computed the same in a batch as alone, and if not, what was different.
    Only of use to the same ``versions`` of the libraries, a text that is compared as a whole."""

    batches: bool
    reason: str | None
    versions: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of a model; None: never observed."""

    memory: ObservedMemory | None = None
    batching: ObservedBatching | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    fingerprint: str
    observed: Observed


class ObservedModels:
    """The file's content. Safe on any thread, and beside other processes that use the same file:
    the last one to write wins, and nobody reads half a file."""

    def __init__(self, folder: Path) -> None:
        """``folder`` need not exist: it is made, for this user alone, when there is something to
        write. The file is read at the first :meth:`get` or :meth:`put`."""
        self._file = folder / FILE_NAME
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] | None = None  # replaced as a whole, never changed
        self._warned = False

    def get(self, card: ModelCard) -> Observed | None:
        """What was observed of this very model; None if its files have changed since, or it has
        none. A look-up in memory."""
        entry = self._known().get(card.id)
        if entry is None or not card.fingerprint or entry.fingerprint != card.fingerprint:
            return None
        return entry.observed

    def put(self, card: ModelCard, observed: Observed) -> None:
        """Remember what was observed; a field that is None leaves what was known of it.

        Writes the file if that is news: a millisecond that does not belong on an event loop.
        Models without files are not remembered. Never raises for the file.
        """
        if not card.fingerprint:
            return
        before = self.get(card) or Observed()
        entry = _Entry(
            card.fingerprint,
            Observed(observed.memory or before.memory, observed.batching or before.batching),
        )
        if entry.observed == before:
            return
        with self._lock:
            # Read again: another process may have written since.
            entries = {**self._known_before(), **self._read()}
            entries.pop(card.id, None)  # so that it comes last
            entries[card.id] = entry
            for model_id in list(entries)[:-MAX_MODELS]:
                del entries[model_id]
            self._entries = entries
            self._write(entries)

    def _known(self) -> dict[str, _Entry]:
        entries = self._entries
        if entries is None:
            with self._lock:
                entries = self._entries = self._known_before() or self._read()
        return entries

    def _known_before(self) -> dict[str, _Entry]:
        return self._entries or {}

    def _read(self) -> dict[str, _Entry]:
        try:
            status = self._file.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
                raise ValueError("not a file that was written here")
            content = orjson.loads(self._file.read_bytes())
            if content["version"] != _VERSION:  # of another version of this program
                return {}
            return {name: _entry(value) for name, value in content["models"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            self._warn("cannot be read, and is ignored", error)
            return {}

    def _write(self, entries: Mapping[str, _Entry]) -> None:
        models = {
            name: {"fingerprint": entry.fingerprint, **asdict(entry.observed)}
            for name, entry in entries.items()
        }
        try:
            content = orjson.dumps(
                {"version": _VERSION, "models": models}, option=orjson.OPT_INDENT_2
            )
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_left()
            descriptor, temporary = tempfile.mkstemp(
                dir=self._file.parent, prefix=FILE_NAME + ".", suffix=".tmp"
            )
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                os.replace(temporary, self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except (OSError, TypeError) as error:
            self._warn("cannot be written; estimates start anew at the next start", error)

    def _remove_left(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for left in self._file.parent.glob(f"{FILE_NAME}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    left.unlink()

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            _log.warning("the state file %s %s (%s)", self._file, what, reason)


def _entry(value: Mapping[str, Any]) -> _Entry:
    """Raises TypeError, ValueError, LookupError or AttributeError for what is not one."""
    memory, batching = value.get("memory"), value.get("batching")
    return _Entry(
        _text(value["fingerprint"]),
        Observed(
            memory=memory
            and ObservedMemory(
                _number(memory["weights"]),
                None if memory["cache"] is None else _number(memory["cache"]),
            ),
            batching=batching
            and ObservedBatching(
                batching["batches"] is True,
                None if batching["reason"] is None else _text(batching["reason"]),
                _text(batching["versions"]),
            ),
        ),
    )


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise ValueError("a number of bytes is out of range")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    return value
