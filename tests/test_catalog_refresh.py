"""Looking at the disk beside the requests: off the event loop, and never in their way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mlx_router import MLXModelManager
from mlx_router.catalog import Catalog
from mlx_router.engine.scripted import ScriptedFactory
from mlx_router.errors import ModelNotFound
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.runtime import finder
from tests.catalog_support import write_model
from tests.test_manager import MB, Memory
from tests.waiting import until


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[MLXModelManager]:
    """A manager with the models of a real directory and scripted answers."""
    monitor = ResourceMonitor(Memory(12_000 * MB), MemoryPolicy(4_000 * MB), max_age=0)
    manager = MLXModelManager(model_directory=directory, factory=ScriptedFactory(), monitor=monitor)
    async with manager, asyncio.timeout(20):
        yield manager


Looks = list[threading.Thread]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Looks]:
    """From a call of it on, looks do what it is given first, and are recorded with their threads;
    the router looks only where a request makes it."""
    monkeypatch.setattr(finder, "_REFRESH_SECONDS", 1000)
    refresh, recorded = Catalog.refresh, Looks()

    def spy_on(first: Callable[[], None] = lambda: None) -> Looks:
        def spied(self: Catalog) -> bool:
            recorded.append(threading.current_thread())
            first()
            return refresh(self)

        monkeypatch.setattr(Catalog, "refresh", spied)
        return recorded

    return spy_on


async def test_a_look_at_the_disk_never_runs_on_the_event_loop(
    tmp_path: Path, looks: Callable[..., Looks]
) -> None:
    write_model(tmp_path / "model")
    async with serving(tmp_path) as manager:
        recorded = looks()
        with pytest.raises(ModelNotFound):
            await manager.achat("Hello", "unknown")
        assert recorded
        assert threading.main_thread() not in recorded


async def test_a_model_in_memory_is_answered_for_without_a_look(
    tmp_path: Path, looks: Callable[..., Looks]
) -> None:
    write_model(tmp_path / "model")
    async with serving(tmp_path) as manager:
        await manager.achat("Hello", "model")
        recorded = looks()
        for _ in range(10):
            await manager.achat("Hello", "model")
            manager.models()
        assert recorded == []


async def test_a_name_that_can_be_no_models_costs_no_look(
    tmp_path: Path, looks: Callable[..., Looks]
) -> None:
    async with serving(tmp_path) as manager:
        recorded = looks()
        for name in ("../../etc/passwd", "/etc/passwd", "a\0b", "http://x/y", "x" * 1_000_000):
            with pytest.raises(ModelNotFound):
                await manager.achat("Hello", name)
        assert recorded == []


async def test_a_flood_of_unknown_names_shares_its_looks(
    tmp_path: Path, looks: Callable[..., Looks]
) -> None:
    async with serving(tmp_path) as manager:
        recorded = looks()
        asked = [manager.achat("Hello", f"unknown-{i}") for i in range(200)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(result, ModelNotFound) for result in results)
        assert 1 <= len(recorded) <= 3


async def test_a_volume_that_hangs_does_not_hang_requests(
    tmp_path: Path, looks: Callable[..., Looks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "_REFRESH_PATIENCE", 0.05)
    write_model(tmp_path / "model")
    release = threading.Event()
    async with serving(tmp_path) as manager:
        looks(lambda: release.wait(20) and None)
        try:
            with pytest.raises(ModelNotFound):
                await manager.achat("Hello", "unknown")
            assert (await manager.achat("Hello", "model")).content
            assert [info.card.id for info in manager.models()] == ["model"]
        finally:
            release.set()


async def test_a_fault_while_looking_leaves_what_was_known(
    tmp_path: Path, looks: Callable[..., Looks], caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path / "model")

    def fail() -> None:
        raise RuntimeError("a fault of ours")

    async with serving(tmp_path) as manager:
        looks(fail)
        with pytest.raises(ModelNotFound):
            await manager.achat("Hello", "unknown")
        assert (await manager.achat("Hello", "model")).content
    assert "a fault while looking for models" in caplog.text


async def test_the_list_of_models_is_right_though_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "_REFRESH_SECONDS", 0.01)
    async with serving(tmp_path) as manager:
        write_model(tmp_path / "model")
        await until(lambda: [info.card.id for info in manager.models()] == ["model"])
