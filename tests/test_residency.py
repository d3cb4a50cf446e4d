"""Which models stay in memory, and for how long: what the config says, as the manager does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlx_router.config import Settings
from mlx_router.domain import ModelState
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import InsufficientMemory
from mlx_router.runtime.manager import MLXModelManager
from tests.waiting import until_sync


@contextmanager
def manager_of(**config: Any) -> Iterator[MLXModelManager]:
    settings = Settings.model_validate(config)
    with MLXModelManager(settings, engine="scripted", factory=ScriptedFactory()) as manager:
        yield manager


def state(manager: MLXModelManager, model: str) -> ModelState:
    return manager.model(model).state


def test_an_idle_model_is_unloaded_after_its_ttl() -> None:
    with manager_of(models={"scripted": {"ttl_seconds": 0.2}}) as manager:
        manager.chat("Hello?", model="scripted")
        manager.chat("Hello?", model="scripted-2")
        until_sync(lambda: state(manager, "scripted") is ModelState.UNLOADED)
        assert state(manager, "scripted-2") is ModelState.READY
        assert manager.chat("Hello?", model="scripted").content


def test_a_models_own_ttl_comes_before_its_groups() -> None:
    with manager_of(
        groups={"g": {"idle_unload_minutes": 0.2 / 60}},
        models={"scripted": {"group": "g"}, "scripted-2": {"group": "g", "ttl_seconds": 3600}},
    ) as manager:
        manager.load("scripted")
        manager.load("scripted-2")
        until_sync(lambda: state(manager, "scripted") is ModelState.UNLOADED)
        assert state(manager, "scripted-2") is ModelState.READY


def test_a_group_bounds_how_many_of_its_members_are_loaded() -> None:
    with manager_of(
        groups={"g": {"max_loaded": 1}},
        models={"scripted": {"group": "g"}, "scripted-2": {"group": "g"}},
    ) as manager:
        manager.load("scripted")
        manager.load("scripted-2")
        assert state(manager, "scripted") is ModelState.UNLOADED
        assert state(manager, "scripted-2") is ModelState.READY


def test_a_pinned_model_keeps_its_place_and_is_named_to_who_wants_it() -> None:
    with manager_of(defaults={"cache_size": 1}, models={"scripted": {"pinned": True}}) as manager:
        manager.load("scripted")
        with pytest.raises(InsufficientMemory, match=r"pinned models fill cache_size.*scripted \("):
            manager.chat("Hello?", model="scripted-2")
        manager.unload("scripted")  # who asks for it by name gets it
        assert manager.chat("Hello?", model="scripted-2").content


def test_a_model_that_an_answer_waits_for_is_not_warmed_up_first() -> None:
    """The answer is the warm-up; a load on its own does it."""
    factory = ScriptedFactory(ScriptedOptions())
    settings = Settings.model_validate({"defaults": {"warmup_tokens": 3}})
    with MLXModelManager(settings, engine="scripted", factory=factory) as manager:
        manager.chat("Hello?", model="scripted")
        manager.load("scripted-2")
        assert [engine.warmed_up for engine in factory.engines] == [0, 3]
