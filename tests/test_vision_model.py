"""docs/vision.md is true: its examples run against a real server, and its tables say what is so."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fpdf import FPDF
from PIL import Image, ImageDraw

from tests.documents import ROOT
from tests.media_support import data_uri, encoded, gradient
from tests.models import make_model
from tests.server import ServerProcess
from tests.vision_models import change_processor, make_vision_model

MODEL = "mlx-community/Qwen3-VL-4B-Instruct-4bit"  # as the documents name it
PAGES = 23  # more than are read

_SECTION = re.compile(r"^##+ (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)

Json = dict[str, Any]


def sections(document: str) -> dict[str, str]:
    _, *parts = _SECTION.split((ROOT / document).read_text())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(document: str, section: str, language: str) -> list[str]:
    found = _BLOCK.findall(sections(document)[section])
    return [code for kind, code in found if kind == language]


def drawing(shape: str, colour: str) -> Image.Image:
    image = Image.new("RGB", (160, 96), "white")
    getattr(ImageDraw.Draw(image), shape)((30, 20, 110, 80), fill=colour)
    return image


def make_pdf(pages: int, **options: Any) -> bytes:
    document = FPDF(unit="pt", format=(120, 80))
    document.set_auto_page_break(False)
    document.set_font("Helvetica", size=24)
    if options:
        document.set_encryption(**options)
    for number in range(pages):
        document.add_page()
        document.cell(text=f"page {number + 1}")
    return bytes(document.output())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who follows the documents: their model in ~/models, and the files that
    the examples name."""
    folder = tmp_path_factory.mktemp("home")
    model = make_vision_model("qwen3_vl", folder / "models" / MODEL)
    change_processor(model, size={"shortest_edge": 65_536, "longest_edge": 16_777_216})  # as it has
    shapes = {"photo": "ellipse", "before": "ellipse", "after": "rectangle", "receipt": "rectangle"}
    for name, shape in shapes.items():
        (folder / f"{name}.jpg").write_bytes(encoded(drawing(shape, "red"), "JPEG"))
    (folder / "report.pdf").write_bytes(make_pdf(PAGES))
    return folder


class _Site(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Stands for https://example.com, and has its /cat.jpg."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "cat.jpg").write_bytes(encoded(drawing("ellipse", "orange"), "JPEG"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Site, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = {
        "media": {"allow_private_addresses": True},  # where the site is
        "defaults": {"max_tokens": 128},
    }
    with ServerProcess(
        tmp_path_factory.mktemp("server"), config=config, models=home / "models"
    ) as running:
        yield running


def adapted(code: str, server: ServerProcess, site: str) -> str:
    """An example with the addresses of this test."""
    return code.replace("http://localhost:8800", server.base).replace("https://example.com", site)


def tokens(server: ServerProcess, *content: Json, model: str = MODEL) -> int:
    """What a message with this content costs."""
    body = {"model": model, "messages": [{"role": "user", "content": list(content)}]}
    answer = httpx.post(f"{server.url}/tokenize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["count"]
    return count


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def image(content: bytes, kind: str = "image/jpeg", **more: Any) -> Json:
    return {"type": "image_url", "image_url": {"url": data_uri(content, kind), **more}}


# --- curl -----------------------------------------------------------------------------------


def curl(code: str, server: ServerProcess, site: str, home: Path) -> Json:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", adapted(code, server, site)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    answer: Json = json.loads(done.stdout)
    assert "error" not in answer, answer
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] > 0
    return answer


def test_an_image_by_curl(server: ServerProcess, site: str, home: Path) -> None:
    code = blocks("docs/vision.md", "With curl", "sh")[0]
    answer = curl(code, server, site, home)
    shown = text("What is in this picture?"), image((home / "photo.jpg").read_bytes())
    assert answer["usage"]["prompt_tokens"] == tokens(server, *shown)


def test_named_pages_of_a_pdf_by_curl(server: ServerProcess, site: str, home: Path) -> None:
    code = blocks("docs/vision.md", "With curl", "sh")[1]
    answer = curl(code, server, site, home)
    pdf = image((home / "report.pdf").read_bytes(), "application/pdf", pages="2-3")
    assert answer["usage"]["prompt_tokens"] == tokens(server, text("Summarize these pages."), pdf)
    assert "notices" not in answer


