"""The anchor for models that see: greedy output of the server is mlx-vlm's own, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fpdf import FPDF
from PIL import Image

from mlx_router.domain import ImagePart
from tests.media_support import data_uri, encoded, image_of, load
from tests.server import ServerProcess
from tests.test_correctness import OnOneThread
from tests.vision_messages import BALL, BOX, EGG, Json, image, text, token_ids, user
from tests.vision_models import VISION_ARCHITECTURES, make_vision_model

TOKENS = 16

# Each chat, and the pictures in it in order.
CHATS: dict[str, tuple[list[Json], list[Image.Image]]] = {
    "one image": ([user(image(BOX), text("What is in this image?"))], [BOX]),
    "another image": ([user(image(BALL), text("What is in this image?"))], [BALL]),
    "two images": (
        [user(text("Compare "), image(BOX), text(" with "), image(BALL), text("."))],
        [BOX, BALL],
    ),
    "the same two, swapped": (
        [user(text("Compare "), image(BALL), text(" with "), image(BOX), text("."))],
        [BALL, BOX],
    ),
    "in an earlier turn": (
        [
            {"role": "system", "content": "You are brief."},
            user(image(BOX), text("What is this?")),
            {"role": "assistant", "content": "A red box."},
            user(text("And this?"), image(EGG)),
            {"role": "assistant", "content": "An egg."},
            {"role": "user", "content": "Which of the two is round?"},
        ],
        [BOX, EGG],
    ),
    "no image": ([{"role": "user", "content": "What is the capital of Norway?"}], []),
}


class Reference:
    """mlx_vlm.generate on the same folder; the prompt is the model's own template's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Any] = {}
        self._known: dict[str, tuple[list[int], int]] = {}
        self._thread = OnOneThread()

    def __call__(
        self, kind: str, messages: list[Json], pictures: list[Image.Image]
    ) -> tuple[list[int], int]:
        """Token ids of the answer, and the number of prompt tokens."""
        key = f"{kind} {messages}"
        if key not in self._known:
            self._known[key] = self._thread(lambda: self._generate(kind, messages, pictures))
        return self._known[key]

    def close(self) -> None:
        self._loaded.clear()
        self._thread.close()

    def _generate(
        self, kind: str, messages: list[Json], pictures: list[Image.Image]
    ) -> tuple[list[int], int]:
        import mlx_vlm

        if kind not in self._loaded:
            model, processor = mlx_vlm.load(str(self._folder / kind))
            processor.tokenizer.stopping_criteria.reset([])
            self._loaded[kind] = model, processor
        model, processor = self._loaded[kind]
        prompt = processor.tokenizer.apply_chat_template(
            [self._in_parts(message) for message in messages],
            chat_template=processor.tokenizer.chat_template or processor.chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        results = list(
            mlx_vlm.stream_generate(
                model, processor, prompt, image=pictures or None, max_tokens=TOKENS, temperature=0.0
            )
        )
        return [int(result.token) for result in results][:TOKENS], results[0].prompt_tokens

    @staticmethod
    def _in_parts(message: Json) -> Json:
        parts = message["content"]
        if isinstance(parts, str):
            return message
        kept = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        return {**message, "content": kept}


@pytest.fixture(scope="module")
def vision_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    for kind in VISION_ARCHITECTURES:
        make_vision_model(kind, folder / kind)
    return folder


@pytest.fixture(scope="module")
def server(
    vision_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    config = {"defaults": {"prefill_step_size": 16, "cache_size": 8}}
    with ServerProcess(
        tmp_path_factory.mktemp("server"), config=config, models=vision_models
    ) as running:
        yield running


@pytest.fixture(scope="module")
def reference(vision_models: Path) -> Iterator[Reference]:
    found = Reference(vision_models)
    yield found
    found.close()


def body(kind: str, messages: list[Json], **more: Any) -> Json:
    return {
        "model": kind,
        "messages": messages,
        "temperature": 0,
        "max_tokens": TOKENS,
        "return_token_ids": True,
        **more,
    }


def answers(server: ServerProcess, bodies: list[Json]) -> list[Json]:
    """The answers to requests that are made all at once."""

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            return list(
                await asyncio.gather(*(client.post("/chat/completions", json=b) for b in bodies))
            )

    responses = asyncio.run(all_at_once())
    for response in responses:
        assert response.status_code == 200, response.text
    return [response.json() for response in responses]


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_alone(kind: str, server: ServerProcess, reference: Reference) -> None:
    for chat, (messages, pictures) in CHATS.items():
        expected, prompt_tokens = reference(kind, messages, pictures)
        (answer,) = answers(server, [body(kind, messages)])
        assert token_ids(answer) == expected, chat
        assert answer["usage"]["prompt_tokens"] == prompt_tokens, chat


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_requests_with_and_without_images_in_one_batch(
    kind: str, server: ServerProcess, reference: Reference
) -> None:
    got = answers(server, [body(kind, messages) for messages, _ in CHATS.values()])
    assert [token_ids(answer) for answer in got] == [
        reference(kind, *chat)[0] for chat in CHATS.values()
    ]


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_the_images_and_their_order_matter(kind: str, reference: Reference) -> None:
    def expected(chat: str) -> list[int]:
        return reference(kind, *CHATS[chat])[0]

    assert expected("one image") != expected("another image")
    assert expected("two images") != expected("the same two, swapped")


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_a_chat_about_an_image_goes_on_from_what_was_computed(
    kind: str, server: ServerProcess, reference: Reference
) -> None:
    """Three turns: each prompt begins as the one before it ended, and its answer is that of a
    model that has seen nothing of it."""
    messages = [user(image(EGG), text("Describe this picture."))]
    reused = []
    for turn in ("And the colours?", "What else is there?", None):
        (answer,) = answers(server, [body(kind, messages)])
        assert token_ids(answer) == reference(kind, messages, [EGG])[0], len(messages)
        reused.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        if turn is not None:
            said = answer["choices"][0]["message"]["content"]
            messages += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": turn},
            ]
    assert reused[1] > 0
    assert reused[2] > reused[1]


@pytest.mark.parametrize("kind", VISION_ARCHITECTURES)
def test_choices_share_an_image(kind: str, server: ServerProcess, reference: Reference) -> None:
    messages, pictures = CHATS["one image"]
    seeded = body(kind, messages, n=3, temperature=1.5, seed=7)
    (together,) = answers(server, [seeded])
    alone = answers(server, [{**seeded, "n": 1, "seed": 7 + i} for i in range(3)])
    assert [token_ids(together, i) for i in range(3)] == [token_ids(each) for each in alone]
    assert len({tuple(token_ids(each)) for each in alone}) > 1
    (greedy,) = answers(server, [body(kind, messages, n=2)])
    assert token_ids(greedy, 0) == token_ids(greedy, 1)
    assert token_ids(greedy, 0) == reference(kind, messages, pictures)[0]


def test_pdf_pages_are_images(server: ServerProcess, reference: Reference) -> None:
    """The pages as the server draws them, seen by mlx-vlm."""
    document = FPDF(unit="pt", format=(120, 80))
    document.set_auto_page_break(False)
    document.set_font("Helvetica", size=24)
    for word in ("one", "two"):
        document.add_page()
        document.cell(text=word)
    content = bytes(document.output())
    uri = data_uri(content, "application/pdf")
    pictures, _ = asyncio.run(load(ImagePart(uri)))
    pages = [image_of(picture) for picture in pictures]
    assert len(pages) == 2
    parts = {
        "image_url": {"image_url": {"url": uri}},
        "file": {"file": {"filename": "two.pdf", "file_data": uri}},
    }
    for kind in ("qwen3_vl", "gemma3"):
        for type_, part in parts.items():
            messages = [user(text("Read this."), {"type": type_, **part})]
            seen = [user(text("Read this."), {"type": "image"}, {"type": "image"})]
            expected, prompt_tokens = reference(kind, seen, pages)
            (answer,) = answers(server, [body(kind, messages)])
            assert token_ids(answer) == expected
            assert answer["usage"]["prompt_tokens"] == prompt_tokens


def test_what_the_client_sends_is_what_the_model_gets(server: ServerProcess) -> None:
    """The same pixels in another format, and behind transparency, give the same answer."""
    expected = answers(server, [body("qwen3_vl", [user(image(BOX), text("Hm?"))])])[0]
    see_through = BOX.convert("RGBA")
    see_through.putalpha(BOX.convert("L").point(lambda value: 0 if value > 250 else 255))
    for content in (
        encoded(BOX, "BMP"),
        encoded(BOX, "WEBP", lossless=True),
        encoded(see_through, "PNG"),
    ):
        part = {"type": "image_url", "image_url": data_uri(content)}
        (answer,) = answers(server, [body("qwen3_vl", [user(part, text("Hm?"))])])
        assert token_ids(answer) == token_ids(expected)


def test_a_broken_image_disturbs_nobody(server: ServerProcess, reference: Reference) -> None:
    async def both() -> list[httpx.Response]:
        bad = {"type": "image_url", "image_url": {"url": data_uri(encoded(BOX)[:80])}}
        bodies = [
            body("qwen2_vl", CHATS["one image"][0]),
            body("qwen2_vl", [user(bad, text("What is this?"))]),
            body("qwen2_vl", CHATS["no image"][0]),
        ]
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            return list(
                await asyncio.gather(*(client.post("/chat/completions", json=b) for b in bodies))
            )

    one, broken, none = asyncio.run(both())
    assert broken.status_code == 400
    assert broken.json()["error"]["param"].startswith("messages")
    assert token_ids(one.json()) == reference("qwen2_vl", *CHATS["one image"])[0]
    assert token_ids(none.json()) == reference("qwen2_vl", *CHATS["no image"])[0]
