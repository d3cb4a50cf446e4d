"""What the built-in vision model sees through the server, asked with the OpenAI SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fpdf import FPDF
from openai import OpenAI

from tests.media_support import data_uri, encoded
from tests.server import ServerProcess
from tests.test_demo_vision_model import printed, shape


@pytest.fixture(scope="module")
def client(demo_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        yield client


def seen(picture: Any, question: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": data_uri(encoded(picture))}}
    return {"role": "user", "content": [image, {"type": "text", "text": question}]}


def ask(client: OpenAI, *messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="demo-vision", messages=list(messages), temperature=0, **fields
    )


def said(answer: Any) -> str:
    content: str = answer.choices[0].message.content
    return content


@pytest.mark.parametrize(("kind", "colour"), [("circle", "blue"), ("square", "red")])
def test_it_names_colour_and_shape(client: OpenAI, kind: str, colour: str) -> None:
    answer = ask(client, seen(shape(kind, colour), "What is in this picture?"))
    assert said(answer) == f"A {colour} {kind}."
    assert answer.choices[0].finish_reason == "stop"


def test_a_chat_about_a_picture_goes_on(client: OpenAI) -> None:
    first = seen(shape("square", "green"), "What is in this picture?")
    answer = ask(client, first)
    assert said(answer) == "A green square."
    second = ask(
        client,
        first,
        {"role": "assistant", "content": said(answer)},
        {"role": "user", "content": "And which colour is it?"},
    )
    assert said(second) == "Green."
    # All of the picture was there already, and all of the first question.
    assert second.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens - 1


@pytest.mark.parametrize("text", ["HELLO", "42"])
def test_it_reads_large_print_while_it_streams(client: OpenAI, text: str) -> None:
    chunks = list(ask(client, seen(printed(text), "What does it say?"), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == f"It says {text}."


def test_it_reads_a_pdf(client: OpenAI) -> None:
    """A page as large as what is printed on it; the second of two."""
    document = FPDF(unit="pt", format=(160, 80))
    document.set_auto_page_break(False)
    document.set_font("Helvetica", style="B", size=32)
    for word in ("CAT", "STOP"):
        document.add_page()
        document.set_xy(0, 0)
        document.cell(160, 80, word, align="C")
    content = data_uri(bytes(document.output()), "application/pdf")
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": content, "pages": "2"}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "What does it say?"}]}
    assert said(ask(client, message)) == "It says STOP."
