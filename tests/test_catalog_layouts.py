"""Layouts of model folders: revisions of a cache, links, other programs' folders, and downloads
that are not finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_router.catalog import Catalog
from mlx_router.catalog.stores import hugging_face_cache, lm_studio_folders
from tests.catalog_support import (
    LLAMA,
    MLX_LM_ONLY,
    hf_model,
    ids,
    inspect,
    make_catalog,
    problem_of,
    write_model,
)

# --- revisions of a Hugging Face cache --------------------------------------------------------


def test_the_revision_in_refs_main_comes_first(tmp_path: Path) -> None:
    hf_model(tmp_path / "hub", "org/model", "old")
    hf_model(tmp_path / "hub", "org/model", "new", main="old")
    assert make_catalog(tmp_path / "hub").resolve("org/model").path.name == "old"
    (tmp_path / "hub" / "models--org--model" / "refs" / "main").write_text("gone")
    snapshots = tmp_path / "hub" / "models--org--model" / "snapshots"
    os.utime(snapshots / "old", (1, 1))
    assert make_catalog(tmp_path / "hub").resolve("org/model").path.name == "new"


def test_a_revision_that_is_not_there_yet_is_said(tmp_path: Path) -> None:
    """The Hugging Face client writes refs/main first, and then downloads."""
    hf_model(tmp_path, "org/model", "old", main="new")
    catalog = make_catalog(tmp_path)
    assert catalog.resolve("org/model").path.name == "old"
    assert catalog.notes == (
        "org/model: of the revision that refs/main names nothing is there; 'old' is used",
    )


def test_a_cache_without_refs_serves_the_newest_revision(tmp_path: Path) -> None:
    for revision in ("one", "two", "three"):
        hf_model(tmp_path, "org/model", revision)
    repo = tmp_path / "models--org--model"
    (repo / "refs" / "main").unlink()
    (repo / "refs").rmdir()
    for age, revision in enumerate(("two", "three", "one")):
        os.utime(repo / "snapshots" / revision, (1000 - age, 1000 - age))
    catalog = make_catalog(tmp_path)
    assert catalog.resolve("org/model").path.name == "two"
    assert not catalog.notes


def test_an_older_revision_serves_until_the_newest_is_complete(tmp_path: Path) -> None:
    old = hf_model(tmp_path, "org/model", "old")
    new = hf_model(tmp_path, "org/model", "new")
    weights = (new / "model.safetensors").readlink()
    (new / "model.safetensors").unlink()
    partial = new.parent.parent / "blobs" / "abc.incomplete"
    partial.write_bytes(b"x")
    catalog = make_catalog(tmp_path)
    card = catalog.resolve("org/model")
    assert (card.path, card.problem) == (old, None)
    assert catalog.notes == (
        "org/model: revision new cannot be used, so old is served "
        "(the download is incomplete: model.safetensors is missing)",
    )

    partial.unlink()
    (new / "model.safetensors").symlink_to(weights)
    assert catalog.refresh()
    assert catalog.resolve("org/model").path == new
    assert not catalog.notes


def test_of_revisions_that_are_all_broken_the_newest_one_is_reported(tmp_path: Path) -> None:
    for revision in ("old", "new"):
        (hf_model(tmp_path, "org/model", revision) / "config.json").unlink()
    card = make_catalog(tmp_path).resolve("org/model")
    assert (card.path.name, card.problem) == ("new", "config.json is missing")


def test_a_download_of_which_no_file_is_there_is_noted(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x")
    catalog = make_catalog(tmp_path)
    assert ids(catalog) == []
    assert catalog.notes == ("org/model: the download is incomplete: no file is there yet",)


# --- downloads that are not finished ----------------------------------------------------------


def test_a_partial_download_says_that_it_is_incomplete(tmp_path: Path) -> None:
    snapshot = hf_model(tmp_path / "hub", "org/model")
    blobs = snapshot.parent.parent / "blobs"
    catalog = make_catalog(tmp_path / "hub")
    assert catalog.resolve("org/model").usable

    (blobs / "deadbeef.incomplete").write_bytes(b"x")
    catalog.refresh()
    assert catalog.resolve("org/model").usable, "all files are there: it is of something else"

    (snapshot / "model.safetensors").unlink()
    catalog.refresh()
    problem = catalog.resolve("org/model").problem
    assert problem == "the download is incomplete: model.safetensors is missing"

    (snapshot / "config.json").unlink()
    catalog.refresh()
    assert str(catalog.resolve("org/model").problem).startswith("the download is incomplete")

    plain = write_model(tmp_path / "plain" / "model")
    (plain / "model.safetensors").unlink()
    (plain / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (plain / ".cache" / "huggingface" / "download" / "model.incomplete").write_bytes(b"x")
    assert "download is incomplete" in problem_of(plain)


@pytest.mark.parametrize(
    "left",
    [
        "model.safetensors.part",
        "downloading_model.safetensors.part",
        "model.safetensors.partial",
        "model.safetensors.crdownload",
        "model.safetensors.download",
        "model.safetensors.abc123.incomplete",
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_what_clients_leave_of_a_download_is_known(
    left: str, with_config: bool, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "publisher" / "model")
    (folder / "model.safetensors").rename(folder / left)
    if not with_config:
        (folder / "config.json").unlink()
    catalog = make_catalog(tmp_path)
    missing = "model.safetensors" if with_config else "config.json"
    problem = catalog.resolve("publisher/model").problem
    assert problem == f"the download is incomplete: {missing} is missing"

    (folder / left).rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert catalog.refresh()
    assert catalog.resolve("publisher/model").usable


def test_a_file_that_has_its_full_size_before_its_content_is_not_used(tmp_path: Path) -> None:
    """aria2 allocates a file at once, and keeps a control file beside it until it is whole."""
    folder = write_model(tmp_path / "model")
    control = folder / "model.safetensors.aria2"
    control.write_bytes(b"")
    catalog = make_catalog(tmp_path)
    assert str(catalog.resolve("model").problem).startswith("the download is incomplete")
    control.unlink()
    catalog.refresh()
    assert catalog.resolve("model").usable


def test_a_file_that_grows_is_a_download_and_becomes_usable_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    now = 0.0
    catalog = Catalog([tmp_path], libraries=MLX_LM_ONLY, clock=lambda: now)
    caplog.set_level("INFO")
    with (folder / "model.safetensors").open("wb") as file:
        for start in range(0, len(whole), 4096):
            file.write(whole[start : start + 4096])
            file.flush()
            catalog.refresh()
            now += 1
            problem = catalog.resolve("model").problem
            done = start + 4096 >= len(whole)
            assert (problem is None) == done
            if start > 0 and not done:
                assert str(problem).startswith("the download is incomplete: model.safetensors is")
    assert len(caplog.messages) <= 4, "a line for each new number of bytes"
    assert caplog.messages[-1] == "found model (text)"


def test_a_download_that_stands_still_is_just_a_broken_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    now = 0.0
    catalog = Catalog([tmp_path], libraries=MLX_LM_ONLY, clock=lambda: now)
    for length in (1000, 2000):
        (folder / "model.safetensors").write_bytes(whole[:length])
        catalog.refresh()
    assert "download is incomplete" in str(catalog.resolve("model").problem)
    now = 60.0
    catalog.refresh()
    assert str(catalog.resolve("model").problem).startswith("model.safetensors is truncated")


# --- links ------------------------------------------------------------------------------------


def test_a_link_to_a_folder_leads_anywhere(tmp_path: Path) -> None:
    """As people do whose disk is full: whoever may write to the model directory made it."""
    write_model(tmp_path / "disk" / "big")
    snapshot = hf_model(tmp_path / "hub", "org/cached")
    root = tmp_path / "models"
    (root / "org").mkdir(parents=True)
    (root / "org" / "big").symlink_to(tmp_path / "disk" / "big")
    (root / "org" / "cached").symlink_to(snapshot)
    (root / "repo").symlink_to(tmp_path / "hub")
    (root / "again").symlink_to(root / "org")
    catalog = make_catalog(root)
    assert ids(catalog) == ["again/big", "again/cached", "org/big", "org/cached"]
    assert all(card.usable for card in catalog.cards()), [c.problem for c in catalog.cards()]


def test_a_link_out_of_the_model_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"chat_template": "tools"}')
    folder = write_model(tmp_path / "models" / "model")
    (folder / "tokenizer_config.json").symlink_to(secret)
    problem = problem_of(folder)
    assert problem.startswith(
        "tokenizer_config.json is a link to a place outside of the model directories; add the"
    )
    assert inspect(folder, roots=[tmp_path]).problem is None


def test_links_within_the_model_directories_are_followed(tmp_path: Path) -> None:
    real = write_model(tmp_path / "models" / "real")
    linked = tmp_path / "other" / "publisher" / "linked"
    linked.mkdir(parents=True)
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    catalog = make_catalog(tmp_path / "models", tmp_path / "other")
    assert ids(catalog) == ["publisher/linked", "real"]
    assert all(card.usable for card in catalog.cards())


def test_a_link_to_nothing_is_a_missing_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert problem_of(folder) == "model.safetensors is missing (a link to nothing)"


def test_links_into_other_programs_folders_are_followed(tmp_path: Path) -> None:
    real = write_model(tmp_path / "studio" / "publisher" / "model")
    linked = tmp_path / "models" / "publisher" / "model"
    linked.mkdir(parents=True)
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    refused = make_catalog(tmp_path / "models").resolve("model").problem
    assert "outside of the model directories" in str(refused)
    catalog = Catalog(
        [tmp_path / "models"], libraries=MLX_LM_ONLY, link_roots=[tmp_path / "studio"]
    )
    catalog.refresh()
    assert ids(catalog) == ["publisher/model"]
    assert catalog.resolve("model").usable


# --- where other programs keep their models ---------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"}, "/hf/hub"),
        ({"HF_HUB_CACHE": "/cache", "HF_HOME": "/hf"}, "/cache"),
        ({"HF_HUB_CACHE": ""}, "home/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hugging_face_client_has_it(
    environ: dict[str, str], place: str
) -> None:
    assert hugging_face_cache(environ, Path("home")) == Path(place)


def _settings(home: Path, folder: object) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.json").write_text(json.dumps({"downloadsFolder": folder}))


def test_lm_studios_folder_is_the_one_in_its_settings(tmp_path: Path) -> None:
    usual = tmp_path / ".lmstudio" / "models"
    assert lm_studio_folders(tmp_path) == [usual]
    usual.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    _settings(tmp_path / ".lmstudio", str(tmp_path / "disk"))
    assert lm_studio_folders(tmp_path) == [tmp_path / "disk", usual]
    moved = tmp_path / "moved"
    (moved / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{moved}\n")
    assert lm_studio_folders(tmp_path) == [moved / "models", tmp_path / "disk", usual]


def _named_pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text('{"downloadsFolder": 5}'),
        lambda file: file.write_text('{"downloadsFolder": "..\\\\models"}'),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_bytes(b"\xff\x00"),
        lambda file: file.mkdir(),
        _named_pipe,
    ],
)
def test_broken_settings_of_lm_studio_mean_its_usual_folder(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / ".lmstudio" / "models").mkdir(parents=True)
    write(tmp_path / ".lmstudio" / "settings.json")
    write(tmp_path / ".lmstudio-home-pointer")
    assert lm_studio_folders(tmp_path) == [tmp_path / ".lmstudio" / "models"]
