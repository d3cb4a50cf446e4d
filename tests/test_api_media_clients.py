"""Images and PDFs as real clients send them, to a real server process without weights.

What its model answers says what it was shown: how many images, and how large.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import agents
import httpx
import openai
import pytest
from fpdf import FPDF
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, BinaryContent, ImageUrl
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.media_support import data_uri, encoded, gradient
from tests.server import ServerProcess

MODEL = "scripted-vision"
QUESTION = "What is this?"
TEXT = {"type": "text", "text": QUESTION}
PAGES = 23  # more than are read


def make_pdf(pages: int) -> bytes:
    document = FPDF(unit="in", format=(2, 1))
    for _ in range(pages):
        document.add_page()
    return bytes(document.output())


PNG = encoded(gradient(64, 48))
PDF = make_pdf(PAGES)
PNG_BASE64, PDF_BASE64 = base64.b64encode(PNG).decode(), base64.b64encode(PDF).decode()
PNG_URI, PDF_URI = data_uri(PNG), data_uri(PDF, "application/pdf")


def saw(answer: str | None, *sizes: str) -> bool:
    """Whether the model was shown images of these sizes, and the question."""
    count = f"{len(sizes)} image{'s' * (len(sizes) != 1)}"
    return (answer or "").startswith(f'I see {count}: {", ".join(sizes)}. You said: "{QUESTION}".')


def saw_pages(answer: str | None, count: int) -> bool:
    return saw(answer, *["300x150"] * count)  # 2 by 1 inches at 150 dots an inch


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LOGFIRE_SEND_TO_LOGFIRE"):
        monkeypatch.setenv(name, "false")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_API_KEY", "LOGFIRE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


# --- the openai package ---------------------------------------------------------------------


@pytest.fixture
def client(scripted_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted_server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, *parts: Any, model: str = MODEL) -> Any:
    messages: Any = [{"role": "user", "content": [TEXT, *parts]}]
    return client.chat.completions.with_raw_response.create(model=model, messages=messages)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PNG_URI, "detail": "high"}},
        {"type": "image_url", "image_url": PNG_URI},
        {"type": "image_url", "image_url": {"url": PNG_BASE64}},
        {"type": "input_image", "image_url": PNG_URI},
        {"type": "file", "file": {"file_data": PNG_URI, "filename": "a.png"}},
        {"type": "file", "file": {"file_data": PNG_URI, "detail": "original"}},
    ],
    ids=["object", "string", "bare base64", "input_image", "file", "file with detail"],
)
def test_an_image_is_seen(client: openai.OpenAI, part: Any) -> None:
    answer = ask(client, part)
    assert saw(answer.parse().choices[0].message.content, "64x48")
    assert "x-mlx-router-notice" not in answer.headers


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": PDF_URI, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": PDF_BASE64, "filename": "a.pdf"}},
        {"type": "image_url", "image_url": {"url": PDF_URI}},
    ],
    ids=["file", "file in bare base64", "image_url"],
)
def test_a_long_pdf_is_seen_in_part_and_the_answer_says_so(
    client: openai.OpenAI, part: Any
) -> None:
    answer = ask(client, part)
    whole = answer.parse()
    assert saw_pages(whole.choices[0].message.content, 20)
    (notice,) = whole.model_extra["notices"]
    assert f"{PAGES} pages" in notice
    assert notice.startswith("a.pdf" if part["type"] == "file" else "The PDF")
    assert answer.headers["x-mlx-router-notice"] == notice


@pytest.mark.parametrize("kind", ["file", "image_url"])
def test_pages_of_a_pdf_may_be_named(client: openai.OpenAI, kind: str) -> None:
    inside = {"file_data" if kind == "file" else "url": PDF_URI, "pages": "2-4,23"}
    answer = ask(client, {"type": kind, kind: inside})
    assert saw_pages(answer.parse().choices[0].message.content, 4)
    assert "x-mlx-router-notice" not in answer.headers
    with pytest.raises(openai.BadRequestError, match=f"has {PAGES} pages") as caught:
        ask(client, {"type": kind, kind: {**inside, "pages": "24"}})
    assert caught.value.param == "messages.0.content.1"


def test_a_stream_has_the_notice_in_its_first_chunk(client: openai.OpenAI) -> None:
    part: Any = {"type": "file", "file": {"file_data": PDF_URI, "filename": "a.pdf"}}
    messages: Any = [{"role": "user", "content": [TEXT, part]}]
    with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
        first, *others = stream
    text = "".join(chunk.choices[0].delta.content or "" for chunk in others)
    assert saw_pages(text, 20)
    assert f"a.pdf has {PAGES} pages" in (first.model_extra or {})["notices"][0]


def test_images_of_all_turns_and_roles_are_seen_in_order(client: openai.OpenAI) -> None:
    def image(width: int) -> dict[str, Any]:
        url = data_uri(encoded(gradient(width, 32)))
        return {"type": "image_url", "image_url": {"url": url}}

    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages: Any = [
        {"role": "system", "content": [image(31), {"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image(32), {"type": "text", "text": "And?"}, image(33)]},
        {"role": "assistant", "content": [image(34)], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [image(35)]},
        {"role": "user", "content": QUESTION},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    sizes = [f"{width}x32" for width in range(31, 36)]
    assert saw(answer.choices[0].message.content, *sizes)


def test_a_model_without_vision_refuses_images(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="vision") as caught:
        ask(client, {"type": "image_url", "image_url": {"url": PNG_URI}}, model="scripted")
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", "messages")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}, ""),
        ({"type": "image_url", "image_url": {"url": "/etc/hostname"}}, ""),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}, ""),
        ({"type": "image_url", "image_url": {"url": ""}}, ""),
        ({"type": "image_url", "image_url": {"url": PNG_URI, "pages": "1"}}, ""),
        ({"type": "file", "file": {"file_data": PDF_BASE64[:200]}}, ""),
        ({"type": "file", "file": {"file_id": "file-1"}}, ".file.file_id"),
        ({"type": "image", "image": "/etc/hostname"}, ".type"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(
    client: openai.OpenAI, part: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, part)
    assert caught.value.param == "messages.0.content.1" + param
    assert str(caught.value.body["message"]).startswith("messages.0.content.1")  # type: ignore[index]


# --- Open WebUI -----------------------------------------------------------------------------


def test_open_webuis_form(scripted_server: ServerProcess) -> None:
    image = {"type": "image_url", "image_url": {"url": PNG_URI, "detail": None}}
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [TEXT, image]}],
        "stream": False,
        "chat_id": "c",
        "features": {"web_search": False},
    }
    answer = httpx.post(f"{scripted_server.url}/chat/completions", json=body)
    assert answer.status_code == 200
    assert saw(answer.json()["choices"][0]["message"]["content"], "64x48")


# --- LangChain ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "is_pdf"),
    [
        ({"type": "image_url", "image_url": {"url": PNG_URI}}, False),
        ({"type": "image", "base64": PNG_BASE64, "mime_type": "image/png"}, False),
        ({"type": "image", "url": PNG_URI}, False),
        (
            {
                "type": "file",
                "base64": PDF_BASE64,
                "mime_type": "application/pdf",
                "filename": "a.pdf",
            },
            True,
        ),
    ],
    ids=["OpenAI's", "base64", "url", "pdf"],
)
def test_langchains_blocks(scripted_server: ServerProcess, block: Any, is_pdf: bool) -> None:
    with httpx.Client() as client:
        model = ChatOpenAI(
            model=MODEL,
            base_url=scripted_server.url,
            api_key="none",  # type: ignore[arg-type]
            max_retries=0,
            http_client=client,
        )
        answer = model.invoke([HumanMessage(content=[TEXT, block])])
    assert isinstance(answer.content, str)
    assert saw_pages(answer.content, 20) if is_pdf else saw(answer.content, "64x48")


# --- Pydantic AI and OpenAI Agents ----------------------------------------------------------


@pytest.fixture
async def aclient(scripted_server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=scripted_server.url, api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("content", "is_pdf"),
    [
        (BinaryContent(PNG, media_type="image/png"), False),
        (BinaryContent(PDF, media_type="application/pdf"), True),
        (ImageUrl(url=PNG_URI), False),
    ],
    ids=["image", "pdf", "url"],
)
async def test_pydantic_ais_content(
    aclient: openai.AsyncOpenAI, content: BinaryContent | ImageUrl, is_pdf: bool
) -> None:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=aclient))
    result = await Agent(model).run([QUESTION, content])
    assert saw_pages(result.output, 20) if is_pdf else saw(result.output, "64x48")


@pytest.mark.parametrize(
    ("part", "is_pdf"),
    [
        ({"type": "input_image", "image_url": PNG_URI, "detail": "auto"}, False),
        ({"type": "input_file", "file_data": PDF_URI, "filename": "a.pdf"}, True),
    ],
    ids=["image", "pdf"],
)
async def test_openai_agents_content(aclient: openai.AsyncOpenAI, part: Any, is_pdf: bool) -> None:
    agent = agents.Agent(name="eye", model=agents.OpenAIChatCompletionsModel(MODEL, aclient))
    content = [{"type": "input_text", "text": QUESTION}, part]
    question: Any = [{"role": "user", "content": content}]
    config = agents.RunConfig(tracing_disabled=True)
    result = await agents.Runner.run(agent, question, run_config=config)
    answer = result.final_output
    assert saw_pages(answer, 20) if is_pdf else saw(answer, "64x48")


# --- URLs -----------------------------------------------------------------------------------


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server of this machine, with ``a.png`` and ``a.pdf``."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.pdf").write_bytes(PDF)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_of_the_private_network_are_fetched_if_allowed(tmp_path: Path, site: str) -> None:
    config = {"media": {"allow_private_addresses": True}}
    with (
        ServerProcess(tmp_path, "--engine", "scripted", config=config, models=tmp_path) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        image = ask(client, {"type": "image_url", "image_url": {"url": f"{site}/a.png"}}).parse()
        pdf = {"url": f"{site}/a.pdf", "pages": "1-2"}
        pages = ask(client, {"type": "image_url", "image_url": pdf}).parse()
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, {"type": "image_url", "image_url": {"url": f"{site}/none.png"}})
    assert saw(image.choices[0].message.content, "64x48")
    assert saw_pages(pages.choices[0].message.content, 2)
    assert caught.value.param == "messages.0.content.1"
