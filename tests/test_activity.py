"""What the router counts of its requests: how they ended, how long it took, and that none stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_router import Completed, Delta, GenerationRequest, MLXModelManager, Settings, Started
from mlx_router.domain import GenerationEvent, TextPrompt
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import EngineFailed, InvalidRequest, ModelLoadFailed, RouterError
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.runtime import core as core_module
from mlx_router.telemetry.activity import Activity, LiveRequest, Phase
from mlx_router.telemetry.histogram import Histogram
from tests.test_manager import MB, Memory, chat, collect, start
from tests.waiting import until

Events = AsyncGenerator[GenerationEvent, None]


def live(manager: MLXModelManager) -> LiveRequest:
    """The only request under way."""
    (request,) = manager.activity.live.values()
    return request


async def up_to(events: Events, kind: type[GenerationEvent]) -> GenerationEvent:
    """The next event of this kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} came")


# --- how requests end -----------------------------------------------------------------------


async def test_a_request_that_is_answered_is_completed() -> None:
    async with start() as (manager, _):
        for _ in range(2):
            await collect(manager, chat(max_tokens=3))
        activity = manager.activity
    assert activity.request_count == 2
    assert {model: dict(tally.requests) for model, tally in activity.tallies.items()} == {
        "scripted": {"completed": 2}
    }


async def test_an_answer_that_is_complete_is_not_cancelled_by_who_reads_no_further() -> None:
    async with start() as (manager, _):
        events = manager.generate(chat(max_tokens=3))
        await up_to(events, Completed)
        await events.aclose()
        assert dict(manager.activity.tallies["scripted"].requests) == {"completed": 1}


@pytest.mark.parametrize(
    ("options", "request_", "model", "code"),
    [
        (None, chat(model="nothing"), "", "model_not_found"),
        (None, chat(sampling=None, max_tokens=0), "", "invalid_value"),
        (None, chat("x" * 40_000), "scripted", "context_length_exceeded"),
        (
            {"scripted": ScriptedOptions(load_error=ModelLoadFailed("no disk"))},
            chat(),
            "scripted",
            "model_load_failed",
        ),
        (ScriptedOptions(die_at_step=2), chat(), "scripted", "engine_failed"),
        (ScriptedOptions(fail_at_step=3), chat(), "scripted", "engine_failed"),
        (ScriptedOptions(step_delay=0.2), chat(timeout=0.01), "scripted", "timeout"),
    ],
)
async def test_a_failure_is_counted_by_its_code(
    options: Any, request_: GenerationRequest, model: str, code: str
) -> None:
    async with start(options) as (manager, _):
        with pytest.raises(RouterError):
            await collect(manager, request_)
        assert dict(manager.activity.tallies[model].requests) == {code: 1}
        assert manager.activity.live == {}


async def test_a_fault_of_ours_is_counted_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(core_module, "make_plan", fault)
    async with start() as (manager, _):
        with pytest.raises(ZeroDivisionError):
            await collect(manager, chat())
        assert dict(manager.activity.tallies["scripted"].requests) == {"internal_error": 1}
        assert manager.activity.live == {}


async def test_requests_of_a_router_that_ends_are_counted_as_such() -> None:
    gate = threading.Event()
    options = ScriptedOptions(step_gate=gate)
    async with start(options, defaults={"cache_size": 1}, grace_seconds=0.01) as (manager, _):
        tasks = [
            asyncio.create_task(collect(manager, chat(model=model)))
            for model in ("scripted", "scripted-2")
        ]
        await until(lambda: "queued" in [info.state for info in manager.models()])
        manager.begin_shutdown()
        with pytest.raises(RouterError):
            await collect(manager, chat())
        await asyncio.wait(tasks)
        gate.set()
        activity = manager.activity
    assert dict(activity.tallies["scripted"].requests) == {"shutting_down": 1}
    assert dict(activity.tallies["scripted-2"].requests) == {"shutting_down": 1}
    assert dict(activity.tallies[""].requests) == {"shutting_down": 1}
    assert activity.live == {}


# --- phases, and who leaves in them ---------------------------------------------------------


@asynccontextmanager
async def gated() -> AsyncIterator[tuple[MLXModelManager, threading.Event, threading.Event]]:
    """A manager whose loads and steps wait for these two."""
    load, step = threading.Event(), threading.Event()
    options = ScriptedOptions(load_gate=load, step_gate=step, step_delay=0.001)
    try:
        async with start(options) as (manager, _):
            yield manager, load, step
            load.set()
            step.set()
    finally:
        load.set()
        step.set()


