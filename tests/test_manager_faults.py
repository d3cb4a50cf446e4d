"""What goes wrong in the manager costs those it concerns, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mlx_router import ChatResult, Delta, MLXModelManager, RouterError
from mlx_router.domain import Pressure
from mlx_router.engine.scripted import ScriptedOptions
from mlx_router.engine.scripted_text import ScriptedCodec, ScriptedDetokenizer
from mlx_router.errors import EngineFailed, InvalidRequest, ModelLoadFailed, Unavailable
from mlx_router.runtime import core, residents
from mlx_router.runtime.limits import decide_max_tokens
from tests.test_manager import chat, collect, start, text_of
from tests.waiting import until


async def test_requests_that_meet_a_dying_engine_get_an_error_or_a_new_one() -> None:
    """None of them hangs until its timeout."""
    async with start(ScriptedOptions(die_at_step=40)) as (manager, factory):
        async with asyncio.timeout(20):
            for _ in range(3):
                answers = [
                    asyncio.create_task(collect(manager, chat(max_tokens=200, ignore_eos=True)))
                    for _ in range(4)
                ]
                await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
                late = [asyncio.create_task(collect(manager, chat(max_tokens=3))) for _ in range(4)]
                results = await asyncio.gather(*answers, *late, return_exceptions=True)
                assert all(isinstance(r, list | EngineFailed) for r in results)
                assert any(isinstance(r, list) for r in results[4:])
        assert len(factory.engines) >= 3


class BrokenDetokenizer(ScriptedDetokenizer):
    def add(self, token: int) -> str:
        raise ValueError("broken")


async def test_one_answers_fault_costs_no_other_answer_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with start() as (manager, _):
        alone = text_of(await collect(manager, chat("Hi", max_tokens=20)))
        made = iter([True, False, True])
        monkeypatch.setattr(
            ScriptedCodec,
            "detokenizer",
            lambda self: ScriptedDetokenizer() if next(made) else BrokenDetokenizer(),
        )
        results = await asyncio.gather(
            *(collect(manager, chat("Hi", max_tokens=20)) for _ in range(3)),
            return_exceptions=True,
        )
    failed = [r for r in results if isinstance(r, EngineFailed)]
    assert len(failed) == 1
    assert [text_of(r) for r in results if isinstance(r, list)] == [alone, alone]


async def test_a_model_that_hangs_while_it_is_freed_gives_its_place_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        core, "resident_options", lambda _: residents.ResidentOptions(unload_timeout=0.2)
    )
    gate = threading.Event()
    options = {"scripted": ScriptedOptions(close_gate=gate)}
    async with start(options, defaults={"cache_size": 1}) as (manager, _):
        assert text_of(await collect(manager, chat()))
        assert text_of(await collect(manager, chat(model="scripted-2")))
        with pytest.raises(Unavailable, match="hangs"):
            await collect(manager, chat())
        gate.set()
        await until(lambda: not manager._core.fleet._residents.hangs("scripted"))  # type: ignore[union-attr]
        assert text_of(await collect(manager, chat()))


async def test_a_load_that_cannot_even_begin_costs_its_own_requests_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with start() as (manager, factory):
        with monkeypatch.context() as broken:
            broken.setattr(factory, "engine", _no_more_threads)
            with pytest.raises(ModelLoadFailed, match="RuntimeError"):
                await collect(manager, chat())
        assert text_of(await collect(manager, chat()))


def _no_more_threads(card: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_who_asks_to_unload_a_model_whose_load_hangs_is_answered() -> None:
    gate = threading.Event()
    options = {"scripted": ScriptedOptions(load_gate=gate)}
    async with start(options, defaults={"load_timeout": 0.3}) as (manager, _):
        stuck = asyncio.create_task(collect(manager, chat()))
        await until(lambda: bool(manager.status().loaded))
        async with asyncio.timeout(5):
            await manager.aunload("scripted")
        with pytest.raises(RouterError):
            await stuck
        gate.set()


async def test_a_hung_load_does_not_stop_the_others_with_serialised_steps() -> None:
    gate = threading.Event()
    options = {"scripted": ScriptedOptions(load_gate=gate)}
    async with start(options, defaults={"serialize_steps": True}) as (manager, _):
        stuck = asyncio.create_task(collect(manager, chat()))
        await until(lambda: bool(manager.status().loaded))
        async with asyncio.timeout(5):
            assert text_of(await collect(manager, chat(model="scripted-2")))
        gate.set()
        assert text_of(await stuck)


async def test_text_that_becomes_visible_late_is_sent_after_a_moment() -> None:
    """Also where the first tokens have nothing to show."""
    text = "<think>" + "x" * 400
    async with start(ScriptedOptions(text=text, step_delay=0.02)) as (manager, _):
        events = manager.generate(chat(max_tokens=200, chunk_tokens=1000))
        async with asyncio.timeout(2):
            async for event in events:
                if isinstance(event, Delta):
                    assert event.reasoning
                    assert len(event.token_ids) < 20
                    break
        await events.aclose()


async def test_reasoning_tokens_are_part_of_the_completion() -> None:
    async with start(ScriptedOptions(text="<think>abc</think>hello")) as (manager, _):
        events = await collect(manager, chat())
        usage = events[-1].usage  # type: ignore[union-attr]
        deltas = [e for e in events if isinstance(e, Delta)]
    assert "".join(e.reasoning for e in deltas) == "abc"
    assert text_of(events) == "hello"
    assert 0 < usage.reasoning_tokens < usage.completion_tokens


@pytest.mark.parametrize(
    ("asked", "pressure_limit", "expected", "reason"),
    [
        (32_000, 4096, 4096, "the model's max_tokens"),
        (None, 4096, 4096, None),
        (None, 1024, 1024, "memory pressure (normal)"),
        (500, 1024, 500, None),
        (2000, 1024, 1024, "memory pressure (normal)"),
    ],
)
def test_the_clamp_names_its_reason(
    asked: int | None, pressure_limit: int, expected: int, reason: str | None
) -> None:
    limit = decide_max_tokens(
        asked,
        model_limit=4096,
        pressure_limit=pressure_limit,
        pressure=Pressure.NORMAL,
        context_length=100_000,
        prompt_tokens=10,
    )
    assert (limit.max_tokens, limit.clamped) == (expected, reason)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"seed": 1.5},
        {"temperature": "warm"},
        {"temperature": float("nan")},
        {"top_k": 2.5},
        {"top_p": 2},
        {"stop": [""]},
        {"logit_bias": {"a": 1}},
        {"timeout": True},
    ],
    ids=str,
)
def test_a_programs_bad_value_is_refused_before_it_reaches_an_engine(
    options: dict[str, Any],
) -> None:
    with MLXModelManager(engine="scripted") as manager:
        with pytest.raises(InvalidRequest) as caught:
            manager.chat("Hello", "scripted", **options)
        assert caught.value.param == next(iter(options))


def test_closing_while_another_thread_asks_ends_its_call() -> None:
    manager = MLXModelManager(engine="scripted")
    manager.load("scripted")
    ended = threading.Event()

    def ask() -> None:
        try:
            while True:
                manager.chat("Hello", "scripted", max_tokens=50)
        except BaseException:
            ended.set()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    manager.chat("Hello", "scripted")
    manager.begin_shutdown()
    manager.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert ended.is_set()


def test_a_manager_can_be_used_again_after_its_end() -> None:
    manager = MLXModelManager(engine="scripted")

    async def once() -> ChatResult:
        async with manager:
            return await manager.achat("Hello", "scripted")

    first, second = asyncio.run(once()), asyncio.run(once())
    with manager:
        third = manager.chat("Hello", "scripted")
    with manager:
        fourth = manager.chat("Hello", "scripted")
    assert first == second == third == fourth


def test_a_stream_left_open_over_close_starts_no_thread() -> None:
    manager = MLXModelManager(engine="scripted")
    stream = manager.stream("Hello", "scripted", max_tokens=500)
    next(stream)
    manager.close()
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "mlx-router loop"]


def test_errors_reach_the_caller_of_every_kind_of_method() -> None:
    with MLXModelManager(engine="scripted") as manager:
        for call in (manager.load, manager.model, lambda name: manager.chat("Hi", name)):
            with pytest.raises(RouterError, match="nowhere"):
                call("nowhere")
        with pytest.raises(RouterError, match="nowhere"):
            next(manager.stream("Hi", "nowhere"))
