"""What a model was observed to take corrects what was estimated, from the next refresh on."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router import MLXModelManager, Settings
from mlx_router.catalog import Catalog, ModelOverride, inspect_folder
from mlx_router.catalog.estimate import KVCost
from mlx_router.catalog.observed import (
    FILE_NAME,
    MAX_MODELS,
    Observed,
    ObservedBatching,
    ObservedMemory,
    ObservedModels,
)
from mlx_router.domain import GIB, ModelCard
from tests.catalog_support import MLX_LM_ONLY, write_model
from tests.models import make_model
from tests.server import ServerProcess

_MEMORY = ObservedMemory(weights=5_000, cache=700)
_BATCHING = ObservedBatching(batches=False, reason="it does not", versions="mlx 1, mlx-lm 2")


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.05)


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    found = inspect_folder(write_model(tmp_path / "models" / "m"), "m", libraries=MLX_LM_ONLY)
    assert found is not None
    return found


# --- the file -------------------------------------------------------------------------------


def test_what_is_put_is_there_after_a_restart(card: ModelCard, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    models = ObservedModels(folder)
    assert models.get(card) is None
    assert not folder.exists(), "it is made when there is something to write"
    models.put(card, Observed(memory=_MEMORY))
    models.put(card, Observed(batching=_BATCHING))  # and leaves the memory as it was
    assert models.get(card) == ObservedModels(folder).get(card) == Observed(_MEMORY, _BATCHING)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [file.name for file in folder.iterdir()] == [FILE_NAME]


def test_nothing_is_known_of_a_model_whose_files_have_changed(
    card: ModelCard, tmp_path: Path
) -> None:
    models = ObservedModels(tmp_path / "state")
    models.put(card, Observed(_MEMORY, _BATCHING))
    file = card.path / "config.json"
    file.write_text(file.read_text() + " ")
    changed = inspect_folder(card.path, "m", libraries=MLX_LM_ONLY)
    assert changed is not None
    assert changed.fingerprint != card.fingerprint
    assert models.get(changed) is None
    models.put(changed, Observed(memory=_MEMORY))
    assert models.get(changed) == Observed(memory=_MEMORY), "nothing is taken over"


def test_a_model_without_files_is_not_remembered(card: ModelCard, tmp_path: Path) -> None:
    models = ObservedModels(tmp_path / "state")
    models.put(replace(card, fingerprint=""), Observed(memory=_MEMORY))
    assert models.get(replace(card, fingerprint="")) is None
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "models": []}',
        b'{"version": 1, "models": {"m": null}}',
        b'{"version": 1, "models": {"m": {"fingerprint": 1}}}',
        b'{"version": 1, "models": {"m": {"fingerprint": "f", "memory": {"weights": -1}}}}',
        b'{"version": 1, "models": {"m": {"fingerprint": "f", "memory": {"weights": 1e300}}}}',
        b'{"version": 1, "models": {"m": {"fingerprint": "f", "memory": 7}}}',
        b'{"version": 1, "models": {"m": {"fingerprint": "f", "batching": {"batches": true}}}}',
        b" " * 5_000_000,
    ],
)
def test_a_broken_file_is_reported_once_and_replaced(
    content: bytes, card: ModelCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    models = ObservedModels(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert models.get(card) is None
        models.put(card, Observed(memory=_MEMORY))
    assert [FILE_NAME in record.message for record in caplog.records] == [True]
    assert ObservedModels(tmp_path).get(card) == Observed(memory=_MEMORY)


def test_a_file_of_another_version_is_passed_over(
    card: ModelCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_text('{"version": 2, "models": {"m": "other"}}')
    assert ObservedModels(tmp_path).get(card) is None
    assert not caplog.records


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_place_that_cannot_be_written_costs_a_line_in_the_log(
    place: str, card: ModelCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "file":
        (tmp_path / "state" / FILE_NAME).mkdir(parents=True)
    else:
        (tmp_path / "state").write_text("a file where the folder should be")
    models = ObservedModels(tmp_path / "state")
    models.put(card, Observed(memory=_MEMORY))
    models.put(replace(card, id="other"), Observed(memory=_MEMORY))
    assert models.get(card) == Observed(memory=_MEMORY), "known until the end of the process"
    assert len(caplog.records) == 1
    if place == "file":
        assert [file.name for file in (tmp_path / "state").iterdir()] == [FILE_NAME]


def test_the_file_stays_small(card: ModelCard, tmp_path: Path) -> None:
    entry = {"fingerprint": "f", "memory": {"weights": 1, "cache": None}, "batching": None}
    known = {f"m{i}": entry for i in range(MAX_MODELS)}
    (tmp_path / FILE_NAME).write_text(json.dumps({"version": 1, "models": known}))
    ObservedModels(tmp_path).put(card, Observed(memory=_MEMORY))
    models = json.loads((tmp_path / FILE_NAME).read_bytes())["models"]
    assert len(models) == MAX_MODELS
    assert "m0" not in models
    assert {"m1", card.id} <= models.keys()


_WRITER = """
import sys
from pathlib import Path
from mlx_router.catalog.observed import Observed, ObservedMemory, ObservedModels
from mlx_router.domain import ModelCard, ModelKind

