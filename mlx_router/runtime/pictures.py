"""The images of requests on their way to a model: loaded, in time, and bounded all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager

from mlx_router.config.media import MediaSettings
from mlx_router.domain import ChatPrompt, ImagePart, Prompt
from mlx_router.errors import RequestTimeout, Unavailable
from mlx_router.media import MediaLoader


class Pictures:
    """Lives on one event loop. ``encoder`` is for encoding prompts with pictures: it takes long,
    and must not keep other requests from being tokenised."""

    def __init__(self, settings: MediaSettings) -> None:
        self._decoder = ThreadPoolExecutor(max_workers=2, thread_name_prefix="media")
        self.encoder: Executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="images")
        self._held = 0  # pixels
        self.configure(settings)

    def configure(self, settings: MediaSettings) -> None:
        self._most = settings.max_pixels_at_once
        self._loader = MediaLoader(settings, self._decoder)

    @asynccontextmanager
    async def shown(
        self, prompt: Prompt, patience: float
    ) -> AsyncIterator[tuple[Prompt, tuple[str, ...]]]:
        """The prompt with its images fetched and decoded, and sentences for the client, within
        ``patience`` seconds. Use it in a block that lasts as long as the pictures are needed.

        Raises InvalidRequest, RequestTimeout, and Unavailable if other requests hold too many.
        """
        if not isinstance(prompt, ChatPrompt) or not has_images(prompt):
            yield prompt, ()
            return
        try:
            async with asyncio.timeout(patience):
                loaded, notices = await self._loader.load(prompt)
        except TimeoutError:
            raise RequestTimeout(
                f"The images of the request were not there within {patience:.3g} seconds."
            ) from None
        pixels = sum(picture.width * picture.height for picture in loaded.pictures)
        if self._held and self._held + pixels > self._most:
            raise Unavailable(
                "The server is busy with the images of other requests; try again in a moment.",
                retry_after=5,
            )
        self._held += pixels
        try:
            yield loaded, notices
        finally:
            self._held -= pixels

    def close(self) -> None:
        for executor in (self._decoder, self.encoder):
            executor.shutdown(wait=False, cancel_futures=True)


def has_images(prompt: ChatPrompt) -> bool:
    """Whether there are images that are still to be loaded."""
    return any(isinstance(part, ImagePart) for part in prompt.parts)
