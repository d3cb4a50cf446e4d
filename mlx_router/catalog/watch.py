"""Notices changes in folders by their modification times: one stat per folder, no listing.

A folder's time moves when something in it is added, removed or renamed, on every file system and
on network volumes too, and a stat follows symlinks. The operating system's change events cost less
still, but do none of this: they stop at symlinks and miss what other machines write to a shared
volume, and a download that grows makes thousands of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# exFAT keeps times in steps of 2 s: a second change within a step would go unseen.
SETTLE_SECONDS = 3.0

Stamp = tuple[int, ...] | None


def stamp(path: str) -> Stamp:
    """What changes with a folder's entries, or with a file's content; None if it is not there.
    Take it before looking inside, so that what changes meanwhile is noticed next time."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


class Watch:
    """The paths of the last look, and since when each has been as it is."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Stamp, float]] = {}

    def moved(self, now: float) -> set[str]:
        """The paths that are not as they were seen, or were not yet for :data:`SETTLE_SECONDS`;
        ``now`` is on a monotonic clock."""
        return {
            path
            for path, (before, since) in self._seen.items()
            if now - since < SETTLE_SECONDS or stamp(path) != before
        }

    def seen(self, stamps: Mapping[str, Stamp], now: float) -> None:
        """From now on watch these paths, as they were when looked at."""
        known = self._seen
        self._seen = {
            path: known[path] if path in known and known[path][0] == value else (value, now)
            for path, value in stamps.items()
        }