models = ObservedModels(Path(sys.argv[1]))
for i in range(60):
    card = ModelCard(f"{sys.argv[2]}-{i}", Path(), ModelKind.TEXT, "", fingerprint="f")
    models.put(card, Observed(memory=ObservedMemory(i)))
"""


def test_two_processes_that_write_at_once_never_tear_the_file(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name])
        for name in ("one", "two")
    ]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / FILE_NAME).exists():
            json.loads((tmp_path / FILE_NAME).read_bytes())
            reads += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 0
    assert {"one-59", "two-59"} & json.loads((tmp_path / FILE_NAME).read_bytes())["models"].keys()
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_threads_that_put_at_once_lose_nothing(card: ModelCard, tmp_path: Path) -> None:
    models = ObservedModels(tmp_path)
    cards = [replace(card, id=f"m{i}") for i in range(24)]
    threads = [
        threading.Thread(target=models.put, args=(each, Observed(memory=_MEMORY))) for each in cards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = ObservedModels(tmp_path)
    assert all(fresh.get(each) == Observed(memory=_MEMORY) for each in cards)


def test_what_a_killed_process_left_is_removed_at_the_next_write(
    card: ModelCard, tmp_path: Path
) -> None:
    left, fresh = tmp_path / f"{FILE_NAME}.abc.tmp", tmp_path / f"{FILE_NAME}.def.tmp"
    for file in (left, fresh):
        file.write_text("{")
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    ObservedModels(tmp_path).put(card, Observed(memory=_MEMORY))
    assert not left.exists()
    assert fresh.exists(), "another process may be writing it"


# --- the catalog ----------------------------------------------------------------------------


def test_the_config_comes_before_what_was_observed_and_that_before_the_estimate(
    card: ModelCard, tmp_path: Path
) -> None:
    observed = ObservedModels(tmp_path / "state")
    directory = card.path.parent

    def required(**override: Any) -> int:
        overrides = {"M": ModelOverride(**override)}
        catalog = Catalog([directory], overrides, libraries=MLX_LM_ONLY, observed=observed)
        catalog.refresh()
        return catalog.resolve("m").required_bytes

    assert required() == card.required_bytes
    observed.put(card, Observed(memory=_MEMORY))
    step = card.required_bytes - card.weight_bytes - card.cache_bytes
    assert required() == 5_000 + 700 + step
    assert required(required_bytes=123) == 123


def test_what_was_observed_with_other_settings_is_not_applied(
    card: ModelCard, tmp_path: Path
) -> None:
    observed = ObservedModels(tmp_path / "state")

    def found(**override: Any) -> ModelCard:
        overrides = {"m": ModelOverride(**override)}
        catalog = Catalog([card.path.parent], overrides, libraries=MLX_LM_ONLY, observed=observed)
        catalog.refresh()
        return catalog.resolve("m")

    observed.put(found(adapter="lora"), Observed(memory=_MEMORY))
    assert found().required_bytes == card.required_bytes
    assert found(adapter="other").required_bytes == card.required_bytes
    assert found(adapter="lora").cache_bytes == 700, "a new catalog has the same"
    assert found(adapter="lora", context_length=512).cache_bytes != 700


def test_a_stated_context_length_is_what_memory_is_reckoned_for(
    card: ModelCard, tmp_path: Path
) -> None:
    def found(context: int) -> ModelCard:
        overrides = {"m": ModelOverride(context_length=context)}
        catalog = Catalog([card.path.parent], overrides, libraries=MLX_LM_ONLY)
        catalog.refresh()
        return catalog.resolve("m")

    short, long = found(512), found(2048)
    assert (short.context_length, long.context_length) == (512, 2048)
    assert short.cache_bytes == 512 * short.kv_bytes_per_token
    assert long.cache_bytes == 4 * short.cache_bytes
    assert short.required_bytes < long.required_bytes == card.required_bytes


def test_a_model_in_memory_is_corrected_without_passing_for_a_new_one(
    card: ModelCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observed = ObservedModels(tmp_path / "state")
    catalog = Catalog([card.path.parent], libraries=MLX_LM_ONLY, observed=observed)
    catalog.refresh()
    catalog.hold(["m"])
    observed.put(card, Observed(memory=_MEMORY))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert catalog.refresh()
    assert catalog.resolve("m").cache_bytes == 700
    assert not caplog.records
    assert not catalog.refresh()


# --- real models ----------------------------------------------------------------------------


def settings(state: Path, **defaults: Any) -> Settings:
    return Settings.model_validate({"defaults": {"state_directory": str(state), **defaults}})


def test_a_wrong_estimate_is_corrected_by_the_first_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("gemma3_text", tmp_path / "models" / "m")
    options: dict[str, Any] = {"model_directory": tmp_path / "models"}
    with MLXModelManager(settings(tmp_path / "a"), **options) as manager:
        right = manager.find("m")

    # A model of which the config does not tell what its cache takes.
    monkeypatch.setattr("mlx_router.catalog.inspect.kv_cost", lambda *_: KVCost())
    monkeypatch.setattr("mlx_router.catalog.inspect.conversation_bytes", lambda *_, **__: 0)
    with MLXModelManager(settings(tmp_path / "b"), **options) as manager:
        wrong = manager.find("m")
        assert (wrong.cache_bytes, wrong.required_bytes) == (0, wrong.weight_bytes)
        manager.load("m")
        eventually(lambda: manager.find("m").cache_bytes == right.cache_bytes)
        corrected = manager.find("m").required_bytes
        assert corrected == right.weight_bytes + right.cache_bytes
    with MLXModelManager(settings(tmp_path / "b"), **options) as manager:
        assert manager.find("m").required_bytes == corrected, "from the start"


def make_adapter(folder: Path, rank: int) -> Path:
    """A LoRA adapter for every linear layer of a tiny model, at its start but for one."""
    import mlx.core as mx

    folder.mkdir()
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    part = {"model.layers.0.self_attn.q_proj.lora_b": mx.zeros((rank, 64))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), part)
    return folder


def test_clients_see_what_a_model_with_an_adapter_really_takes(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "models" / "m")
    adapter = make_adapter(tmp_path / "adapter", rank=8192)
    config = {"models": {"m": {"adapter_path": str(adapter)}}}

    def required(server: ServerProcess) -> float:
        model = httpx.get(f"{server.url}/models/m").json()
        return float(model["memory_requirements"]["required_gb"])

    with ServerProcess(tmp_path, config=config, models=tmp_path / "models") as server:
        estimate = required(server)
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        httpx.post(f"{server.url}/chat/completions", json=body, timeout=60).raise_for_status()
        eventually(lambda: required(server) > estimate)
        corrected = required(server)
    file = json.loads((tmp_path / "state" / FILE_NAME).read_bytes())
    added = file["models"]["m"]["memory"]["weights"] - inspect_weights_of(tmp_path / "models" / "m")
    assert corrected - estimate == pytest.approx(added / GIB, abs=0.011)  # rounded to 0.01
    with ServerProcess(tmp_path, config=config, models=tmp_path / "models") as server:
        assert required(server) == corrected


def inspect_weights_of(folder: Path) -> int:
    card = inspect_folder(folder, "m")
    assert card is not None
    return card.weight_bytes
