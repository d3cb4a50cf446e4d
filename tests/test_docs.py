"""The documents are true: their examples run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedding_models import make_embedding_model
from tests.media_support import encoded, gradient
from tests.server import ServerProcess
from tests.vision_models import make_vision_model

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "mlx_router/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def examples(document: str) -> list[tuple[str, str]]:
    text = (ROOT / document).read_text()
    return [
        (f"{document}:{text[: match.start()].count(chr(10)) + 1}", match.group(1))
        for match in BLOCK.finditer(text)
    ]


def run(code: str, folder: Path) -> str:
    """Run an example as a program; what it prints."""
    file = folder / "example.py"
    file.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home, with an embedding and a vision model in ~/models, and a picture."""
    make_embedding_model("bert", tmp_path / "models" / "bert")
    make_vision_model("qwen3_vl", tmp_path / "models/mlx-community/Qwen3-VL-4B-Instruct-4bit")
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(), "JPEG"))
    return tmp_path


LIBRARY = [
    example
    for document in ("README.md", "docs/library.md")
    for example in examples(document)
    if "MLXModelManager" in example[1]
]
CLIENT = [
    example
    for document in ("README.md", "docs/api.md")
    for example in examples(document)
    if "base_url" in example[1]
]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code"), LIBRARY, ids=[where for where, _ in LIBRARY])
def test_library_examples_run(where: str, code: str, home: Path) -> None:
    assert run(code, home).strip()


@pytest.mark.parametrize(("where", "code"), CLIENT, ids=[where for where, _ in CLIENT])
def test_client_examples_run(
    where: str, code: str, demo_server: ServerProcess, tmp_path: Path
) -> None:
    code = re.sub(r'base_url="[^"]+"', f'base_url="{demo_server.url}"', code)
    code = re.sub(r'model="[^"]+"', 'model="demo"', code)
    assert run(code, tmp_path).strip()


def test_there_are_examples() -> None:
    assert len(LIBRARY) >= 8
    assert len(CLIENT) >= 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, heading in LINK.findall(document.read_text()):
        if not target.startswith(("http://", "https://")):
            file = document.parent / target if target else document
            assert file.exists(), target
            assert not heading or heading in anchors(file), f"{target}#{heading}"


def anchors(document: Path) -> set[str]:
    """What a link may have after its ``#``, as GitHub makes it of the headings."""
    headings = HEADING.findall(document.read_text())
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