async def test_a_request_goes_from_waiting_through_prefill_to_decoding() -> None:
    async with gated() as (manager, load, step):
        request = chat(max_tokens=1000, ignore_eos=True, request_id="req_1", model="SCRIPTED")
        events = manager.generate(request)
        first = asyncio.ensure_future(anext(events))
        await until(lambda: bool(manager.status().loaded))
        one = live(manager)
        assert (one.phase, one.kind, one.model) == (Phase.WAITING, "chat", "scripted")
        assert (one.request_id, one.tokens, one.tokens_per_second) == ("req_1", 0, 0.0)
        load.set()
        started = await first
        assert isinstance(started, Started)
        assert live(manager).phase is Phase.PREFILL
        assert (one.prompt_tokens, one.max_tokens) == (started.prompt_tokens, 1000)
        step.set()
        seen = [await up_to(events, Delta) for _ in range(3)]
        assert live(manager).phase is Phase.DECODING
        assert one.tokens == sum(len(d.token_ids) for d in seen if isinstance(d, Delta))
        assert 0 < one.tokens_per_second < 1000  # a step takes a millisecond
        await events.aclose()
        assert manager.activity.live == {}
        assert manager.activity.tallies["scripted"].completion_tokens == one.tokens


@pytest.mark.parametrize("phase", list(Phase))
async def test_a_client_that_leaves_in_any_phase_leaves_no_request(phase: Phase) -> None:
    async with gated() as (manager, load, step):
        request = chat(max_tokens=1000, ignore_eos=True, n=2)
        task = asyncio.create_task(collect(manager, request))
        if phase is not Phase.WAITING:
            load.set()
        if phase is Phase.DECODING:
            step.set()
        await until(lambda: bool(manager.status().loaded) and live(manager).phase is phase)
        task.cancel()
        await asyncio.wait([task])
        assert manager.activity.live == {}
        assert dict(manager.activity.tallies["scripted"].requests) == {"cancelled": 1}


def test_the_limit_of_a_request_is_that_of_all_its_choices() -> None:
    activity = Activity()
    with activity.request("chat", "m", "r", choices=3) as one:
        one.on_event(Started("m", prompt_tokens=7, max_tokens=20))
        assert one.max_tokens == 60


@pytest.mark.parametrize("after", [Started, Delta])
async def test_a_reader_that_stops_reading_leaves_no_request(after: type[GenerationEvent]) -> None:
    async with start() as (manager, _):
        events = manager.generate(chat(max_tokens=1000, ignore_eos=True, n=2))
        await up_to(events, after)
        assert len(manager.activity.live) == 1
        await events.aclose()
        assert manager.activity.live == {}
        assert dict(manager.activity.tallies["scripted"].requests) == {"cancelled": 1}


async def test_every_kind_of_request_is_named() -> None:
    async with gated() as (manager, load, step):
        request = GenerationRequest(TextPrompt("Once"), model="scripted", max_tokens=2)
        task = asyncio.create_task(collect(manager, request))
        await until(lambda: bool(manager.activity.live))
        assert live(manager).kind == "completion"
        load.set()
        step.set()
        await task


# --- tokens and times -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
async def test_the_tokens_counted_are_those_of_the_usage(n: int) -> None:
    async with start() as (manager, _):
        usages = []
        for request in (chat(n=n), chat("Again", n=n), chat(n=n, max_tokens=2)):
            done = (await collect(manager, request))[-1]
            assert isinstance(done, Completed)
            usages.append(done.usage)
        tally = manager.activity.tallies["scripted"]
    assert tally.completion_tokens == sum(usage.completion_tokens for usage in usages) > 6 * n
    assert tally.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert tally.cached_tokens == sum(usage.cached_tokens for usage in usages)


async def test_prompts_that_come_again_are_counted_as_cached(tiny_models: Path) -> None:
    async with MLXModelManager(model_directory=tiny_models) as manager:
        text = "One two three four five six seven eight nine ten. " * 20
        results = [await manager.achat(text, "tiny/llama", max_tokens=2) for _ in range(2)]
        tally = manager.activity.tallies["tiny/llama"]
    assert tally.cached_tokens == sum(result.usage.cached_tokens for result in results) > 100
    assert tally.prompt_tokens == sum(result.usage.prompt_tokens for result in results)
    assert tally.loading.count == 1


async def test_vectors_count_their_prompts_and_nothing_stays(embedding_models: Path) -> None:
    async with MLXModelManager(model_directory=embedding_models) as manager:
        vectors = await manager.aembed(["one text", "and another"], "tiny/bert")
        with pytest.raises(InvalidRequest):
            await manager.aembed("text", "tiny/llama")
        with pytest.raises(InvalidRequest):
            await manager.aembed("far too long " * 5000, "tiny/bert")
        task = asyncio.create_task(manager.aembed(["left"] * 100, "tiny/bert"))
        await until(lambda: bool(manager.activity.live))
        assert live(manager).kind == "embedding"
        task.cancel()
        await asyncio.wait([task])
        assert manager.activity.live == {}
        tallies = manager.activity.tallies
        assert tallies["tiny/bert"].prompt_tokens == vectors.prompt_tokens > 0
        assert tallies["tiny/bert"].requests["completed"] == 1
        assert tallies["tiny/bert"].requests["cancelled"] == 1
        assert sum(sum(tally.requests.values()) for tally in tallies.values()) == 4


