"""Memory runs short and comes back: limits, loads and idle models follow; running answers stay."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import psutil
import pytest

from benchmarks.model import SMALL, Shape, make_model
from mlx_router import Delta, MLXModelManager, Settings, Started
from mlx_router.api.app import create_app
from mlx_router.domain import Pressure
from mlx_router.engine.device import memory
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions, scripted_cards
from mlx_router.errors import ModelLoadFailed
from mlx_router.memory import MemoryPolicy, MemorySnapshot, ResourceMonitor
from mlx_router.scheduling import scheduler
from tests.api_support import Exchange, sse
from tests.waiting import until

MB, GB = 2**20, 2**30
USER = [{"role": "user", "content": "Hello?"}]
LIMITS = {"normal": 400, "moderate": 300, "high": 200, "critical": 100}
SIZES = {"one": 1, "two": 1, "three": 1, "wide": 3, "huge": 40}  # GB


class Machine:
    """A machine of 16 GB: what its models do not hold and other programs do not use is free.
    Pressure is moderate below 8 GB, high below 6, critical below 4."""

    def __init__(self, factory: ScriptedFactory) -> None:
        self.factory = factory
        self.others = 0.0  # GB
        self.swap_used = 0  # percent
        self.reads = 0

    @property
    def held(self) -> int:
        return sum(engine.memory_bytes() for engine in self.factory.engines)

    def leave(self, available_gb: float) -> None:
        """Let other programs use so much that this is left."""
        self.others = 16 - available_gb - self.held / GB

    def snapshot(self) -> MemorySnapshot:
        self.reads += 1
        used = int(self.others * GB) + self.held
        return MemorySnapshot(
            total=16 * GB,
            available=max(16 * GB - used, 0),
            swap_total=100,
            swap_used=self.swap_used,
        )


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted models are those of SIZES, and the scheduler looks at memory often."""
    template = scripted_cards()[0]
    cards = [
        replace(template, id=name, required_bytes=int(size * GB)) for name, size in SIZES.items()
    ]
    monkeypatch.setattr("mlx_router.engine.scripted.scripted_cards", lambda: cards)
    monkeypatch.setattr(scheduler, "PRESSURE_SECONDS", 0.005)
    monkeypatch.setattr(scheduler, "SHED_SECONDS", 0.0)
    monkeypatch.setattr(scheduler, "SHED_LAST_SECONDS", 0.0)


