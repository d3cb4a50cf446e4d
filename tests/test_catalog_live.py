"""Models that come, change and go while a server runs: real processes, real models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import models
from tests.server import ServerProcess
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Path:
    """A model directory with one model, ``other``."""
    folder = tmp_path_factory.mktemp("live") / "models"
    folder.mkdir()
    models.copy_model(tiny_models / "tiny" / "llama", folder / "other")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    config = {"defaults": {"cache_size": 1, "warmup_tokens": 0}}
    with ServerProcess(folder.parent, config=config, models=folder) as running:
        yield running


def ask(server: ServerProcess, model: str) -> httpx.Response:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    return httpx.post(f"{server.url}/chat/completions", json=body, timeout=60)


def answer(server: ServerProcess, model: str) -> str:
    response = ask(server, model)
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def listed(server: ServerProcess) -> set[str]:
    models = httpx.get(f"{server.url}/models", timeout=10).json()["data"]
    return {model["id"] for model in models}


def moved_in(source: Path, target: Path) -> None:
    """A copy that is there all at once, as from another folder of the disk."""
    shutil.copytree(source, target.parent / f".{target.name}")
    (target.parent / f".{target.name}").rename(target)


def test_a_removed_model_is_served_until_it_is_evicted_and_then_unknown(
    server: ServerProcess, folder: Path
) -> None:
    moved_in(folder / "other", folder / "removed")
    before = answer(server, "removed")
    (folder / "removed").rename(folder.parent / "away")
    until_sync(lambda: "removed has changed; what is loaded" in server.output())
    assert answer(server, "removed") == before
    assert "removed" in listed(server)

    answer(server, "other")  # there is room for one
    response = ask(server, "removed")
    assert response.status_code == 404, response.text
    assert response.json()["error"]["code"] == "model_not_found"
    assert "removed" not in listed(server)
    assert answer(server, "other")


def test_a_replaced_model_is_served_as_it_was_until_it_is_evicted(
    server: ServerProcess, folder: Path
) -> None:
    moved_in(folder / "other", folder / "replaced")
    before = answer(server, "replaced")
    (folder / "replaced").rename(folder.parent / "old")
    models.make_model("llama", folder.parent / "new", seed=7)
    (folder.parent / "new").rename(folder / "replaced")
    until_sync(lambda: "replaced has changed; what is loaded" in server.output())
    assert answer(server, "replaced") == before

    answer(server, "other")
    assert answer(server, "replaced") != before, "the new weights were not loaded"


def test_a_model_that_becomes_unusable_is_served_until_it_is_evicted(
    server: ServerProcess, folder: Path
) -> None:
    moved_in(folder / "other", folder / "broken")
    before = answer(server, "broken")
    (folder / "broken" / "model.safetensors").unlink()
    until_sync(lambda: "broken has changed; what is loaded" in server.output())
    assert answer(server, "broken") == before

    answer(server, "other")
    error = ask(server, "broken").json()["error"]
    assert error["code"] == "model_corrupt"
    assert "model.safetensors is missing" in error["message"]


def test_new_models_are_noticed_though_nobody_asks(server: ServerProcess, folder: Path) -> None:
    moved_in(folder / "other", folder / "org" / "new")
    until_sync(lambda: "found org/new (text)" in server.output(), seconds=5)
    assert "org/new" in listed(server)
    shutil.rmtree(folder / "org" / "new")
    until_sync(lambda: "org/new is gone" in server.output(), seconds=5)
    assert "org/new" not in listed(server)


def test_an_unknown_name_is_looked_for_at_once(server: ServerProcess, folder: Path) -> None:
    for i in range(5):
        assert ask(server, f"new{i}").status_code == 404
        moved_in(folder / "other", folder / f"new{i}")
        assert answer(server, f"new{i}")


def test_a_model_is_usable_as_soon_as_its_copy_is_complete(
    server: ServerProcess, folder: Path
) -> None:
    models.copy_model(folder / "other", folder / "copied")
    file = folder / "copied" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    error = ask(server, "copied").json()["error"]
    assert error["code"] == "model_corrupt"
    assert "model.safetensors is truncated" in error["message"]
    file.write_bytes(whole[:2000])
    assert "the download is incomplete" in ask(server, "copied").json()["error"]["message"]
    file.write_bytes(whole)
    assert answer(server, "copied")
