"""Fetching a request's files while those before them are decoded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

_AHEAD = 4  # files that may wait in memory


class Ahead:
    """Gets ``urls``, each of which is asked for once and in that order, a few at a time."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes]], urls: Iterable[str]) -> None:
        self._fetch = fetch
        self._waiting = deque(urls)
        self._tasks: dict[str, asyncio.Future[bytes]] = {}

    async def get(self, url: str) -> bytes:
        """Its content. Raises what ``fetch`` raises."""
        while self._waiting and len(self._tasks) < _AHEAD:
            following = self._waiting.popleft()
            self._tasks[following] = asyncio.ensure_future(self._fetch(following))
        content = await self._tasks[url]
        del self._tasks[url]
        return content

    async def close(self) -> None:
        """Give up those that are under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
