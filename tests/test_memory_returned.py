"""Unloading gives the memory back to the system, not only to MLX."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import psutil
import pytest

from benchmarks.model import FULL, make_model
from mlx_router import MLXModelManager, Settings

SWAPS = 6
MB = 2**20


def held() -> int:
    """Bytes of physical memory of this process."""
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


@pytest.mark.slow
def test_swapping_does_not_grow_the_process(tmp_path: Path) -> None:
    """Two models of 125 MB take turns in one place."""
    for number in (0, 1):
        make_model(tmp_path / f"model{number}", FULL, seed=number)
    settings = Settings.model_validate({"defaults": {"cache_size": 1, "warmup_tokens": 1}})
    with MLXModelManager(settings, model_directory=tmp_path) as manager:
        after: list[tuple[int, int, int]] = []
        for swap in range(SWAPS):
            manager.chat("ba be bi", model=f"model{swap % 2}", max_tokens=2, temperature=0)
            loaded = held()
            manager.unload(f"model{swap % 2}")
            after.append((held(), threading.active_count(), descriptors()))
            assert loaded - after[-1][0] > 100 * MB, "the weights are still there"
    memory, threads, files = zip(*after, strict=True)
    assert memory[-1] < memory[1] * 1.1
    assert threads[-1] <= threads[1]
    assert files[-1] <= files[1]
