"""Waiting for a condition, where nothing tells that it has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until_sync(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Blocks until the condition holds; fails if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """As :func:`until_sync`, for what lives on this loop."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0.002)
