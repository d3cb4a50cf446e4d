"""Computed prompts on disk: how much is kept, and who waits for whom."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from mlx_router.engine.prefix import disk as disk_module
from mlx_router.engine.prefix import packing
from mlx_router.engine.prefix.cache import text_key
from mlx_router.engine.prefix.disk import PrefixDisk
from tests.prefix_disk_support import (
    IDS,
    PLENTY,
    files,
    held,
    in_order,
    keep,
    longest,
    opened,
    read,
    rows_cache,
    settled,
)
from tests.waiting import until_sync

# --- the budget -------------------------------------------------------------------------------


def test_what_was_used_last_stays_within_the_budget(tmp_path: Path) -> None:
    prompts = [[start, *IDS[1:600]] for start in range(5)]
    keep(tmp_path, prompts[0], rows_cache(prompts[0]))
    budget = int(3.9 * sum(file.stat().st_size for file in files(tmp_path)))
    for ids in prompts[1:3]:
        keep(tmp_path, ids, rows_cache(ids), max_bytes=budget)
    with opened(tmp_path, max_bytes=budget) as disk:
        assert read(disk, prompts[0], 512) is not None  # and so it is used last
        disk.write("", text_key(prompts[3]), rows_cache(prompts[3]), {})
        settled(disk, prompts[3], 512)
        assert sum(file.stat().st_size for file in files(tmp_path)) <= budget
        assert longest(disk, prompts[1]) < 512
        assert [longest(disk, prompts[number]) for number in (0, 3)] == [512, 512]


def test_the_end_of_a_prompt_goes_before_its_beginning(tmp_path: Path) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    times = [file.stat().st_mtime_ns for file in in_order(tmp_path)]
    assert times == sorted(times, reverse=True)
    with opened(tmp_path) as disk:
        assert read(disk, IDS, 768) is not None
    read_at = [file.stat().st_mtime_ns for file in in_order(tmp_path)]
    assert all(later > earlier for later, earlier in zip(read_at[:3], times, strict=False))
    assert read_at == sorted(read_at, reverse=True)
    one = files(tmp_path)[0].stat().st_size
    keep(tmp_path, [7] * 300, rows_cache([7] * 300), max_bytes=4 * one)
    with opened(tmp_path) as disk:
        assert longest(disk, [7] * 300) == 256
        assert longest(disk, IDS) >= 256


def test_a_prompt_larger_than_the_budget_keeps_its_beginning(tmp_path: Path) -> None:
    keep(tmp_path, IDS, rows_cache(IDS), max_bytes=100_000)
    with opened(tmp_path, max_bytes=100_000) as disk:
        assert longest(disk, IDS) == 256
    keep(tmp_path / "none", IDS, rows_cache(IDS), max_bytes=1000)
    assert files(tmp_path / "none") == []


def test_without_a_budget_nothing_is_touched(tmp_path: Path) -> None:
    threads = threading.active_count()
    folder = tmp_path / "disk"
    with opened(folder, max_bytes=0) as disk:
        assert threading.active_count() == threads
        assert not disk.enabled
        disk.write("", text_key(IDS), rows_cache(IDS), {})
        assert longest(disk, IDS) == 0
        assert read(disk, IDS, 256) is None
    assert not folder.exists()


# --- the thread -------------------------------------------------------------------------------


class Slow:
    """Writes wait for ``go``; ``begun`` when the first has come so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        pack = packing.Snapshot.pack

        def wait(*args: Any, **given: Any) -> None:
            self.begun.set()
            assert self.go.wait(60)
            pack(*args, **given)

        monkeypatch.setattr(packing.Snapshot, "pack", wait)


def test_a_read_comes_before_writes_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    slow = Slow(monkeypatch)
    with opened(tmp_path) as disk:
        for start in range(3):
            ids = [5000 + start, *IDS]
            disk.write("", text_key(ids), rows_cache(ids), {})
        assert slow.begun.wait(60)
        result = disk.read("", text_key(IDS), 1024)
        written: list[int] = []
        result.add_done_callback(lambda _: written.append(len(files(tmp_path))))
        slow.go.set()
        assert held(result.result(60)) == IDS[:1024]
        until_sync(lambda: bool(written))  # callbacks come after whoever waits
        assert written == [5], "no more than the file that was being written came before it"


def test_a_read_that_nobody_waits_for_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, IDS, rows_cache(IDS))
    slow = Slow(monkeypatch)
    with opened(tmp_path) as disk:
        disk.write("", text_key([1, *IDS]), rows_cache([1, *IDS]), {})
        assert slow.begun.wait(60)
        result = disk.read("", text_key(IDS), 1024)
        assert result.cancel()
        slow.go.set()
        assert held(read(disk, IDS, 1024)) == IDS[:1024]


def test_what_waits_to_be_written_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "_QUEUED", 3 * rows_cache(IDS)[0].nbytes)
    slow = Slow(monkeypatch)
    prompts = [[5000 + start, *IDS] for start in range(8)]
    with opened(tmp_path) as disk:
        disk.write("", text_key(prompts[0]), rows_cache(prompts[0]), {})
        assert slow.begun.wait(60)
        for ids in prompts[1:]:
            disk.write("", text_key(ids), rows_cache(ids), {})
        slow.go.set()
    with opened(tmp_path) as disk:
        found = [longest(disk, ids) for ids in prompts]
    assert found == [1024, 0, 0, 0, 0, 1024, 1024, 1024]


def test_close_writes_what_waits_for_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    disk = PrefixDisk(tmp_path, PLENTY, "model")
    disk.write("", text_key(IDS), rows_cache(IDS), {})
    assert slow.begun.wait(60)
    waiting = disk.read("", text_key(IDS), 256)
    closing = threading.Thread(target=disk.close, args=(0.0,))
    closing.start()
    until_sync(lambda: disk.read("", text_key(IDS), 256).done())  # it is closing
    slow.go.set()
    closing.join(60)
    assert not closing.is_alive()
    assert len(files(tmp_path)) == 1, "the file that was being written, and no other"
    assert waiting.result(60) is None
    disk.write("", text_key(IDS), rows_cache(IDS), {})
    disk.close(0.0)
    assert len(files(tmp_path)) == 1
    assert not any(thread.name == "prefix-disk" for thread in threading.enumerate())


def test_what_was_written_or_read_stays_in_memory_no_longer(tmp_path: Path) -> None:
    before = mx.get_active_memory()
    with opened(tmp_path) as disk:
        disk.write("", text_key(IDS), [*rows_cache(IDS), ArraysCache(1)], {})
        settled(disk, IDS, len(IDS))
        assert read(disk, IDS, len(IDS)) is not None
        until_sync(lambda: mx.get_active_memory() <= before)
