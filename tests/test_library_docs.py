"""The examples of docs/library.md run, each as a program of its own."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.documents import ROOT, examples
from tests.embedding_models import make_embedding_model
from tests.media_support import encoded, gradient
from tests.vision_models import make_vision_model

DOCUMENT = "docs/library.md"
EXAMPLES = examples(DOCUMENT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home, with an embedding and a vision model in ~/models, and a picture."""
    home = tmp_path_factory.mktemp("home")
    make_embedding_model("bert", home / "models" / "bert")
    make_vision_model("qwen3_vl", home / "models/mlx-community/Qwen3-VL-4B-Instruct-4bit")
    (home / "photo.jpg").write_bytes(encoded(gradient(), "JPEG"))
    return home


@pytest.mark.parametrize(("where", "code"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_examples_of_the_library_run(
    where: str,
    code: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    file = home / "example.py"
    file.write_text(code)
    runpy.run_path(str(file), run_name="example")
    assert capsys.readouterr().out.strip()


def test_every_option_of_a_chat_is_named() -> None:
    from mlx_router import ChatOptions

    named = set(re.findall(r"`(\w+)`", (ROOT / DOCUMENT).read_text()))
    assert set(ChatOptions.__annotations__) <= named


def test_every_public_method_is_shown_or_has_a_twin_that_is() -> None:
    from mlx_router import MLXModelManager

    text = (ROOT / DOCUMENT).read_text()
    # What a server or a test needs, rather than a program that answers questions.
    inner = {"astart", "begin_shutdown", "generate", "embed_request", "loop", "reload", "find"}
    inner |= {"cards", "token_texts"}
    for name in dir(MLXModelManager):
        twin = name.removeprefix("a") if hasattr(MLXModelManager, name[1:]) else name
        if not name.startswith("_") and name not in inner and twin not in inner:
            assert f"{twin}(" in text or f"`{twin}`" in text or f"manager.{twin}" in text, name
