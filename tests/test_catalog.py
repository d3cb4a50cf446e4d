"""The catalog: the models of a machine, found on its disk, kept up to date, looked up by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_router.catalog import ModelOverride, inspect_folder
from mlx_router.catalog.supported import installed
from mlx_router.domain import ModelCard, ModelKind
from mlx_router.errors import ModelNotFound
from tests import models
from tests.catalog_support import (
    LLAMA,
    hf_model,
    ids,
    make_catalog,
    write_model,
)

# --- discovery ------------------------------------------------------------------------------


def test_every_layout_is_found(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_model(root / "plain")
    write_model(root / "org" / "nested")
    write_model(root / "author--dashed")
    hf_model(root, "hub-org/hub-model")
    hf_model(root, "single")
    hf_model(root / "hub", "cached/deeper")
    write_model(root / ".hidden" / "model")
    write_model(root / ".hidden-model")
    write_model(root / "org" / ".hidden-too")
    write_model(root / "a" / "b" / "too-deep")
    write_model(root / "datasets--org--data")
    (root / "file.txt").write_text("")
    (root / "empty").mkdir()
    elsewhere = write_model(tmp_path / "elsewhere" / "linked")
    (root / "link").symlink_to(elsewhere)
    (root / "linked-org").symlink_to(elsewhere.parent)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    catalog = make_catalog(root)
    assert ids(catalog) == [
        "author/dashed",
        "cached/deeper",
        "hub-org/hub-model",
        "link",
        "linked-org/linked",
        "org/nested",
        "plain",
        "single",
    ]
    assert all(card.usable for card in catalog.cards())


def test_a_link_that_loops_finds_nothing_twice(tmp_path: Path) -> None:
    write_model(tmp_path / "plain")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert ids(make_catalog(tmp_path)) == ["plain"]


def test_a_real_cache_is_read(tmp_path: Path) -> None:
    path = models.make_model("qwen3", tmp_path, layout="hf_cache", repo_id="tiny/qwen3")
    card = make_catalog(tmp_path).resolve("qwen3")
    assert (card.id, card.path, card.problem) == ("tiny/qwen3", path, None)


def test_of_two_models_with_one_id_the_first_directory_wins(tmp_path: Path) -> None:
    write_model(tmp_path / "one" / "org" / "model")
    write_model(tmp_path / "two" / "org--model")
    catalog = make_catalog(tmp_path / "one", tmp_path / "two")
    assert catalog.resolve("org/model").path == tmp_path / "one" / "org" / "model"
    assert catalog.notes == ("org/model was found twice; the first one is used",)


def test_a_missing_directory_is_a_note_and_no_error(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "plain")
    catalog = make_catalog(tmp_path / "nowhere", tmp_path / "models")
    assert ids(catalog) == ["plain"]
    assert len(catalog.notes) == 1
    assert "nowhere" in catalog.notes[0]
    assert str(tmp_path) not in catalog.notes[0]


def test_a_folder_whose_name_cannot_be_a_models_is_noted(tmp_path: Path) -> None:
    write_model(tmp_path / "two\nlines")
    write_model(tmp_path / "up..down")
    write_model(tmp_path / os.fsdecode(b"not-utf8-\xff"))
    catalog = make_catalog(tmp_path)
    assert ids(catalog) == []
    assert len(catalog.notes) == 3
    assert all(note.isascii() and note.isprintable() for note in catalog.notes)


def test_an_alias_that_is_the_id_of_another_model_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "org" / "big")
    write_model(tmp_path / "org" / "small")
    overrides = {"Org/Big": ModelOverride(aliases=("org/SMALL", "large"))}
    catalog = make_catalog(tmp_path, overrides=overrides)
    assert catalog.resolve("org/small").id == "org/small"
    assert catalog.resolve("large").id == "org/big", "a model's entry is found in any case"
    assert list(catalog.notes) == [
        "org/SMALL is an alias of org/big and the id of another model; the id comes first"
    ]
    (tmp_path / "org" / "small").rename(tmp_path / ".away")
    catalog.refresh()
    assert list(catalog.notes) == []
    assert catalog.resolve("org/small").id == "org/big"


# --- keeping up -----------------------------------------------------------------------------


def test_models_appear_change_and_vanish_without_a_restart(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    assert ids(catalog) == []
    folder = write_model(tmp_path / "org" / "model")
    assert catalog.refresh()
    assert ids(catalog) == ["org/model"]
    assert not catalog.refresh()

    models.truncate_shard(folder)
    assert catalog.refresh()
    assert not catalog.resolve("org/model").usable

    write_model(folder, {**LLAMA, "max_position_embeddings": 999})
    assert catalog.refresh()
    assert catalog.resolve("org/model").context_length == 999

    folder.rename(tmp_path / ".gone")
    assert catalog.refresh()
    assert ids(catalog) == []
    with pytest.raises(ModelNotFound, match="empty"):
        catalog.resolve("org/model")


def test_an_unchanged_folder_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "one")
    write_model(tmp_path / "two")
    catalog = make_catalog(tmp_path)
    read: list[str] = []

    def spy(path: Path, model_id: str, **options: Any) -> ModelCard | None:
        read.append(model_id)
        return inspect_folder(path, model_id, **options)

    monkeypatch.setattr("mlx_router.catalog.catalog.inspect_folder", spy)
    catalog.refresh()
    assert read == []
    write_model(tmp_path / "two", {**LLAMA, "vocab_size": 999})
    catalog.refresh()
    assert read == ["two"]


def test_reading_models_imports_no_model_library(tmp_path: Path) -> None:
    hf_model(tmp_path / "hub", "org/model")
    code = (
        "import sys, pathlib\n"
        "from mlx_router.catalog import Catalog\n"
        f"catalog = Catalog([pathlib.Path({str(tmp_path / 'hub')!r})])\n"
        "catalog.refresh()\n"
        "assert catalog.resolve('model').usable, catalog.cards()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'mlx', 'mlx_lm', 'mlx_vlm', 'transformers', 'numpy', 'torch'}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_installed_mlx_lm_is_known_by_its_files() -> None:
    from mlx_lm.utils import MODEL_REMAPPING

    text = installed().text
    assert text.renames == MODEL_REMAPPING
    assert {"llama", "qwen3", "gemma3_text", "qwen3_next", "solar_open"} <= text.modules
    assert not {"base", "cache", "switch_layers", "__init__"} & text.modules
    assert text.supports({"model_type": "mistral"})
    assert not text.supports({"model_type": "whisper"})


# --- the configuration's word -----------------------------------------------------------------


def test_the_configuration_overrides_what_the_files_say(tmp_path: Path) -> None:
    write_model(tmp_path / "org" / "model", {**LLAMA, "auto_map": {"AutoModel": "m.M"}})
    plain = make_catalog(tmp_path).resolve("org/model")
    assert not plain.usable
    card = make_catalog(
        tmp_path,
        overrides={
            "org/model": ModelOverride(
                required_bytes=123,
                context_length=777,
                supports_tools=True,
                supports_vision=True,
                trust_remote_code=True,
            )
        },
    ).resolve("org/model")
    assert card.problem is None
    assert (card.required_bytes, card.context_length) == (123, 777)
    assert card.supports_tools
    assert card.kind is ModelKind.VISION


def test_a_model_may_live_at_a_path_of_its_own(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "here")
    write_model(tmp_path / "far" / "away")
    catalog = make_catalog(
        tmp_path / "models",
        overrides={
            "mine": ModelOverride(path=tmp_path / "far" / "away", aliases=("near",)),
            "here": ModelOverride(path=tmp_path / "far" / "away"),
            "lost": ModelOverride(path=tmp_path / "nowhere"),
        },
    )
    assert ids(catalog) == ["here", "mine"]
    assert catalog.resolve("near").id == "mine"
    assert catalog.resolve("here").path == tmp_path / "far" / "away"
    assert any(note.startswith("lost:") for note in catalog.notes)
