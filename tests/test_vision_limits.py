"""What the images of requests may take of time and memory, all requests together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlx_router import Finished, GenerationRequest, MLXModelManager, Settings, Started
from mlx_router.config.media import MediaSettings
from mlx_router.domain import ChatPrompt, GenerationEvent, ImagePart, Message, TextPart
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import InvalidRequest, RequestTimeout, RouterError, Unavailable
from mlx_router.runtime.pictures import Pictures
from tests.media_support import data_uri, encoded, gradient

SMALL = 64  # the side of an image: two of them are all that BOUND lets in at once
BOUND: dict[str, Any] = {"max_pixels_at_once": 2 * SMALL**2}


def showing(*urls: str) -> ChatPrompt:
    return ChatPrompt((Message("user", (*map(ImagePart, urls), TextPart("What is it?"))),))


def picture(side: int = SMALL) -> str:
    return data_uri(encoded(gradient(side, side)))


def request(*urls: str, model: str = "scripted-vision", **fields: Any) -> GenerationRequest:
    return GenerationRequest(showing(*urls), model=model, **fields)


@asynccontextmanager
async def scripted(
    options: ScriptedOptions | None = None, **media: Any
) -> AsyncIterator[MLXModelManager]:
    media = {"allow_private_addresses": True, **media}
    settings = Settings.model_validate({"media": media})
    factory = ScriptedFactory(options)
    async with MLXModelManager(settings, engine="scripted", factory=factory) as manager:
        yield manager


async def collect(manager: MLXModelManager, asked: GenerationRequest) -> list[GenerationEvent]:
    return [event async for event in manager.generate(asked)]


class Site:
    """Serves one image, ``delay`` seconds after it is asked for; None: never."""

    def __init__(self, delay: float | None) -> None:
        self.delay = delay
        self.asked = 0
        self.url = ""
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Site]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/image"
        try:
            yield self
        finally:
            self._closing.set()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        content = encoded(gradient(SMALL, SMALL))
        try:
            async with asyncio.timeout(self.delay):
                await self._closing.wait()
        except TimeoutError:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        finally:
            writer.close()


# --- time -----------------------------------------------------------------------------------


async def test_images_that_do_not_come_end_a_request_at_its_timeout() -> None:
    async with Site(None).open() as site, scripted() as manager:
        began = time.monotonic()
        with pytest.raises(RequestTimeout, match=r"images .* within 0\.4 seconds"):
            await collect(manager, request(site.url, timeout=0.4))
        assert site.asked == 1
        assert 0.4 <= time.monotonic() - began < 5  # the URL's own timeout is longer


async def test_a_timeout_counts_from_before_the_images_to_the_end_of_the_answer() -> None:
    slow = ScriptedOptions(step_delay=0.02)
    async with Site(1.3).open() as site, scripted(slow) as manager:
        await collect(manager, request(picture(), max_tokens=1))  # what has to be imported, is
        began = time.monotonic()
        asked = request(site.url, timeout=2.0, max_tokens=10_000, ignore_eos=True)
        events = await collect(manager, asked)
        took = time.monotonic() - began
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished.timed_out
    assert 2.0 <= took < 3.2  # and not the images' 1.3 seconds and 2.0 more


async def test_nothing_is_fetched_for_a_model_that_cannot_see() -> None:
    async with Site(0.0).open() as site, scripted() as manager:
        with pytest.raises(InvalidRequest, match="cannot see images"):
            await manager.atokenize("scripted", showing(site.url))
        with pytest.raises(InvalidRequest, match="cannot see images"):
            await collect(manager, request(site.url, model="scripted"))
        assert site.asked == 0
        assert len(await manager.atokenize("scripted-vision", showing(site.url))) > 3
        assert site.asked == 1


# --- memory ---------------------------------------------------------------------------------


async def test_images_beyond_the_bound_of_all_requests_are_told_to_come_again() -> None:
    pictures = Pictures(MediaSettings(**BOUND))
    prompt = showing(picture())
    try:
        async with pictures.shown(prompt, 10), pictures.shown(prompt, 10) as (shown, _):
            assert isinstance(shown, ChatPrompt)
            assert len(shown.pictures) == 1
            with pytest.raises(Unavailable) as caught:
                async with pictures.shown(prompt, 10):
                    pass
            assert caught.value.status == 503
            assert caught.value.retry_after
            async with pictures.shown(ChatPrompt((Message("user", "Hello"),)), 10):
                pass  # text is not counted
        async with pictures.shown(prompt, 10), pictures.shown(prompt, 10):
            pass
    finally:
        pictures.close()


async def test_a_request_that_is_beyond_the_bound_by_itself_is_served_when_it_is_alone() -> None:
    """What one may take is another limit."""
    pictures = Pictures(MediaSettings(**BOUND, max_total_pixels=5 * SMALL**2))
    four, six = showing(picture(2 * SMALL)), showing(*[picture()] * 6)
    try:
        async with pictures.shown(four, 10):
            with pytest.raises(Unavailable):
                async with pictures.shown(showing(picture()), 10):
                    pass
        async with pictures.shown(showing(picture()), 10):
            with pytest.raises(Unavailable):
                async with pictures.shown(four, 10):
                    pass
        with pytest.raises(InvalidRequest, match="pixels together"):
            async with pictures.shown(six, 10):
                pass
    finally:
        pictures.close()


@pytest.mark.parametrize("end", ["answered", "failed", "left", "refused"])
async def test_what_images_took_is_free_when_their_request_ends(end: str) -> None:
    gate = threading.Event()
    options = ScriptedOptions(step_gate=gate, fail_at_step=2 if end == "failed" else None)
    two = [picture(), picture()]
    async with scripted(options, **BOUND) as manager:
        try:
            if end == "refused":
                gate.set()
                with pytest.raises(InvalidRequest):
                    await collect(manager, request(*two, logit_bias={10**6: 1.0}))
            else:
                first = manager.generate(request(*two, max_tokens=5))
                assert isinstance(await anext(first), Started)
                with pytest.raises(Unavailable):
                    await collect(manager, request(*two))
                if end == "left":
                    await first.aclose()
                gate.set()
                if end == "failed":
                    with pytest.raises(RouterError):
                        await _rest(first)
                elif end == "answered":
                    await _rest(first)
        finally:
            gate.set()
        assert await collect(manager, request(*two, max_tokens=5))


async def _rest(events: AsyncIterator[GenerationEvent]) -> None:
    async for _ in events:
        pass
