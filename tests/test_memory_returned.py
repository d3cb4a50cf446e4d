"""Unloading gives the memory back to the system, not only to MLX; and threads and descriptors."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import cast

import httpx
import mlx.core as mx
import psutil
import pytest

from mlx_router import MLXModelManager, Settings
from tests.models import make_model
from tests.server import ServerProcess, Usage
from tests.soak import SCALE, times

SWAPS = times(24)
MB = 10**6


@pytest.fixture(scope="module")
def large_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two models of 300 MB, ``large0`` and ``large1``. They take as long to load as others of their
    size, and answer as fast as small ones: nearly all is experts, of which two compute a token."""
    folder = tmp_path_factory.mktemp("large_models")
    make_large(folder / "large0")
    shutil.copytree(folder / "large0", folder / "large1")
    yield folder
    shutil.rmtree(folder)


def make_large(folder: Path) -> None:
    """A small mixture of experts whose experts are there many times, and are wide."""
    make_model("qwen3_next", folder, changes={"moe_intermediate_size": 512})
    copies = 96
    file, config_file = folder / "model.safetensors", folder / "config.json"
    weights = cast("dict[str, mx.array]", mx.load(str(file)))
    for name, value in weights.items():
        if "switch_mlp" in name or "mlp.gate." in name:
            weights[name] = mx.concatenate([value] * copies)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "num_experts": config["num_experts"] * copies}))
    assert 280 * MB < file.stat().st_size < 320 * MB


@pytest.mark.slow
@pytest.mark.timeout(600 * SCALE)
def test_many_swaps_leave_the_process_as_it_was(large_models: Path, tmp_path: Path) -> None:
    """Two models take turns in one place, by every request."""
    config = {"defaults": {"cache_size": 1, "warmup_tokens": 0}}
    after: list[Usage] = []
    with (
        ServerProcess(tmp_path, config=config, models=large_models) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for swap in range(SWAPS):
            answer = client.post(
                "/completions",
                json={"model": f"large{swap % 2}", "prompt": "Hello", "max_tokens": 1},
            )
            assert answer.status_code == 200, answer.text
            after.append(server.usage())
        assert server.output().count("unloaded large") >= SWAPS - 1, "they were to take turns"
    series = "\n".join(f"{number:3} {usage}" for number, usage in enumerate(after))
    first, last = after[1], after[-1]
    assert first.memory > 300 * MB, f"no model was loaded\n{series}"
    assert last.memory < 1.1 * first.memory, series
    for name in ("threads", "descriptors"):  # of some moments: files are open while one is read
        held = [getattr(usage, name) for usage in after]
        assert median(held[-10:]) <= max(held[1:11]), f"{name}\n{series}"


@pytest.mark.slow
@pytest.mark.alone
def test_an_unloaded_model_leaves_no_memory_behind(large_models: Path) -> None:
    def held() -> int:
        gc.collect()
        resident: int = psutil.Process().memory_info().rss
        return resident

    settings = Settings.model_validate({"defaults": {"warmup_tokens": 0}})
    with MLXModelManager(settings, model_directory=large_models) as manager:
        for model in ("large0", "large1", "large0"):
            manager.chat("Hello", model=model, max_tokens=1)
            loaded = held()
            manager.unload(model)
            assert loaded - held() > 270 * MB