class Router:
    """A manager, its machine, and a client of its API. ``gate`` holds all steps of its engines."""

    def __init__(self, pinned: tuple[str, ...], server: dict[str, Any]) -> None:
        self.gate = threading.Event()
        self.gate.set()
        options = {
            name: ScriptedOptions(memory_bytes=int(size * GB), step_gate=self.gate)
            for name, size in SIZES.items()
        }
        factory = ScriptedFactory(options)
        self.machine = Machine(factory)
        entries = {
            name: {"memory_pressure_max_tokens": LIMITS, "pinned": name in pinned} for name in SIZES
        }
        self.manager = MLXModelManager(
            Settings.model_validate(
                {"defaults": {"cache_size": 4}, "server": server, "models": entries}
            ),
            engine="scripted",
            factory=factory,
            monitor=ResourceMonitor(
                self.machine, MemoryPolicy(threshold_bytes=10 * GB), max_age=-1
            ),
        )
        self.app = create_app(self.manager, self.manager.settings)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url="http://localhost"
        )

    async def ask(self, model: str, **fields: Any) -> httpx.Response:
        """A chat that would go on for ever."""
        body = {"model": model, "messages": USER, "ignore_eos": True, "max_tokens": 350, **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    def stream(self, model: str, **fields: Any) -> Exchange:
        body = {"model": model, "messages": USER, "ignore_eos": True, "max_tokens": 350}
        body |= {"stream": True, "stream_options": {"include_usage": True}, **fields}
        return Exchange(self.app, json.dumps(body).encode())

    async def get(self, path: str) -> Any:
        response = await self.client.get(path)
        assert response.status_code == 200
        return response.json()

    def loaded(self) -> set[str]:
        return {info.id for info in self.manager.status().loaded}

    async def looks(self, times: int = 10) -> None:
        """Wait until the scheduler has looked at the memory so many times."""
        target = self.machine.reads + times
        await until(lambda: self.machine.reads >= target)


@asynccontextmanager
async def routing(*pinned: str, **server: Any) -> AsyncIterator[Router]:
    router = Router(pinned, server)
    async with router.manager, router.client:
        yield router
        router.gate.set()


# --- limits and what is seen of them --------------------------------------------------------

STEPS = [
    (12.0, "normal"),
    (7.9, "moderate"),
    (5.9, "high"),
    (3.9, "critical"),
    (4.1, "critical"),  # hardly above the limit of 4
    (4.3, "high"),
    (6.1, "high"),
    (6.4, "moderate"),
    (8.3, "moderate"),
    (8.5, "normal"),
]


async def test_limits_of_new_answers_follow_pressure_up_and_down() -> None:
    async with routing("one") as router:
        router.machine.leave(12)
        assert (await router.ask("one")).status_code == 200
        for available, level in STEPS:
            router.machine.leave(available)
            answer = await router.ask("one")
            expected = min(LIMITS[level], 350)
            assert answer.json()["usage"]["completion_tokens"] == expected, available
            shown = answer.headers.get("x-mlx-router-memory-pressure", "normal")
            assert shown == level
            clamped = answer.headers.get("x-mlx-router-clamped")
            assert clamped == (None if level == "normal" else f"memory pressure ({level})")
            limit = answer.headers.get("x-mlx-router-max-tokens")
            assert limit == (None if level == "normal" else str(expected))


async def test_a_stream_tells_the_pressure_it_began_under() -> None:
    async with routing("one") as router:
        assert (await router.ask("one")).status_code == 200
        router.machine.leave(5)
        exchange = router.stream("one")
        await exchange.end()
        assert exchange.headers["x-mlx-router-memory-pressure"] == "high"
        short = await router.ask("one", max_tokens=3)  # not clamped, and told all the same
        assert short.headers["x-mlx-router-memory-pressure"] == "high"
        assert "x-mlx-router-clamped" not in short.headers


async def test_health_and_models_tell_levels_and_limits() -> None:
    async with routing("one") as router:
        for available, level in STEPS:
            router.machine.leave(available)
            health = await router.get("/v1/health")
            assert health["memory_pressure"] == level
            assert health["memory_limits"]["high_below_gb"] == 6.0
            model = (await router.get("/v1/models/one"))["parameters"]
            assert model["memory_pressure_max_tokens"] == LIMITS
            assert model["max_tokens"] == LIMITS["normal"]
            assert model["max_tokens_now"] == LIMITS[level]


async def test_every_header_of_an_answer_is_exposed_to_web_pages() -> None:
    async with routing(cors_origins=["https://chat.example"]) as router:
        assert (await router.ask("one")).status_code == 200
        router.machine.leave(5)
        body = {"model": "one", "messages": USER, "max_tokens": 1000, "verbosity": "low"}
        answer = await router.client.post(
            "/v1/chat/completions", json=body, headers={"origin": "https://chat.example"}
        )
    ours = {name for name in answer.headers if name.startswith("x-mlx-router-")}
    expected = {f"x-mlx-router-{name}" for name in ("memory-pressure", "clamped", "ignored")}
    assert expected <= ours
    assert ours <= set(answer.headers["access-control-expose-headers"].split(", "))


# --- running answers ------------------------------------------------------------------------


async def test_a_running_answer_keeps_its_limit_and_its_model() -> None:
    async with routing() as router:
        assert (await router.ask("one")).status_code == 200
        router.gate.clear()
        running = router.stream("one")
        await until(lambda: router.manager.status().loaded[0].active == 1)
        router.machine.leave(1)
        await router.looks()
        assert router.loaded() == {"one"}
        newcomer = asyncio.create_task(router.ask("one"))
        await until(lambda: router.manager.status().loaded[0].active == 2)
        router.gate.set()
        assert sse(await running.end())[-1]["usage"]["completion_tokens"] == 350
        assert (await newcomer).json()["usage"]["completion_tokens"] == LIMITS["critical"]


async def test_under_critical_pressure_loads_are_refused_and_answers_go_on() -> None:
    async with routing() as router:
        assert (await router.ask("one")).status_code == 200
        router.gate.clear()
        running = router.stream("one")
        await until(lambda: router.manager.status().loaded[0].active == 1)
        router.machine.leave(2.5)  # two would fit, even without what one holds
        refused = await router.ask("two")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "insufficient_memory"
        assert "critical (2.5 GB available" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        model = (await router.get("/v1/models/two"))["memory_requirements"]
        assert model["can_load_now"] is False
        assert "critical" in model["load_status_reason"]
        router.gate.set()
        assert sse(await running.end())[-1]["usage"]["completion_tokens"] == 350
        router.machine.swap_used = 95  # the system, too, is critically short now
        await until(lambda: not router.loaded())
        router.machine.swap_used = 0
        router.machine.leave(4.1)  # not yet: it could be below 4 again in a moment
        assert (await router.ask("two")).status_code == 503
        router.machine.leave(4.3)
        assert (await router.ask("two")).status_code == 200


async def test_a_load_that_relieves_critical_pressure_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Idle models go for it."""
    monkeypatch.setattr(scheduler, "SHED_LAST_SECONDS", 60.0)
    async with routing() as router:
        assert (await router.ask("wide")).status_code == 200
        router.machine.leave(3)
        assert (await router.ask("one")).status_code == 200
        assert router.loaded() == {"one"}


# --- idle models ----------------------------------------------------------------------------


async def load(router: Router, *names: str) -> None:
    for name in names:
        assert (await router.ask(name, max_tokens=1)).status_code == 200
    assert router.loaded() == set(names)


async def test_idle_models_go_the_least_recently_used_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "mlx_router.runtime.residents")
    async with routing() as router:
        await load(router, "three", "one", "two")
        assert (await router.ask("three")).status_code == 200
        router.machine.leave(7)
        await router.looks()
        assert router.loaded() == {"one", "two", "three"}, "moderate pressure unloads nothing"
        router.machine.leave(0.5)  # critical even when all of them are gone
        await until(lambda: router.loaded() == {"three"})
        await router.looks()
        assert router.loaded() == {"three"}, "the latest one stays for as long as the system copes"
        router.machine.swap_used = 95
        await until(lambda: not router.loaded())
    gone = [record.getMessage() for record in caplog.records if "unloaded" in record.message]
    assert gone == ["unloaded one", "unloaded two", "unloaded three"]


async def test_caches_are_dropped_when_memory_runs_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "SHED_SECONDS", 60.0)
    async with routing() as router:
        await load(router, "one")
        (engine,) = router.machine.factory.engines
        router.machine.leave(7)
        await router.looks()
        assert engine.caches_dropped == 0
        router.machine.leave(5)
        await until(lambda: engine.caches_dropped == 1)
        await router.looks()
        assert engine.caches_dropped == 1, "once in a while, not at every look"
        assert router.loaded() == {"one"}


async def test_the_latest_model_stays_under_high_pressure() -> None:
    async with routing() as router:
        await load(router, "one", "two", "three")
        router.machine.leave(4.5 - 2)  # 4.5 when the other two are gone: still high
        await until(lambda: router.loaded() == {"three"})
        await router.looks()
        assert router.manager.status().pressure is Pressure.HIGH
        assert router.loaded() == {"three"}


async def test_no_more_models_go_than_it_takes() -> None:
    async with routing() as router:
        await load(router, "one", "two", "three")
        router.machine.leave(5.9)  # one of them more, and it is moderate
        await until(lambda: router.loaded() == {"two", "three"})
        await router.looks()
        assert router.manager.status().pressure is Pressure.MODERATE
        assert router.loaded() == {"two", "three"}


async def test_pinned_models_stay_whatever_the_pressure() -> None:
    async with routing("one", "three") as router:
        await load(router, "one", "two", "three")
        router.machine.leave(0.5)
        await until(lambda: router.loaded() == {"one", "three"})
        await router.looks()
        assert router.manager.status().pressure is Pressure.CRITICAL
        assert router.loaded() == {"one", "three"}


async def test_memory_that_hovers_around_a_limit_unloads_once() -> None:
    async with routing() as router:
        await load(router, "one", "two")
        router.machine.leave(5.9)
        others, levels = router.machine.others, []
        for swing in [0.15, -0.15] * 5:
            router.machine.others = others + swing
            await router.looks(3)
            levels.append(router.manager.status().pressure)
        assert sum(a is not b for a, b in pairwise(levels)) <= 1
        assert router.loaded() == {"two"}


# --- loads that cannot be -------------------------------------------------------------------


async def test_a_model_larger_than_memory_is_refused_and_nothing_is_evicted_for_it() -> None:
    async with routing("three") as router:
        await load(router, "one", "two", "three")
        made = len(router.machine.factory.engines)
        refused = await router.ask("huge")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        error = refused.json()["error"]
        assert error["code"] == "insufficient_memory"
        assert "needs 48.0 GB" in error["message"]  # 40 GB with the safety margin
        assert "room for 15.0 GB" in error["message"]  # all but the pinned one
        for name in ("one", "two", "three"):
            assert f"{name} (1.0 GB)" in error["message"]
        assert router.loaded() == {"one", "two", "three"}
        assert len(router.machine.factory.engines) == made
        assert (await router.ask("two")).status_code == 200


@pytest.mark.slow
@pytest.mark.alone
def test_a_load_that_runs_out_of_memory_gives_it_back_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are in memory when MLX's allocator raises, as it does when there is no more."""
    make_model(tmp_path / "small", SMALL)
    make_model(tmp_path / "large", Shape(hidden=768, layers=1, feed_forward=4096))  # 64 MB
    evaluate = mx.eval
    # pytest keeps what is logged, and with its traceback the weights.
    monkeypatch.setattr(logging.getLogger("mlx_router.engine.text"), "disabled", True)

    def run_out(*arrays: Any) -> None:
        evaluate(*arrays)
        if threading.current_thread().name == "engine large":
            held.append(memory().active)
            raise RuntimeError("[malloc_or_wait] Unable to allocate 999999 bytes.")

    held: list[int] = []
    ask: dict[str, Any] = {"model": "small", "max_tokens": 100, "temperature": 0}
    with MLXModelManager(model_directory=tmp_path) as manager:
        alone = manager.chat("ba be bi", **ask).content
        gc.collect()
        active, resident = memory().active, psutil.Process().memory_info().rss
        stream = manager.stream("ba be bi", **ask)
        first = next(stream)
        with monkeypatch.context() as patched:
            patched.setattr(mx, "eval", run_out)
            with pytest.raises(ModelLoadFailed, match="large"):
                manager.load("large")
        rest = [event.content for event in stream if isinstance(event, Delta)]
        assert isinstance(first, Started)
        assert "".join(rest) == alone
        gc.collect()
        assert held
        assert held[0] > active + 50 * MB, "the weights were in memory"
        assert memory().active < active + 5 * MB
        assert psutil.Process().memory_info().rss < resident + 20 * MB
        assert [info.id for info in manager.status().loaded] == ["small"]
        assert manager.chat("ba be bi", "large", max_tokens=1)
