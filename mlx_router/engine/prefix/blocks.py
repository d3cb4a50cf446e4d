"""Which files hold which part of a prompt: names made of digests, and a path through them.

A prompt is cut into blocks of 256 tokens. The digest of a block covers everything before it, so
prompts share the blocks of their common beginning. What cannot be cut (a sliding window, a
recurrent state) has files of its own, for some numbers of tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Literal, cast

import numpy as np

from mlx_router.engine.prefix.layers import Key

BLOCK = 256  # tokens
VERSION = 1  # of the files: what another version wrote is not read

# block: enough to go on from, with the blocks before it. part: a block of a model that also needs
# a state. state: with the parts before it. whole: by itself.
Kind = Literal["block", "part", "state", "whole"]

_NAME = re.compile(
    r"([0-9a-f]{40})-(\d{3})-([0-9a-f]{40})-(block|part|state|whole)(\d+)-([0-9a-f]{8})\.safetensors"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: ``tokens`` more after ``parent``, the digest of all before them. ``digest`` covers
    both; ``check`` is the CRC-32 of the file's content. It finds damage, not malice: who can write
    to the folder could change the name too. (A digest would take most of the time of a read.)"""

    parent: str
    tokens: int
    digest: str
    kind: Kind
    check: int = 0
    version: int = VERSION

    @property
    def file(self) -> str:
        return (
            f"{self.parent}-{self.tokens:03}-{self.digest}-{self.kind}{self.version}"
            f"-{self.check:08x}.safetensors"
        )


def parse(file: str) -> Entry | None:
    """The entry with this file name; None: the file is none of ours."""
    found = _NAME.fullmatch(file)
    if found is None:
        return None
    parent, tokens, digest, kind, version, check = found.groups()
    return Entry(parent, int(tokens), digest, cast("Kind", kind), int(check, 16), int(version))


def root(fingerprint: str, scope: str) -> str:
    """What comes before the first block: another model or scope has no file in common."""
    digest = hashlib.blake2b(digest_size=20)
    for text in (str(VERSION), fingerprint, scope):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of(parent: str, tokens: Key) -> str:
    """The digest of ``parent`` and the tokens after it, at most a block."""
    data = np.ascontiguousarray(tokens, dtype="<i8").tobytes()
    return hashlib.blake2b(bytes.fromhex(parent) + data, digest_size=20).hexdigest()


def chain(start: str, key: Key) -> list[str]:
    """``start``, then the digest after each whole block of ``key``."""
    digests = [start]
    for first in range(0, len(key) - BLOCK + 1, BLOCK):
        digests.append(digest_of(digests[-1], key[first : first + BLOCK]))
    return digests


class Index:
    """The files there are, as far as is known. Safe on any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._after: dict[str, dict[str, Entry]] = {}  # parent -> digest -> entry
        self._whole = False  # whether there may be files that need no blocks before them

    def replace(self, entries: Iterable[Entry]) -> None:
        after: dict[str, dict[str, Entry]] = {}
        for entry in entries:
            after.setdefault(entry.parent, {})[entry.digest] = entry
        with self._lock:
            self._after = after
            self._whole = any(
                entry.kind == "whole" for found in after.values() for entry in found.values()
            )

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._after.setdefault(entry.parent, {})[entry.digest] = entry
            self._whole = self._whole or entry.kind == "whole"

    def remove(self, entry: Entry) -> None:
        with self._lock:
            siblings = self._after.get(entry.parent, {})
            siblings.pop(entry.digest, None)
            if not siblings:
                self._after.pop(entry.parent, None)

    def get(self, parent: str, digest: str) -> Entry | None:
        with self._lock:
            return self._after.get(parent, {}).get(digest)

    def path(self, start: str, key: Key, limit: int) -> tuple[int, list[Entry]]:
        """How many of the first ``limit`` tokens of ``key`` can be read back at most, and from
        which files, in their order."""
        key = key[: max(limit, 0)]
        best, needed, state = 0, 0, list[Entry]()  # tokens, blocks, and a file after them
        blocks, complete = list[Entry](), True  # so far
        parent = start
        for number in range(len(key) // BLOCK + 1):
            with self._lock:
                found = list(self._after.get(parent, {}).values())
                more = self._whole
            rest = key[number * BLOCK :]
            for entry in sorted(found, key=lambda entry: entry.tokens):
                tokens = number * BLOCK + entry.tokens
                if entry.tokens >= BLOCK or tokens > len(key) or tokens <= best:
                    continue
                if entry.kind == "state" and not complete:
                    continue
                if entry.digest == digest_of(parent, rest[: entry.tokens]):
                    best, state = tokens, [entry]
                    needed = number if entry.kind == "state" else 0
            if len(rest) < BLOCK or not (complete or more):
                break
            parent = digest_of(parent, rest[:BLOCK])
            block = next((entry for entry in found if entry.digest == parent), None)
            complete = complete and block is not None
            if complete and block is not None:
                blocks.append(block)
                if block.kind == "block":
                    best, needed, state = len(blocks) * BLOCK, len(blocks), []
        return best, [*blocks[:needed], *state]