def test_a_long_pdf_by_curl(server: ServerProcess, site: str, home: Path) -> None:
    code = blocks("docs/vision.md", "With curl", "sh")[2]
    answer = curl(code, server, site, home)
    pdf = image((home / "report.pdf").read_bytes(), "application/pdf", pages="1-20")
    assert answer["usage"]["prompt_tokens"] == tokens(server, text("Summarize this."), pdf)
    (notice,) = answer["notices"]
    assert notice.startswith(f"report.pdf has {PAGES} pages; the first 20 were read.")


def test_the_examples_of_the_api_by_curl(server: ServerProcess, site: str, home: Path) -> None:
    from_url, from_pdf = blocks("docs/api.md", "Images and PDFs", "sh")
    answer = curl(from_url, server, site, home)
    cat = {"type": "image_url", "image_url": {"url": f"{site}/cat.jpg", "detail": "low"}}
    assert answer["usage"]["prompt_tokens"] == tokens(server, text("What is in this picture?"), cat)
    answer = curl(from_pdf, server, site, home)
    pdf = image((home / "report.pdf").read_bytes(), "application/pdf", pages="2-4")
    assert answer["usage"]["prompt_tokens"] == tokens(server, text("Summarize pages 2 to 4."), pdf)


# --- the openai package ---------------------------------------------------------------------


