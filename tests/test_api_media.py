"""What the API says of images and PDFs beside the answer, and who may profit from whose prompts."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from mlx_router.api.schemas.answers import ChatCompletion, ChatCompletionChunk
from mlx_router.config.settings import Settings
from mlx_router.domain import ChatPrompt, GenerationRequest, ImagePart, Started
from tests.api_support import (
    USER,
    Events,
    Exchange,
    FakeManager,
    client_for,
    plays,
    post,
    settings,
    sse,
    started,
)

NOTICES = ("Of a.pdf, only pages 1 to 20 of 300 were read.", "Größe: 2 × 3.")  # noqa: RUF001
SHOWN = "Of a.pdf, only pages 1 to 20 of 300 were read. Gr%C3%B6%C3%9Fe: 2 %C3%97 3."


async def noting(request: GenerationRequest) -> Events:
    """An answer with notices: for a completion, one that names its prompt beside a common one."""
    notices = NOTICES
    if text := getattr(request.prompt, "text", None):
        notices = (NOTICES[0], f"It was {text}.")
    async for event in plays()(request):
        yield started(notices=notices) if isinstance(event, Started) else event


# --- notices --------------------------------------------------------------------------------


async def test_notices_are_in_a_header_and_in_the_body() -> None:
    response = await post(FakeManager(noting))
    assert response.headers["x-mlx-router-notice"] == SHOWN
    assert response.json()["notices"] == list(NOTICES)
    ChatCompletion.model_validate(response.json(), strict=True)


@pytest.mark.parametrize("form", ["sse", "json_lines"])
async def test_notices_are_in_the_first_chunk_of_a_stream(form: str) -> None:
    response = await post(FakeManager(noting), stream=True, streaming_format=form)
    assert response.headers["x-mlx-router-notice"] == SHOWN
    text = response.text
    lines = sse(text) if form == "sse" else [orjson.loads(line) for line in text.splitlines()]
    first, *others = lines
    assert first["notices"] == list(NOTICES)
    assert not any("notices" in chunk for chunk in others)
    ChatCompletionChunk.model_validate(first, strict=True)


async def test_a_stream_that_began_before_says_it_in_its_first_chunk() -> None:
    go = asyncio.Event()

    async def late(request: GenerationRequest) -> Events:
        await go.wait()
        async for event in noting(request):
            yield event

    exchange = Exchange.post(FakeManager(late, settings(keep_alive_seconds=0.05)), stream=True)
    await exchange.text_with(": keep-alive")
    go.set()
    assert sse(await exchange.end())[0]["notices"] == list(NOTICES)
    assert "x-mlx-router-notice" not in exchange.headers


async def test_no_word_of_notices_where_there_are_none() -> None:
    for stream in (False, True):
        response = await post(FakeManager(), stream=stream)
        assert "x-mlx-router-notice" not in response.headers
        assert "notices" not in response.text


async def test_a_notice_about_several_prompts_is_given_once() -> None:
    async with client_for(FakeManager(noting)) as client:
        response = await client.post("/v1/completions", json={"prompt": ["long", "wide"]})
    first, *others = response.headers["x-mlx-router-notice"].split(" It was ")
    assert first == NOTICES[0]
    assert sorted(others) == ["long.", "wide."]


async def test_pages_of_other_origins_may_read_the_notices() -> None:
    manager = FakeManager(noting, settings(cors_origins=["https://chat.example"]))
    async with client_for(manager) as client:
        response = await client.post(
            "/v1/chat/completions",
            json={"messages": USER},
            headers={"origin": "https://chat.example"},
        )
    assert "x-mlx-router-notice" in response.headers["access-control-expose-headers"].split(", ")


# --- reuse of prompts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "body"),
    [("/v1/chat/completions", {"messages": USER}), ("/v1/completions", {"prompt": ["a", "b"]})],
)
async def test_every_key_has_a_scope_of_its_own(route: str, body: dict[str, Any]) -> None:
    manager = FakeManager(settings=settings(api_keys={"ann": "sk-a-secret", "bob": "sk-b-secret"}))
    scopes = []
    async with client_for(manager) as client:
        for key in ("sk-a-secret", "sk-b-secret", "sk-a-secret"):
            manager.requests = []
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post(route, json=body, headers=headers)).status_code == 200
            scopes.append({request.cache_scope for request in manager.requests})
    assert scopes == [{"ann"}, {"bob"}, {"ann"}]


@pytest.mark.parametrize(
    ("route", "body"),
    [("/v1/chat/completions", {"messages": USER}), ("/v1/completions", {"prompt": "a"})],
)
async def test_without_keys_all_share_one_scope(route: str, body: dict[str, Any]) -> None:
    manager = FakeManager()
    async with client_for(manager) as client:
        for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "other"}):
            await client.post(route, json=body, headers=headers)
    assert [request.cache_scope for request in manager.requests] == ["", "", ""]


# --- detail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [("low", "low"), ("original", "high"), ("auto", "auto"), (None, "auto")],
)
async def test_a_file_has_a_detail_as_an_image_has(written: str | None, read: str) -> None:
    manager = FakeManager()
    file = {"type": "file", "file": {"file_data": "AAAA", "detail": written}}
    image = {"type": "image_url", "image_url": {"url": "AAAA", "detail": written}}
    await post(manager, messages=[{"role": "user", "content": [file, image]}])
    (request,) = manager.requests
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.parts == (ImagePart("AAAA", read),) * 2  # type: ignore[arg-type]


async def test_a_detail_that_there_is_not_is_named() -> None:
    part = {"type": "file", "file": {"file_data": "AAAA", "detail": "huge"}}
    response = await post(FakeManager(), messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.0.file.detail"


# --- sizes ----------------------------------------------------------------------------------


async def test_a_pdf_of_the_largest_size_fits_into_a_body() -> None:
    limits = Settings()
    data = "A" * (int(limits.media.max_file_mb * 1_000_000) * 4 // 3)
    part = {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}
    manager = FakeManager()
    response = await post(manager, messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 200
    assert len(manager.requests) == 1


async def test_a_body_that_is_too_large_names_the_setting() -> None:
    manager = FakeManager(settings=settings(max_body_mb=0.01))
    part = {"type": "image_url", "image_url": "A" * 20_000}
    response = await post(manager, messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 413
    assert "server.max_body_mb" in response.json()["error"]["message"]
