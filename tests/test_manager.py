"""The manager's promises, with the scripted engine: loads, leases, failures, limits, both APIs."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlx_router import (
    Completed,
    Delta,
    Finished,
    GenerationRequest,
    MLXModelManager,
    Settings,
    Started,
)
from mlx_router.domain import ChatPrompt, GenerationEvent, Message, ResponseFormat, TextPrompt
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    QueueFull,
    RequestTimeout,
    ShuttingDown,
)
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.memory.probe import MemorySnapshot
from tests.waiting import until

MB = 10**6


class Memory:
    """A probe for a machine with so much memory available."""

    def __init__(self, available: int) -> None:
        self.available = available

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(total=16_000 * MB, available=self.available)


def is_engine(thread: threading.Thread) -> bool:
    return thread.name.startswith("engine ")


def holds_a_load(options: Any) -> bool:
    """Whether a gate still holds a load of these scripted engines."""
    every = options.values() if isinstance(options, dict) else [options]
    gates = [one.load_gate for one in every if one is not None]
    return any(gate is not None and not gate.is_set() for gate in gates)


@asynccontextmanager
async def start(
    options: Any = None,
    *,
    defaults: dict[str, Any] | None = None,
    available: int = 12_000 * MB,
    **server: Any,
) -> AsyncIterator[tuple[MLXModelManager, ScriptedFactory]]:
    """A running manager with scripted models; nothing may be left over when it is closed."""
    factory = ScriptedFactory(options)
    settings = Settings.model_validate({"defaults": defaults or {}, "server": server})
    monitor = ResourceMonitor(Memory(available), MemoryPolicy(4_000 * MB), max_age=0)
    before = set(threading.enumerate())
    async with MLXModelManager(
        settings, engine="scripted", factory=factory, monitor=monitor
    ) as manager:
        yield manager, factory
    if not holds_a_load(options):  # such a thread cannot be ended: it is left behind
        await until(lambda: not any(map(is_engine, set(threading.enumerate()) - before)))


def chat(text: str = "Hello", model: str | None = "scripted", **fields: Any) -> GenerationRequest:
    return GenerationRequest(ChatPrompt((Message("user", text),)), model=model, **fields)


async def collect(manager: MLXModelManager, request: GenerationRequest) -> list[GenerationEvent]:
    return [event async for event in manager.generate(request)]


def text_of(events: list[GenerationEvent], index: int = 0) -> str:
    return "".join(e.content for e in events if isinstance(e, Delta) and e.index == index)


# --- events ---------------------------------------------------------------------------------


async def test_events_come_in_order_and_add_up() -> None:
    async with start() as (manager, _):
        events = await collect(manager, chat())
    assert isinstance(events[0], Started)
    assert isinstance(events[-2], Finished)
    assert isinstance(events[-1], Completed)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "Hello" in text_of(events)
    tokens = sum(len(delta.token_ids) for delta in deltas)
    usage = events[-1].usage
    assert usage.completion_tokens == tokens + 1  # and the end-of-sequence token
    assert usage.prompt_tokens == events[0].prompt_tokens == len(events[0].prompt_token_ids)
    assert len(deltas[0].token_ids) == 1  # the first token goes out at once
    assert all(len(delta.token_ids) <= 8 for delta in deltas)


async def test_n_choices_come_from_one_request() -> None:
    async with start() as (manager, factory):
        events = await collect(manager, chat(n=3, max_tokens=5))
        assert len(factory.engines) == 1
    finished = [event for event in events if isinstance(event, Finished)]
    assert sorted(event.index for event in finished) == [0, 1, 2]
    assert text_of(events, 0) == text_of(events, 1) == text_of(events, 2) != ""
    assert isinstance(events[-1], Completed)
    assert events[-1].usage.completion_tokens == 15


async def test_tokens_that_trickle_are_sent_after_a_moment() -> None:
    """Not held back until a chunk is full."""
    async with start(ScriptedOptions(step_delay=0.03)) as (manager, _):
        request = chat(max_tokens=12, chunk_tokens=1000, ignore_eos=True)
        deltas = [e for e in await collect(manager, request) if isinstance(e, Delta)]
    assert len(deltas) >= 4


async def test_a_text_prompt_is_continued() -> None:
    async with start() as (manager, _):
        request = GenerationRequest(TextPrompt("Once upon a time"), model="scripted")
        assert text_of(await collect(manager, request))


# --- loading and swapping -------------------------------------------------------------------


async def test_two_hundred_requests_for_a_cold_model_load_it_once() -> None:
    async with start(max_queue=300) as (manager, factory):
        answers = await asyncio.gather(*(collect(manager, chat(max_tokens=4)) for _ in range(200)))
        assert len(factory.engines) == 1
    assert all(isinstance(events[-1], Completed) for events in answers)


async def test_a_third_place_is_made_by_unloading_the_idle_one() -> None:
    async with start(defaults={"cache_size": 1}) as (manager, factory):
        for model in ("scripted", "scripted-2", "scripted"):
            events = await collect(manager, chat(model=model, max_tokens=2))
            assert isinstance(events[0], Started)
            assert events[0].model == model
            assert [info.id for info in manager.status().loaded] == [model]
        assert len(factory.engines) == 3
        assert [engine.memory_bytes() > 0 for engine in factory.engines] == [False, False, True]


async def test_a_model_in_use_is_not_unloaded() -> None:
    gate = threading.Event()
    options = {"scripted": ScriptedOptions(step_gate=gate), "scripted-2": ScriptedOptions()}
    async with start(options, defaults={"cache_size": 1}) as (manager, factory):
        first = asyncio.create_task(collect(manager, chat(max_tokens=5)))
        await until(lambda: bool(manager.status().loaded and manager.status().loaded[0].active))
        second = asyncio.create_task(collect(manager, chat(model="scripted-2", max_tokens=5)))
        await until(lambda: "queued" in [info.state for info in manager.models()])
        assert len(factory.engines) == 1
        gate.set()
        assert len(text_of(await first)) > 0
        assert len(text_of(await second)) > 0


async def test_a_failed_load_leaves_the_others_serving_and_is_tried_again() -> None:
    broken = ScriptedOptions(load_error=ModelLoadFailed("the disk is gone"))
    async with start({"scripted-2": broken}) as (manager, factory):
        for _ in range(2):
            with pytest.raises(ModelLoadFailed, match="the disk is gone"):
                await collect(manager, chat(model="scripted-2"))
        assert text_of(await collect(manager, chat()))
        assert len(factory.engines) == 3


async def test_a_load_that_hangs_is_given_up_and_the_next_model_loads() -> None:
    gate = threading.Event()
    options = {"scripted": ScriptedOptions(load_gate=gate)}
    async with start(options, defaults={"load_timeout": 0.2}) as (manager, _):
        with pytest.raises(RequestTimeout, match="Loading scripted took more than"):
            await collect(manager, chat())
        assert text_of(await collect(manager, chat(model="scripted-2")))
        gate.set()


async def test_the_only_waiter_of_a_load_leaves() -> None:
    gate = threading.Event()
    async with start(ScriptedOptions(load_gate=gate)) as (manager, _):
        task = asyncio.create_task(collect(manager, chat()))
        await until(lambda: bool(manager.status().loaded))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await until(lambda: manager.status().loaded[0].state == "ready")
        assert manager.status().loaded[0].active == manager.status().loaded[0].waiting == 0
        assert text_of(await collect(manager, chat()))


async def test_a_load_that_cannot_fit_is_refused_before_it_starts() -> None:
    async with start(available=10 * MB) as (manager, factory):
        with pytest.raises(InsufficientMemory, match="GB"):
            await collect(manager, chat())
        assert factory.engines == []


async def test_unload_waits_for_answers_and_the_next_request_loads_again() -> None:
    gate = threading.Event()
    async with start(ScriptedOptions(step_gate=gate)) as (manager, factory):
        answer = asyncio.create_task(collect(manager, chat(max_tokens=3)))
        await until(lambda: bool(manager.status().loaded and manager.status().loaded[0].active))
        unload = asyncio.create_task(manager.aunload("scripted"))
        core = manager._core
        assert core is not None
        await until(lambda: "scripted" in core.fleet._unloads)
        assert not unload.done()
        gate.set()
        assert text_of(await answer)
        await unload
        assert manager.status().loaded == []
        assert text_of(await collect(manager, chat(max_tokens=3)))
        assert len(factory.engines) == 2


# --- failures -------------------------------------------------------------------------------


async def test_one_failed_sequence_leaves_the_others_alone() -> None:
    gate = threading.Event()
    async with start(ScriptedOptions(fail_at_step=4, step_gate=gate)) as (manager, _):
        tasks = [asyncio.create_task(collect(manager, chat(max_tokens=6))) for _ in range(4)]
        await until(
            lambda: bool(manager.status().loaded) and manager.status().loaded[0].active == 4
        )
        core = manager._core
        assert core is not None
        await until(lambda: len(core.fleet._residents["scripted"].answers) == 4)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [r for r in results if isinstance(r, EngineFailed)]
    assert len(failed) == 1
    assert sum(isinstance(r, list) and isinstance(r[-1], Completed) for r in results) == 3


async def test_a_dead_engine_is_loaded_again_and_out_of_service_after_repeated_deaths() -> None:
    options = {"scripted": ScriptedOptions(die_at_step=2)}
    async with start(options) as (manager, factory):
        for deaths in range(1, 4):
            with pytest.raises(EngineFailed):
                await collect(manager, chat())
            await until(lambda: manager.status().loaded == [])
            assert len(factory.engines) == deaths
        with pytest.raises(EngineFailed, match="out of service"):
            await collect(manager, chat())
        assert len(factory.engines) == 3
        assert text_of(await collect(manager, chat(model="scripted-2")))


async def test_leaving_an_answer_drops_its_job_before_the_next_step() -> None:
    async with start(ScriptedOptions(step_delay=0.002)) as (manager, factory):
        events = manager.generate(chat(max_tokens=100_000, ignore_eos=True))
        async for event in events:
            if isinstance(event, Delta):
                break
        await events.aclose()
        await until(lambda: not factory.engines[0].busy)
        assert manager.status().loaded[0].active == 0


async def test_a_hundred_readers_that_leave_at_random_leave_nothing_behind() -> None:
    async with start(ScriptedOptions(step_delay=0.001), max_queue=100) as (manager, factory):

        async def leave_after(count: int) -> None:
            events = manager.generate(chat(max_tokens=5000, ignore_eos=True, n=1 + count % 2))
            seen = 0
            async for _ in events:
                seen += 1
                if seen > count:
                    break
            await events.aclose()

        await asyncio.gather(*(leave_after(i % 7) for i in range(100)))
        await until(lambda: not factory.engines[0].busy)
        assert manager.status().loaded[0].active == 0
        core = manager._core
        assert core is not None
        assert core.fleet._residents["scripted"].answers == {}
        assert core.fleet._asks == {}
        gc.collect()


# --- limits ---------------------------------------------------------------------------------


async def test_a_timeout_ends_an_answer_with_what_it_has() -> None:
    async with start(ScriptedOptions(step_delay=0.01)) as (manager, _):
        events = await collect(manager, chat(max_tokens=10_000, ignore_eos=True, timeout=0.3))
    (finished,) = (event for event in events if isinstance(event, Finished))
    assert finished.timed_out
    assert finished.reason == "length"
    assert text_of(events)


async def test_a_timeout_before_the_first_token_is_an_error() -> None:
    gate = threading.Event()
    async with start(ScriptedOptions(step_gate=gate)) as (manager, _):
        with pytest.raises(RequestTimeout):
            await collect(manager, chat(timeout=0.1))
        gate.set()


async def test_beyond_max_queue_requests_are_shed() -> None:
    gate = threading.Event()
    async with start(
        ScriptedOptions(step_gate=gate), defaults={"max_batch_size": 1}, max_queue=2
    ) as (manager, _):
        tasks = [asyncio.create_task(collect(manager, chat(max_tokens=2))) for _ in range(5)]
        await until(lambda: sum(task.done() for task in tasks) >= 2)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    shed = [r for r in results if isinstance(r, QueueFull)]
    assert len(shed) >= 2
    assert all(error.retry_after for error in shed)
    assert sum(isinstance(r, list) for r in results) == 5 - len(shed)


async def test_what_is_asked_beyond_the_context_is_clamped_and_a_long_prompt_refused() -> None:
    async with start(defaults={"max_tokens": 100_000}) as (manager, _):
        events = await collect(manager, chat(max_tokens=90_000))
        assert isinstance(events[0], Started)
        assert events[0].max_tokens == 32768 - events[0].prompt_tokens
        assert events[0].clamped == "the room left in the context"
        with pytest.raises(ContextLengthExceeded, match="maximum context length is 32768"):
            await collect(manager, chat("\u00e9" * 40_000))


async def test_memory_pressure_shrinks_answers() -> None:
    async with start(available=2_000 * MB) as (manager, _):  # below 0.6 of the threshold: high
        events = await collect(manager, chat(max_tokens=4000, ignore_eos=True))
    assert isinstance(events[0], Started)
    assert events[0].max_tokens == 1024
    assert events[0].clamped == "memory pressure (high)"


# --- which model ----------------------------------------------------------------------------


async def test_a_request_without_model_goes_to_the_one_used_last() -> None:
    async with start() as (manager, _):
        with pytest.raises(InvalidRequest, match="Which model"):
            await collect(manager, chat(model=None))
        await collect(manager, chat(model="scripted-2", max_tokens=1))
        events = await collect(manager, chat(model=None, max_tokens=1))
        assert isinstance(events[0], Started)
        assert events[0].model == "scripted-2"


async def test_the_configured_default_model_is_preloaded() -> None:
    async with start(defaults={"model": "scripted-2"}) as (manager, _):
        await until(lambda: manager.status().current_model == "scripted-2")
        events = await collect(manager, chat(model=None, max_tokens=1))
        assert isinstance(events[0], Started)
        assert events[0].model == "scripted-2"


async def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    async with start() as (manager, _):
        for name in ("scriptd", "../scripted", "/etc/passwd", "a\0b", "x" * 10_000):
            with pytest.raises(ModelNotFound):
                await collect(manager, chat(model=name))
        with pytest.raises(ModelNotFound, match="scripted"):
            await collect(manager, chat(model="scriptd"))


async def test_a_logit_bias_outside_the_vocabulary_is_refused() -> None:
    async with start() as (manager, _):
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await collect(manager, chat(logit_bias={10**9: 1.0}))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await collect(manager, GenerationRequest(TextPrompt(token_ids=(-1,)), model="scripted"))


# --- the end --------------------------------------------------------------------------------


async def test_shutdown_refuses_newcomers_and_ends_answers_after_the_grace_time() -> None:
    async with start(ScriptedOptions(step_delay=0.01), grace_seconds=0.2) as (manager, _):
        task = asyncio.create_task(collect(manager, chat(max_tokens=10_000, ignore_eos=True)))
        await until(lambda: bool(manager.status().loaded and manager.status().loaded[0].active))
        manager.begin_shutdown()
        with pytest.raises(ShuttingDown):
            await collect(manager, chat())
        with pytest.raises(ShuttingDown):
            await task


async def test_closing_during_a_load_takes_no_longer_than_two_seconds() -> None:
    gate = threading.Event()
    started = 0.0
    async with start(ScriptedOptions(load_gate=gate)) as (manager, _):
        task = asyncio.create_task(collect(manager, chat()))
        await until(lambda: bool(manager.status().loaded))
        started = time.monotonic()
    assert time.monotonic() - started < 3
    with pytest.raises(ShuttingDown):
        await task
    gate.set()


# --- as a library ---------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[MLXModelManager]:
    with MLXModelManager(engine="scripted") as manager:
        yield manager


def test_a_program_without_a_loop(manager: MLXModelManager) -> None:
    result = manager.chat("Hello", model="scripted")
    assert "Hello" in result.content
    assert str(result) == result.content
    streamed = list(manager.stream([{"role": "user", "content": "Hello"}], model="scripted"))
    assert text_of(streamed) == result.content
    assert manager.load("scripted-2").state == "ready"
    assert {info.card.id: info.state.value for info in manager.models()} == {
        "scripted": "ready",
        "scripted-2": "ready",
        "scripted-vision": "unloaded",
    }
    manager.unload("scripted-2")
    assert manager.model("scripted-2").state == "unloaded"


def test_closing_a_stream_early_ends_the_generation(manager: MLXModelManager) -> None:
    stream = manager.stream("Hello", model="scripted", max_tokens=1000)
    next(stream)
    stream.close()
    assert manager.status().loaded[0].active == 0


def test_threads_share_a_manager(manager: MLXModelManager) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(manager.chat("Hi", "scripted").content))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 8
    assert len(set(results)) == 1


async def test_async_methods_work_on_a_loop_that_is_not_the_routers(
    manager: MLXModelManager,
) -> None:
    result = await manager.achat("Hello", model="scripted")
    events = [event async for event in manager.astream("Hello", model="scripted")]
    assert text_of(events) == result.content
    await manager.aclose()


async def test_a_blocking_call_on_the_routers_loop_says_what_to_use() -> None:
    async with start() as (manager, _):
        with pytest.raises(RuntimeError, match="achat"):
            manager.chat("Hello", model="scripted")


def test_tools_are_called(manager: MLXModelManager) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    result = manager.chat("Please use get_weather", model="scripted", tools=[tool])
    assert result.finish_reason == "tool_calls"
    (call,) = result.tool_calls
    assert call.name == "get_weather"
    assert "city" in call.arguments


def test_bad_options_are_named(manager: MLXModelManager) -> None:
    with pytest.raises(InvalidRequest, match="temprature"):
        manager.chat("Hello", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest, match="role"):
        manager.chat([{"role": "robot", "content": "Hello"}])
    with pytest.raises(InvalidRequest, match="no messages"):
        manager.chat([])


async def test_a_form_is_enforced() -> None:
    async with MLXModelManager(demo=True, model_directory="/nonexistent") as manager:
        prompt = ChatPrompt(
            (Message("user", "Hello"),), response_format=ResponseFormat("json_object")
        )
        events = await collect(manager, GenerationRequest(prompt, model="demo", max_tokens=50))
        text = "".join(event.content for event in events if isinstance(event, Delta))
        assert isinstance(json.loads(text), dict)