@pytest.mark.parametrize("n", [1, 2])
async def test_first_tokens_and_those_between_are_timed(n: int) -> None:
    async with start(ScriptedOptions(step_delay=0.01, load_delay=0.1)) as (manager, _):
        for _ in range(2):
            await collect(manager, chat(max_tokens=20, ignore_eos=True, n=n))
        tally = manager.activity.tallies["scripted"]
    assert tally.first_token.count == 2
    assert tally.first_token.total > 0.1 + 2 * 0.01  # the first request waited for the load
    assert tally.waiting.count == 2
    assert 0.1 < tally.waiting.total < tally.first_token.total
    assert tally.between_tokens.count in range(2 * 18, 2 * 20)  # of one choice, the first excepted
    assert tally.between_tokens.total / tally.between_tokens.count > 0.009
    assert tally.loading.count == 1
    assert tally.loading.total >= 0.1


def test_a_first_piece_of_many_tokens_does_not_pass_for_speed() -> None:
    """A tool call that was withheld, say."""
    activity = Activity()
    with activity.request("chat", "m", "r") as one:
        activity.meets(one, "m")
        activity.granted(one)
        one.on_event(Delta(0, "call", token_ids=[1] * 100))
        assert one.tokens_per_second == 0
        one.first_at -= 1.0  # a second ago
        one.on_event(Delta(0, "more", token_ids=[1] * 10))
        assert 0 < one.tokens_per_second <= 10
    assert activity.tallies["m"].between_tokens.count == 10


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    times = Histogram((0.5, 1, 2))
    for value in (0.1, 0.5, 0.7, 1.0, 5.0):
        times.observe(value)
    times.observe(1.5, 3)
    assert list(times.cumulative()) == [("0.5", 2), ("1.0", 4), ("2.0", 7), ("+Inf", 8)]
    assert times.count == 8
    assert times.total == pytest.approx(0.1 + 0.5 + 0.7 + 1.0 + 5.0 + 4.5)


# --- loads and unloads ----------------------------------------------------------------------


async def test_a_load_that_fails_and_an_engine_that_dies_are_counted() -> None:
    options = {
        "scripted": ScriptedOptions(load_error=ModelLoadFailed("no disk")),
        "scripted-2": ScriptedOptions(die_at_step=2),
    }
    async with start(options) as (manager, _):
        with pytest.raises(ModelLoadFailed):
            await collect(manager, chat())
        with pytest.raises(EngineFailed):
            await collect(manager, chat(model="scripted-2"))
        await until(lambda: not manager.status().loaded)
        tallies = manager.activity.tallies
        assert (tallies["scripted"].load_failures, tallies["scripted"].loading.count) == (1, 0)
        assert (tallies["scripted-2"].deaths, tallies["scripted-2"].loading.count) == (1, 1)


async def test_an_unload_is_counted_as_asked_for_as_a_swap_and_as_idle() -> None:
    defaults = {"cache_size": 1}
    async with start(defaults=defaults) as (manager, _):
        await manager.aload("scripted")
        await manager.aunload("scripted")
        await manager.aload("scripted")
        await manager.aload("scripted-2")
        tallies = manager.activity.tallies
        assert dict(tallies["scripted"].unloads) == {"asked": 1, "swap": 1}
        entry = {"scripted-2": {"ttl_seconds": 0.01}}
        await manager.aconfigure(Settings.model_validate({"defaults": defaults, "models": entry}))
        await until(lambda: not manager.status().loaded)
        assert dict(tallies["scripted-2"].unloads) == {"idle": 1}


async def test_models_that_are_too_many_after_a_change_are_counted_as_such() -> None:
    async with start(defaults={"cache_size": 2}) as (manager, _):
        await manager.aload("scripted")
        await manager.aload("scripted-2")
        await manager.aconfigure(Settings.model_validate({"defaults": {"cache_size": 1}}))
        await until(lambda: len(manager.status().loaded) == 1)
        assert dict(manager.activity.tallies["scripted"].unloads) == {"limits": 1}


async def test_what_goes_since_memory_is_short_is_counted_as_pressure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlx_router.scheduling.scheduler.PRESSURE_SECONDS", 0.01)
    monkeypatch.setattr("mlx_router.scheduling.scheduler.SHED_SECONDS", 0.02)
    memory = Memory(12_000 * MB)
    monitor = ResourceMonitor(memory, MemoryPolicy(4_000 * MB), max_age=0)
    async with MLXModelManager(
        Settings(), engine="scripted", factory=ScriptedFactory(), monitor=monitor
    ) as manager:
        await manager.aload("scripted")
        await manager.aload("scripted-2")
        memory.available = 2_000 * MB
        await until(lambda: len(manager.status().loaded) == 1)
        assert dict(manager.activity.tallies["scripted"].unloads) == {"pressure": 1}


# --- memory ---------------------------------------------------------------------------------


async def test_memory_is_remembered_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "SAMPLE_SECONDS", 0.01)
    async with start(available=3_000 * MB) as (manager, _):
        memory = manager.activity.memory
        await until(lambda: len(memory) >= 3)
        samples = list(memory)
        core = manager._core
        assert core is not None
    assert {sample.available for sample in samples} == {3_000 * MB}
    assert {sample.pressure for sample in samples} == {"moderate"}
    times = [sample.time for sample in samples]
    assert times == sorted(times)
    assert core._sampling.cancelled()  # a router that has ended looks no more
