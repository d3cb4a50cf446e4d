"""Waiting for a condition, where nothing tells that it has come."""

from __future__ import annotations

import time
from collections.abc import Callable


def until_sync(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Blocks until the condition holds; fails if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
