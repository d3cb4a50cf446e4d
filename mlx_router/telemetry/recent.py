"""The latest log lines, kept in memory for the status page and `mlx-router logs`."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from itertools import count, islice

_KEPT = 1000


@dataclass(frozen=True, slots=True)
class LogLine:
    """``number`` counts up by one from line to line; ``time`` in seconds since the epoch."""

    number: int
    time: float
    level: str
    request_id: str
    text: str


class RecentLines(logging.Handler):
    """Keeps the latest 1000 lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=_KEPT)
        self._numbers = count(1)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        request_id = getattr(record, "request_id", "-")
        number = next(self._numbers)
        self._lines.append(LogLine(number, record.created, record.levelname, request_id, text))

    def lines(self, *, after: int = 0, most: int = 200) -> list[LogLine]:
        """Lines, oldest first: the latest ``most`` of them, or, with ``after``, the first ``most``
        of those past that number."""
        self.acquire()  # other threads log meanwhile
        try:
            oldest = self._lines[0].number if self._lines else 1
            first = after + 1 if after else oldest + len(self._lines) - most
            skipped = max(first - oldest, 0)
            return list(islice(self._lines, skipped, skipped + most))
        finally:
            self.release()


#: What :func:`~mlx_router.telemetry.logging.configure_logging` logs to besides console and file.
recent = RecentLines()
