"""helper_tools/mlx_lmstudio_linker.py, in homes of its own. No LM Studio is run."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

import mlx_router
from mlx_router.cli.terminal import Terminal
from tests.helper_support import Tool, helper_module
from tests.models import copy_model, truncate_shard

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
MODEL = "tiny/qwen3"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, whose architecture is qwen3."""
    return copy_model(DEMO, tmp_path_factory.mktemp("source") / "qwen3")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLX_MODEL_DIR", raising=False)
    return tmp_path


@pytest.fixture
def models(home: Path, source: Path) -> Path:
    """The model directory, with one model."""
    copy_model(source, home / "models" / MODEL)
    return home / "models"


@pytest.fixture
def studio(home: Path) -> Path:
    """LM Studio's model folder, empty."""
    folder = home / ".lmstudio" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    return Tool("mlx_lmstudio_linker", capfd)


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder: links by where they lead, files by their content."""
    return {
        str(entry.relative_to(folder)): os.readlink(entry)
        if entry.is_symlink()
        else str(entry.stat().st_size)
        for entry in sorted(folder.rglob("*"))
        if entry.is_symlink() or entry.is_file()
    }


def links(folder: Path) -> dict[str, str]:
    return {name: target for name, target in tree(folder).items() if target.startswith("/")}


def states(tool: Tool, *words: str) -> dict[str, str]:
    listed = tool("list", "--json", *words).json["models"]
    return {entry["id"]: entry["state"] for entry in listed}


def test_a_model_is_a_folder_of_links_to_its_files(tool: Tool, models: Path, studio: Path) -> None:
    assert states(tool) == {MODEL: "not_linked"}
    assert tool("link-all").code == 0
    expected = {f"{MODEL}/{file.name}": str(file) for file in (models / MODEL).iterdir()}
    assert links(studio) == expected
    assert not (studio / MODEL).is_symlink()
    assert states(tool) == {MODEL: "linked"}
    config = json.loads((studio / MODEL / "config.json").read_text())
    assert config["model_type"] == "qwen3"


def test_linking_twice_changes_nothing(tool: Tool, models: Path, studio: Path) -> None:
    tool("link", "qwen3")
    before = tree(studio)
    said = tool("link-all")
    assert said.code == 0
    assert "linked already" in said.out
    assert tree(studio) == before


def test_a_dry_run_changes_nothing(tool: Tool, models: Path, studio: Path) -> None:
    assert "would link 1 of 1" in tool("link-all", "--dry-run").out
    assert list(studio.iterdir()) == []
    tool("link-all")
    before = tree(studio)
    assert "would unlink" in tool("unlink-all", "--dry-run").out
    assert tree(studio) == before


def test_lm_studio_s_models_are_linked_into_ours_and_served(
    tool: Tool, home: Path, studio: Path, source: Path
) -> None:
    from mlx_router import MLXModelManager

    copy_model(source, studio / "pub/model")
    (studio / "pub/gguf").mkdir()
    (studio / "pub/gguf/model.gguf").write_bytes(b"GGUF")
    said = tool("link-all", "--to", "models")
    assert said.code == 0
    assert "not linked: pub/gguf: cannot be used" in said.err
    cards = {card.id: card for card in MLXModelManager(model_directory=home / "models").cards()}
    assert cards.keys() == {"pub/model"}
    assert cards["pub/model"].usable


def test_what_is_linked_is_not_linked_back(tool: Tool, models: Path, studio: Path) -> None:
    tool("link-all")
    before = tree(models)
    assert states(tool, "--to", "models") == {}
    assert tool("link-all", "--to", "models").code == 0
    assert tree(models) == before


def test_a_model_without_a_publisher_gets_one(tool: Tool, models: Path, studio: Path) -> None:
    copy_model(models / MODEL, models / "alone")
    assert tool("link", "alone").code == 0
    assert (studio / "local/alone/config.json").resolve() == models / "alone/config.json"
    assert tool("unlink", "alone").code == 0
    assert list(studio.iterdir()) == []


def test_two_models_of_one_place_are_a_clash_and_the_first_one_keeps_it(
    tool: Tool, models: Path, studio: Path
) -> None:
    copy_model(models / MODEL, models / "alone")
    copy_model(models / MODEL, models / "local/alone")
    said = tool("link-all")
    assert said.code == 1
    assert "has the same place there" in said.err
    assert set(states(tool).values()) == {"linked", "clash"}
    linked = {Path(target).parent for name, target in links(studio).items() if "alone" in name}
    assert linked == {models / "alone"}


def test_a_real_folder_of_the_same_name_is_left_alone(
    tool: Tool, models: Path, studio: Path, source: Path
) -> None:
    copy_model(source, studio / MODEL)
    before = tree(studio)
    assert states(tool) == {MODEL: "present"}
    said = tool("link", "qwen3")
    assert said.code == 0
    assert "not made by this tool" in said.err
    assert "no links" in tool.fails(1, "unlink", "qwen3")
    assert tree(studio) == before


def test_links_that_others_made_are_never_touched(
    tool: Tool, models: Path, studio: Path, home: Path
) -> None:
    """Even if they lead into our models."""
    (studio / "tiny").mkdir()
    (studio / MODEL).symlink_to(models / MODEL)
    mixed = studio / "other" / "mixed"
    mixed.mkdir(parents=True)
    (mixed / "config.json").symlink_to(models / MODEL / "config.json")
    before = tree(studio)
    tool("link-all")
    tool("unlink-all")
    assert tree(studio) == before
    assert (studio / MODEL).is_symlink()


def test_a_link_that_was_changed_since_is_not_ours_any_more(
    tool: Tool, models: Path, studio: Path, home: Path
) -> None:
    tool("link-all")
    changed = studio / MODEL / "config.json"
    changed.unlink()
    changed.symlink_to(home / "elsewhere.json")
    said = tool.fails(1, "link", "qwen3")
    assert "of another origin" in said
    assert os.readlink(changed) == str(home / "elsewhere.json")
    assert tool("unlink", "qwen3").code == 0
    assert list(links(studio)) == [f"{MODEL}/config.json"]


def test_unlinking_leaves_what_others_have_put_there(
    tool: Tool, models: Path, studio: Path
) -> None:
    tool("link-all")
    (studio / MODEL / "notes.txt").write_text("mine")
    (studio / "tiny" / "other").mkdir()
    said = tool("unlink", MODEL)
    assert said.code == 0
    assert "left alone, not made by this tool: notes.txt" in said.out
    assert tree(studio) == {f"{MODEL}/notes.txt": "4"}
    assert (studio / "tiny" / "other").is_dir()
    assert len(list((models / MODEL).iterdir())) > 3


def test_nothing_is_linked_through_a_publisher_that_leads_elsewhere(
    tool: Tool, models: Path, studio: Path
) -> None:
    (studio / "tiny").symlink_to(models / "tiny")
    before = tree(models)
    tool("link-all")
    tool("unlink-all")
    copy_model(models / MODEL, models / "tiny/second")
    assert tree(models).keys() > before.keys()
    (studio / "tiny").unlink()
    elsewhere = studio.parent / "elsewhere"
    elsewhere.mkdir()
    (studio / "tiny").symlink_to(elsewhere)
    assert "is a link to another place" in tool.fails(1, "link", "second")
    assert list(elsewhere.iterdir()) == []


def test_broken_links_are_counted_and_can_be_removed(
    tool: Tool, models: Path, studio: Path
) -> None:
    tool("link-all")
    count = len(list((models / MODEL).iterdir()))
    shutil.rmtree(models / MODEL)
    told = tool("status", "--json").json["lmstudio"]
    assert told["models"] == 1
    assert told["links"] == told["broken_links"] == count
    assert "config.json" in told["broken"][MODEL]
    assert f"{count} broken" in tool("status").out
    assert tool("unlink", "qwen3").code == 0
    assert list(studio.iterdir()) == []


def test_linking_again_follows_a_model_that_has_changed(
    tool: Tool, models: Path, studio: Path
) -> None:
    tool("link-all")
    (models / MODEL / "generation_config.json").unlink()
    (models / MODEL / "new.json").write_text("{}")
    assert states(tool) == {MODEL: "partly"}
    assert tool("link", MODEL).code == 0
    assert states(tool) == {MODEL: "linked"}
    assert (studio / MODEL / "new.json").exists()
    assert not (studio / MODEL / "generation_config.json").is_symlink()


def test_the_list_at_80_columns_has_whole_names_and_reasons_below(
    tool: Tool, models: Path, studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linker = helper_module("mlx_lmstudio_linker")
    monkeypatch.setattr(linker, "Terminal", partial(Terminal, width=80))
    long = "mlx-community/Mistral-Small-3.2-24B-Instruct-2506-4bit"
    truncate_shard(copy_model(models / MODEL, models / long))
    table, reasons = tool("list").out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["model", long, MODEL]
    assert f"{long}: cannot be used" in reasons


def test_a_model_that_cannot_be_used_is_not_linked(tool: Tool, models: Path, studio: Path) -> None:
    truncate_shard(models / MODEL)
    assert "is truncated" in tool.fails(1, "link", MODEL)
    assert tool("link-all").code == 0
    assert list(studio.iterdir()) == []


@pytest.mark.parametrize("place", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studio_s_folder_is_found_where_it_usually_is(
    tool: Tool, home: Path, models: Path, place: str
) -> None:
    (home / place).mkdir(parents=True)
    assert tool("status", "--json").json["lmstudio"]["folder"] == str(home / place)


def test_lm_studio_s_folder_is_found_where_its_settings_say(
    tool: Tool, home: Path, models: Path, studio: Path
) -> None:
    chosen = home / "elsewhere"
    chosen.mkdir()
    (studio.parent / "settings.json").write_text(json.dumps({"downloadsFolder": str(chosen)}))
    assert tool("link-all").code == 0
    assert (chosen / MODEL / "config.json").is_symlink()


def test_without_lm_studio_it_says_what_to_do(tool: Tool, models: Path, home: Path) -> None:
    assert "--lmstudio-dir" in tool.fails(1, "link-all")
    (home / "studio").mkdir()
    said = tool("link-all", "--lmstudio-dir", home / "studio")
    assert said.code == 0
    assert "model_directory" not in said.out


def test_a_folder_that_the_router_does_not_know_is_told(tool: Tool, home: Path) -> None:
    (home / "studio").mkdir()
    said = tool("link-all", "--to", "models", "--lmstudio-dir", home / "studio")
    assert "add it to defaults.model_directory" in said.out


def test_one_folder_for_both_programs_is_told(tool: Tool, studio: Path) -> None:
    said = tool.fails(2, "link-all", "--model-dir", studio)
    assert "have the same models already" in said


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ((), 2, "COMMAND"),
        (("lnik", "x"), 2, "unknown command 'lnik'"),
        (("link",), 2, "needs the name of a model"),
        (("link-all", "qwen3"), 2, "did you mean link qwen3"),
        (("link", "qwen"), 1, "The nearest are: tiny/qwen3"),
        (("unlink", "qwen3"), 1, "no links"),
    ],
)
def test_wrong_use_is_one_clear_line(
    tool: Tool, models: Path, studio: Path, words: tuple[str, ...], code: int, hint: str
) -> None:
    said = tool.fails(code, *words)
    assert hint in said
    assert len(said.splitlines()) == 1
