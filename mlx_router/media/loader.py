"""A prompt's images and PDFs, as clients name them, become pictures, within limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, TypeVar

from mlx_router.config.media import MediaSettings
from mlx_router.domain import ChatPrompt, ContentPart, ImagePart, Message, Picture
from mlx_router.errors import InvalidRequest, Unavailable
from mlx_router.media import pdf, source
from mlx_router.media.ahead import Ahead
from mlx_router.media.picture import picture
from mlx_router.media.refusal import Refused, not_installed

if TYPE_CHECKING:
    from mlx_router.media.fetch import Fetcher

log = logging.getLogger(__name__)

T = TypeVar("T")
Shown = tuple[Picture, ...]

_DECODED_AT_ONCE = 2  # each may take some hundred megabytes
_DRAWN_AT_ONCE = 2  # PDFs, each by a process of its own
_FETCHED_AT_ONCE = 8


class MediaLoader:
    """Keep one for as long as the settings hold: it bounds what runs at once. Lives on one event
    loop; decoding runs in ``executor``. What it needs is imported when it is first needed."""

    def __init__(self, settings: MediaSettings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._drawing = asyncio.Semaphore(_DRAWN_AT_ONCE)
        self._fetching = asyncio.Semaphore(_FETCHED_AT_ONCE)
        self._fetcher: Fetcher | None = None

    async def load(self, prompt: ChatPrompt) -> tuple[ChatPrompt, tuple[str, ...]]:
        """The prompt with pictures in place of every ImagePart, and sentences for the client.

        Raises InvalidRequest that names the part.
        """
        places = list(_places(prompt))
        if not places:
            return prompt, ()
        self._check_number(len(places))
        addresses = [source.address(part.url) for _, part in places]
        ahead = Ahead(self._fetch, dict.fromkeys(filter(None, addresses)))
        try:
            shown, notices = await self._read_all(places, addresses, ahead)
        finally:
            await ahead.close()
        every = iter(shown)
        return replace(prompt, messages=tuple(_filled(m, every) for m in prompt.messages)), notices

    async def _read_all(
        self, places: Sequence[tuple[str, ImagePart]], addresses: Sequence[str | None], ahead: Ahead
    ) -> tuple[list[Shown], tuple[str, ...]]:
        """One after the other: what is being decoded takes far more memory than what was. Places
        with one address follow each other: it is fetched once, and what came is soon forgotten."""
        shown: list[Shown] = [()] * len(places)
        known: dict[tuple[object, ...], Shown] = {}
        notices: list[str] = []
        total = len(places)  # pictures: those there are, and one for each part still to be read
        pixels = 0
        for address, indices in _together(addresses):
            data = b""
            for index in indices:
                at, part = places[index]
                try:
                    data = data or await self._content(part, address, ahead)
                    # by the content: hashing a URL of 40 MB here would hold up everybody
                    digest = await self._run(_digest, data)
                    key = (digest, part.detail, part.pages, part.name)
                    if key not in known:
                        room = self._settings.max_images - total + 1
                        known[key] = await self._read(data, part, room, notices)
                except Refused as refused:
                    raise InvalidRequest(
                        f"{at}: {refused.message}", param=at, code=refused.code
                    ) from None
                shown[index] = known[key]
                total += len(known[key]) - 1
                self._check_number(total)
                pixels += sum(one.width * one.height for one in known[key])
                self._check_pixels(at, pixels)
        return shown, tuple(notices)

    async def _content(self, part: ImagePart, address: str | None, ahead: Ahead) -> bytes:
        """Not empty. Raises Refused."""
        if address is not None:
            return await ahead.get(address)
        return await self._run(source.read_inline, part.url, self._settings.max_file_mb)

    async def _read(self, data: bytes, part: ImagePart, room: int, notices: list[str]) -> Shown:
        """At most ``room`` pictures. Raises Refused."""
        if source.is_pdf(data):
            return await self._read_pdf(data, part, room, notices)
        if part.pages is not None:
            raise Refused("'pages' is for PDFs only, and this is none.", "invalid_pages")
        async with self._decoding:
            return (await self._run(self._decode, data, part.detail),)

    async def _read_pdf(self, data: bytes, part: ImagePart, room: int, notices: list[str]) -> Shown:
        settings = self._settings
        budget = settings.low_detail_pixels if part.detail == "low" else settings.high_detail_pixels
        try:
            async with self._drawing:
                with NamedTemporaryFile(prefix="mlx-router-", suffix=".pdf") as file:
                    await self._run(_write, file, data)
                    path = Path(file.name)
                    pages, count = await pdf.draw(path, part.pages, room, budget, settings)
        except OSError:  # no room on the disk, or no process to be had
            log.exception("the process that draws PDFs could not be started")
            raise Unavailable("PDFs cannot be read just now; try again.", retry_after=5) from None
        if part.pages is None and count > len(pages):
            log.info("a PDF has %d pages; the first %d were read", count, len(pages))
            notices.append(
                f"{part.name or 'The PDF'} has {count} pages; the first {len(pages)} were read. "
                'Name others with "pages".'
            )
        return tuple([await self._run(picture, *page) for page in pages])

    async def _fetch(self, url: str) -> bytes:
        """Raises Refused."""
        if not self._settings.fetch_urls:
            raise Refused(
                "this server fetches no URLs. Send the file as a data URI.", "invalid_image_url"
            )
        if self._fetcher is None:
            self._fetcher = await self._run(_new_fetcher, self._settings)
        async with self._fetching:
            return await self._fetcher.fetch(url)

    def _decode(self, data: bytes, detail: str) -> Picture:
        try:
            from mlx_router.media.image import decode
        except ImportError:
            raise not_installed("Pillow") from None
        return decode(data, self._settings.max_pixels, self._budget(detail))

    def _budget(self, detail: str) -> int:
        settings = self._settings
        if detail == "low":
            return settings.low_detail_pixels
        return settings.high_detail_pixels if detail == "high" else settings.auto_detail_pixels

    def _check_number(self, count: int) -> None:
        if count > self._settings.max_images:
            raise InvalidRequest(
                f"The request has {count} images, pages of PDFs included; at most "
                f"{self._settings.max_images} are taken. Send fewer.",
                param="messages",
                code="too_many_images",
            )

    def _check_pixels(self, at: str, count: int) -> None:
        most = self._settings.max_total_pixels
        if count > most:
            raise InvalidRequest(
                f"{at}: with this one, the images of the request have {count:,} pixels together; "
                f'at most {most:,} are taken. Send fewer, or with "detail": "low".',
                param=at,
                code="image_too_large",
            )

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *arguments))


def _places(prompt: ChatPrompt) -> Iterator[tuple[str, ImagePart]]:
    """What is to be read, in order, each with the name of its place in the request."""
    for index, message in enumerate(prompt.messages):
        if isinstance(message.content, tuple):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield f"messages.{index}.content.{place}", part


def _together(addresses: Sequence[str | None]) -> Iterator[tuple[str | None, list[int]]]:
    """Each address with the indices where it stands, in the order of the first of them; what has
    none by itself."""
    places: dict[str, list[int]] = {}
    for index, address in enumerate(addresses):
        if address is not None:
            places.setdefault(address, []).append(index)
    for index, address in enumerate(addresses):
        if address is None:
            yield None, [index]
        elif places[address][0] == index:
            yield address, places[address]


def _filled(message: Message, shown: Iterator[Shown]) -> Message:
    if not isinstance(message.content, tuple):
        return message
    content: list[ContentPart] = []
    for part in message.content:
        content.extend(next(shown) if isinstance(part, ImagePart) else (part,))
    return replace(message, content=tuple(content))


def _digest(data: bytes) -> bytes:
    return sha256(data).digest()


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()


def _new_fetcher(settings: MediaSettings) -> Fetcher:
    from mlx_router.media.fetch import Fetcher

    return Fetcher(settings)
