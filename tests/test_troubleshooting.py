"""docs/troubleshooting.md quotes what is really said: each symptom is brought about, and its
message is compared with the document's."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlx_router.cli.checks import machine
from mlx_router.domain import Pressure
from mlx_router.runtime.limits import decide_max_tokens
from tests.api_support import USER
from tests.documents import ROOT, sections
from tests.server import ServerProcess
from tests.symptoms import DEMO, PATIENT, SYMPTOMS, World, ask

DOCUMENT = ROOT / "docs/troubleshooting.md"
QUOTES = {
    heading: [
        " ".join(quote.split()) for quote in re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)
    ]
    for heading, text in sections(DOCUMENT, 3).items()
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("damaged")
    models = folder / "models" / "org"
    for name in ("small", "huge", "short", "half", "cut", "old", "new"):
        shutil.copytree(DEMO, models / name)
    weights = {name: models / name / "model.safetensors" for name in ("half", "cut", "old")}
    weights["half"].unlink()
    weights["cut"].write_bytes(weights["cut"].read_bytes()[:100_000])
    weights["old"].rename(models / "old" / "pytorch_model.bin")
    config = models / "new" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "newest"}))
    (models / "gguf").mkdir()
    (models / "gguf" / "model.gguf").write_bytes(b"GGUF")
    entries = {
        "org/huge": {"required_memory_gb": 90_000},
        "org/short": {"context_length": 100},
        "org/small": {"max_tokens": 20},
    }
    settings = {"models": entries, "defaults": {"enable_function_calling": False}}
    with ServerProcess(folder, config=settings, models=folder / "models") as process:
        yield process


@pytest.fixture
def world(
    server: ServerProcess,
    scripted_server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> World:
    monkeypatch.chdir(tmp_path)
    return World(server, scripted_server, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("heading", [heading for heading, quotes in QUOTES.items() if quotes])
async def test_the_message_of_a_symptom_is_the_one_that_is_quoted(
    heading: str, world: World
) -> None:
    found = SYMPTOMS[heading](world)
    said = await found if inspect.isawaitable(found) else found
    patterns = [re.escape(quote).replace("…", ".+") for quote in QUOTES[heading]]
    for text in said:
        line = " ".join(text.split())
        assert any(re.fullmatch(pattern, line) for pattern in patterns), line
    for pattern in patterns:
        assert any(re.fullmatch(pattern, " ".join(text.split())) for text in said), pattern


def test_every_symptom_is_in_the_document() -> None:
    assert set(SYMPTOMS) == {heading for heading, quotes in QUOTES.items() if quotes}


def test_the_header_of_a_clamped_answer_has_the_reason_of_the_document(world: World) -> None:
    text = sections(DOCUMENT, 3)["The answer is cut short"]
    answer = world.ask("org/small", max_tokens=5000)
    assert answer.headers["x-mlx-router-max-tokens"] == "20"
    reasons = {answer.headers["x-mlx-router-clamped"]}
    asked = world.ask("org/short", max_tokens=5000, messages=USER)
    reasons.add(asked.headers["x-mlx-router-clamped"])
    assert "x-mlx-router-clamped" not in world.ask("org/small", max_tokens=5).headers
    limit = decide_max_tokens(
        500,
        model_limit=1000,
        pressure_limit=100,
        pressure=Pressure.HIGH,
        context_length=1000,
        prompt_tokens=10,
    )
    reasons.add(re.sub(r"\(.*\)", "(…)", limit.clamped or ""))
    assert len(reasons) == 3
    for reason in reasons:
        assert f"| `{reason}` |" in text


def test_a_changed_beginning_of_a_prompt_is_computed_anew(world: World) -> None:
    def cached(system: str) -> int:
        messages = [{"role": "system", "content": system + " Be brief. " * 20}, *USER]
        answer = world.ask("org/small", messages=messages, max_tokens=1).json()
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    cached("It is Monday, 10:41.")
    assert cached("It is Monday, 10:41.") > 60
    assert cached("Monday it is, 10:42.") < 20


def test_where_no_pdf_can_be_drawn_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    find, missing = importlib.util.find_spec, {"pdf2image", "pypdfium2"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    findings = {f.name: f for f in machine.images(PATIENT)}
    quoted = f"`mlx-router doctor` says `PDFs: {findings['PDFs'].text}`"
    assert quoted in sections(DOCUMENT, 3)["PDFs cannot be drawn"]


def test_streams_tell_nginx_not_to_collect_them(scripted_server: ServerProcess) -> None:
    text = sections(DOCUMENT, 3)["A stream comes in one piece, or ends early"]
    answer = ask(scripted_server, model="scripted", stream=True)
    with httpx.stream("GET", f"{scripted_server.base}/hub/events", timeout=20) as events:
        for response in (answer, events):
            assert f"`x-accel-buffering: {response.headers['x-accel-buffering']}`" in text