@pytest.fixture
def example(
    server: ServerProcess, site: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Runs an example of the openai package, by a word in it; what its names stand for."""
    monkeypatch.chdir(home)
    first, *others = blocks("docs/vision.md", "With the openai package", "python")
    names: Json = {}

    def run(word: str | None = None) -> Json:
        exec(adapted(first, server, site), names)
        if word is not None:
            (code,) = (other for other in others if word in other)
            exec(adapted(code, server, site), names)
        return names

    yield run
    names["client"].close()


def test_an_image_by_openai(example: Any, server: ServerProcess, home: Path) -> None:
    answer = example()["answer"]
    shown = text("What is in this picture?"), image((home / "photo.jpg").read_bytes())
    assert answer.usage.prompt_tokens == tokens(server, *shown)
    assert answer.usage.prompt_tokens > 15 + tokens(server, shown[0])
    assert answer.choices[0].message.content


def test_a_url_by_openai(example: Any, server: ServerProcess, site: str) -> None:
    answer = example("cat.jpg")["answer"]
    cat = {"type": "image_url", "image_url": {"url": f"{site}/cat.jpg", "detail": "low"}}
    assert answer.usage.prompt_tokens == tokens(server, text("What is this?"), cat)


def test_a_stream_about_two_images_by_openai(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = example("stream=True")
    assert names["chunk"].choices[0].finish_reason in ("stop", "length")
    assert capsys.readouterr().out


def test_a_pdf_by_openai(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example("file_data")
    assert f"report.pdf has {PAGES} pages" in capsys.readouterr().out


def test_a_form_by_openai(example: Any) -> None:
    names = example("BaseModel")
    parsed = names["answer"].choices[0].message.parsed
    assert isinstance(parsed, names["Receipt"])
    assert (
        json.loads(names["answer"].choices[0].message.content).keys() == parsed.model_dump().keys()
    )


def test_a_tool_by_openai(example: Any) -> None:
    names = example("tool_choice")
    assert names["answer"].choices[0].finish_reason == "tool_calls"
    assert names["call"].name == "look_up_plant"
    assert json.loads(names["call"].arguments).keys() == {"name"}


def test_no_example_is_left_out() -> None:
    assert len(blocks("docs/vision.md", "With the openai package", "python")) == 6
    assert len(blocks("docs/vision.md", "With curl", "sh")) == 3


# --- the library ----------------------------------------------------------------------------


def test_a_program(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MLX_MODEL_DIR", raising=False)
    (code,) = blocks("docs/vision.md", "In a program, without a server", "python")
    names: Json = {}
    exec(code, names)
    answer = names["answer"]
    assert answer.model == MODEL
    assert answer.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 2 * 30  # two pages
    assert answer.notices == ()
    assert str(answer.usage.prompt_tokens) in capsys.readouterr().out


# --- what the tables say --------------------------------------------------------------------


def rows(section: str) -> list[list[str]]:
    lines = [line for line in sections("docs/vision.md")[section].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def number(said: str) -> int:
    return int(re.sub(r"\D", "", said))


@pytest.mark.slow
def test_a_detail_costs_what_the_table_says(
    server: ServerProcess, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Measured with the processors of the families, set as their models have them."""
    make_vision_model("qwen2_5_vl", tmp_path / "qwen2")
    change_processor(tmp_path / "qwen2", size={"shortest_edge": 3_136, "longest_edge": 12_845_056})
    photo = encoded(gradient(3000, 2400), "JPEG")
    costs = [row for row in rows("Formats and limits") if row[0][:1] == "`" and row[1][0].isdigit()]
    table = {row[0].split("`")[1]: row for row in costs}
    assert table.keys() == {"low", "auto", "high"}
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(folder, models=tmp_path) as other:
        for detail, row in table.items():
            for column, (place, model) in {2: (server, MODEL), 3: (other, "qwen2")}.items():
                without = tokens(place, text("?"), model=model)
                cost = tokens(place, text("?"), image(photo, detail=detail), model=model) - without
                assert cost == pytest.approx(number(row[column]), rel=0.03), (detail, model)


def bad(*content: Any, role: str = "user") -> list[Json]:
    return [{"role": role, "content": list(content)}]


_PNG = encoded(gradient(64, 48))
_URL = "image_url"
MISTAKES: dict[str, list[Json]] = {
    "path": bad({"type": _URL, _URL: {"url": "/home/me/photo.jpg"}}),
    "base64": bad({"type": _URL, _URL: {"url": data_uri(_PNG) + "!"}}),
    "tiff": bad({"type": _URL, _URL: {"url": data_uri(encoded(gradient(), "TIFF"))}}),
    "half": bad({"type": _URL, _URL: {"url": data_uri(_PNG[:100])}}),
    "many": bad(*[{"type": _URL, _URL: {"url": data_uri(_PNG)}}] * 65),
    "large": bad({"type": _URL, _URL: {"url": data_uri(encoded(Image.new("1", (7100, 7100))))}}),
    "encrypted": bad(
        {
            "type": "file",
            "file": {
                "file_data": base64.b64encode(
                    make_pdf(1, owner_password="o", user_password="u")
                ).decode()
            },
        }
    ),
    "no such page": bad(
        {"type": "file", "file": {"file_data": data_uri(make_pdf(2)), "pages": "3"}}
    ),
    "private": bad({"type": _URL, _URL: {"url": "http://192.168.1.1/status.png"}}),
    "context": bad(
        {
            "type": _URL,
            _URL: {"url": data_uri(encoded(gradient(1500, 1500), "JPEG")), "detail": "high"},
        }
    ),
}


@pytest.fixture(scope="module")
def strict_server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With the settings that it has by itself, and a text model besides."""
    make_model("llama", home / "models" / "text")
    with ServerProcess(tmp_path_factory.mktemp("strict"), models=home / "models") as running:
        yield running


def is_listed(message: str, code: str | None) -> bool:
    """Whether a row of the table of errors is about this one."""
    for said, _ in rows("What may go wrong")[2:]:
        words = re.sub(r"\(.*\)$", "", said).replace("`", "")
        pieces = [re.escape(piece.strip()) for piece in words.split("…")]
        if said == code or re.search(".*".join(pieces), message.replace("'", "")):
            return True
    return False


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_in_the_table(mistake: str, strict_server: ServerProcess) -> None:
    body = {"model": MODEL, "messages": MISTAKES[mistake]}
    answer = httpx.post(f"{strict_server.url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert is_listed(error["message"], error["code"]), error


def test_images_for_a_text_model_are_in_the_table(strict_server: ServerProcess) -> None:
    body = {"model": "text", "messages": bad(image(_PNG))}
    answer = httpx.post(f"{strict_server.url}/chat/completions", json=body)
    assert answer.status_code == 400
    assert is_listed(answer.json()["error"]["message"], None)
