"""Which model a name in a request means: a look-up that touches no file."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import pytest

from mlx_router.catalog import Catalog, ModelOverride
from mlx_router.catalog.names import NameIndex
from mlx_router.domain import ModelCard, ModelKind
from mlx_router.errors import ModelNotFound
from tests import models
from tests.catalog_support import make_catalog, write_model


@pytest.fixture
def named(tmp_path: Path) -> Catalog:
    for model in ("mlx-community/Qwen3-4B", "mlx-community/Llama-3.2-3B", "other/Llama-3.2-3B"):
        write_model(tmp_path / model)
    write_model(tmp_path / "Phi-4")
    fast = ModelOverride(aliases=("fast", "GPT-4o-mini"))
    return make_catalog(tmp_path, overrides={"mlx-community/Qwen3-4B": fast})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mlx-community/Qwen3-4B", "mlx-community/Qwen3-4B"),
        ("MLX-Community/qwen3-4b", "mlx-community/Qwen3-4B"),
        ("Qwen3-4B", "mlx-community/Qwen3-4B"),
        ("qwen3-4b", "mlx-community/Qwen3-4B"),
        ("fast", "mlx-community/Qwen3-4B"),
        ("gpt-4o-MINI", "mlx-community/Qwen3-4B"),
        ("other/llama-3.2-3b", "other/Llama-3.2-3B"),
        ("phi-4", "Phi-4"),
    ],
)
def test_a_model_is_found_by_id_alias_and_short_name(name: str, found: str, named: Catalog) -> None:
    assert named.resolve(name).id == found


def test_an_unknown_name_gets_the_nearest_ones(named: Catalog) -> None:
    with pytest.raises(ModelNotFound) as caught:
        named.resolve("mlx-community/Qwen3-8B")
    assert "nearest are: mlx-community/Qwen3-4B" in caught.value.message
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        named.resolve("zzzzzzzzzzzzzzzzzz")


def test_an_ambiguous_short_name_gets_the_candidates(named: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        named.resolve("llama-3.2-3b")
    assert "mlx-community/Llama-3.2-3B, other/Llama-3.2-3B" in caught.value.message
    models.empty_shard(tmp_path / "other" / "Llama-3.2-3B")
    named.refresh()
    assert named.resolve("llama-3.2-3b").id == "mlx-community/Llama-3.2-3B"


_watching = False
_touched: list[str] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and (event == "open" or event.startswith(("os.", "socket.", "glob.", "pathlib."))):
        _touched.append(event)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "mlx-community/../mlx-community/Qwen3-4B",
        "/etc/passwd",
        "~/models/x",
        "C:\\models\\x",
        "Qwen3-4B\0",
        "Qwen3-4B\n",
        "https://example.org/model",
        "file:///etc/passwd",
        "l\ud800lama",
        "x" * 257,
        "x" * 1_000_000,
        "mlx-community/Qwen3-4B/",
        "models--mlx-community--Qwen3-4B",
        "./Phi-4",
    ],
)
def test_an_odd_name_is_not_found_and_touches_no_file(name: str, named: Catalog) -> None:
    global _watching
    _touched.clear()
    sys.addaudithook(_watch)
    _watching = True
    try:
        with pytest.raises(ModelNotFound) as caught:
            named.resolve(name)
    finally:
        _watching = False
    assert _touched == []
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


def _many(count: int) -> NameIndex:
    kinds = ("Qwen3", "Llama-3.2", "gemma-3", "Mistral-Small", "DeepSeek-R1-Distill-Qwen")
    names = (f"mlx-community/{kinds[i % 5]}-{i}B-Instruct-4bit" for i in range(count))
    cards = [ModelCard(name, Path(), ModelKind.TEXT, "llama") for name in names]
    return NameIndex(cards, {})


def test_the_nearest_of_very_many_models_are_named() -> None:
    with pytest.raises(ModelNotFound) as caught:
        _many(2000).resolve("mlx-comunity/lama-3.2-1206B-Instruct-4bit")
    assert "nearest are: mlx-community/Llama-3.2-1206B-Instruct-4bit" in caught.value.message


@pytest.mark.parametrize(
    "name", ["mlx-community/Qwen3-8B-Instruct-5bit", "zzz", "q", "qwen3-" * 40]
)
def test_the_nearest_names_cost_no_noticeable_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many models there are, few are compared at length."""
    compared = 0
    ratio = difflib.SequenceMatcher.ratio

    def counted(self: difflib.SequenceMatcher[str]) -> float:
        nonlocal compared
        compared += 1
        return ratio(self)

    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", counted)
    for count in (200, 2000):
        compared = 0
        with pytest.raises(ModelNotFound):
            _many(count).resolve(name)
        assert compared <= 40
