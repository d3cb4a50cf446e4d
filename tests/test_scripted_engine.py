"""The scripted engine: deterministic, cheap, and able to fail on request."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.domain import (
    ChatPrompt,
    FinishReason,
    Message,
    Picture,
)
from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.engine.scripted import (
    ScriptedCodec,
    ScriptedEngine,
    ScriptedFactory,
    ScriptedOptions,
    SimulatedDeath,
    scripted_cards,
)
from mlx_router.engine.scripted_text import CANNED, CHAT, EOS, VOCAB_SIZE
from mlx_router.errors import InvalidRequest, ModelLoadFailed
from tests.engine_support import drain

CODEC = ScriptedCodec()
STOPS = CODEC.eos_ids


def job(job_id: int = 1, text: str = "hello", max_tokens: int = 10_000, **options: Any) -> Job:
    prompt = CODEC.encode_chat(ChatPrompt((Message("user", text),))).ids
    return Job(job_id, prompt, max_tokens, Sampling(), **{"stop_ids": STOPS, **options})


# --- tokens ---------------------------------------------------------------------------------


@given(st.text())
def test_every_text_survives_encoding(text: str) -> None:
    ids = CODEC.encode(text)
    assert all(0 <= token < VOCAB_SIZE for token in ids)
    assert CODEC.decode(ids) == text
    detokenizer = CODEC.detokenizer()
    assert "".join(map(detokenizer.add, ids)) + detokenizer.finish() == text


@given(st.lists(st.integers(-2, VOCAB_SIZE + 2)))
def test_no_tokens_make_half_a_character(ids: list[int]) -> None:
    detokenizer = CODEC.detokenizer()
    text = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
    assert "\ufffd" not in text
    CODEC.decode(ids)


def test_tokens_are_about_as_long_as_real_ones() -> None:
    assert 3 < len(CANNED) / len(CODEC.encode(CANNED)) < 6
    assert len(CODEC.encode("é🙂")) == 6
    assert CODEC.decode([EOS, CHAT]) == ""


# --- the engine -----------------------------------------------------------------------------


def test_max_tokens_and_ignore_eos_are_honoured() -> None:
    engine = ScriptedEngine()
    engine.add(job(1, max_tokens=3))
    engine.add(job(2, max_tokens=500, stop_ids=frozenset()))
    engine.add(job(3))
    results = drain(engine)
    mine = {number: [r for r in results if r.job_id == number] for number in (1, 2, 3)}
    assert [r.finish for r in mine[1]] == [None, None, FinishReason.LENGTH]
    assert len(mine[2]) == 500
    assert mine[2][-1].finish is FinishReason.LENGTH
    assert EOS not in [r.token for r in mine[2]]
    assert (mine[3][-1].token, mine[3][-1].finish) == (EOS, FinishReason.STOP)
    assert [r.token for r in mine[3][:3]] == [r.token for r in mine[1]]


def test_a_step_gives_each_running_job_one_token() -> None:
    engine = ScriptedEngine()
    for number in range(5):
        engine.add(job(number))
    assert engine.step() == []  # the prompts
    assert [result.job_id for result in engine.step()] == [0, 1, 2, 3, 4]
    engine.add(job(9))
    assert len(engine.step()) == 5
    assert len(engine.step()) == 6


def test_prompts_are_taken_in_by_slices_while_others_decode() -> None:
    engine = ScriptedEngine(ScriptedOptions(prefill_tokens=10))
    engine.add(job(1, "x"))
    long = Job(2, CODEC.encode("word " * 1000), 5, Sampling(), stop_ids=STOPS)
    steps = 0
    while not engine.step():
        steps += 1
    assert steps == -(-len(job(1, "x").prompt) // 10)
    engine.add(long)
    slices = -(-len(long.prompt) // 10)
    for _ in range(20):
        assert [result.job_id for result in engine.step()] == [1]
    rest = [result.job_id for _ in range(slices) for result in engine.step()]
    assert 2 in rest


def test_the_batch_limit_holds() -> None:
    engine = ScriptedEngine(ScriptedOptions(batch_limit=2))
    for number in range(4):
        engine.add(job(number, max_tokens=2))
    engine.step()
    assert [result.job_id for result in engine.step()] == [0, 1]
    assert {result.job_id for result in drain(engine)} == {0, 1, 2, 3}


def test_an_aborted_job_gives_no_more_tokens() -> None:
    engine = ScriptedEngine()
    for number in (1, 2, 3):
        engine.add(job(number))
    engine.abort(2)
    engine.step()
    engine.abort(1)
    engine.abort(77)
    assert [result.job_id for result in engine.step()] == [3]
    engine.abort(3)
    assert not engine.busy
    assert engine.step() == []


def test_logprobs_are_given_when_asked_for() -> None:
    engine = ScriptedEngine()
    engine.add(job(1, logprobs=3))
    engine.add(job(2, logprobs=0))
    engine.add(job(3))
    engine.step()
    first, second, third = engine.step()
    assert first.logprob is not None
    assert first.logprob < 0
    assert len({token for token, _ in first.top_logprobs}) == 3
    assert first.top_logprobs[0] == (first.token, first.logprob)
    assert second.logprob is not None
    assert second.top_logprobs == ()
    assert third.logprob is None


def test_a_load_reports_and_close_returns_the_memory() -> None:
    engine = ScriptedEngine(ScriptedOptions(memory_bytes=123))
    assert engine.memory_bytes() == 0
    loaded = engine.load()
    assert (loaded.vocab_size, loaded.memory_bytes, loaded.batches) == (VOCAB_SIZE, 123, True)
    engine.warm_up(5)
    assert engine.memory_bytes() == 123
    engine.add(job())
    engine.close()
    assert engine.memory_bytes() == 0
    assert not engine.busy


def test_a_load_fails_on_request() -> None:
    engine = ScriptedEngine(ScriptedOptions(load_error=ModelLoadFailed("as the script says")))
    with pytest.raises(ModelLoadFailed, match="as the script says"):
        engine.load()
    assert engine.memory_bytes() == 0


def test_one_job_fails_on_request_and_the_others_go_on() -> None:
    engine = ScriptedEngine(ScriptedOptions(fail_at_step=4))
    for number in (1, 2):
        engine.add(job(number))
    results = drain(engine)
    (failed,) = [result for result in results if result.error]
    assert (failed.job_id, failed.token) == (1, None)
    assert results[-1].job_id == 2
    assert results[-1].finish is FinishReason.STOP
    assert len([result for result in results if result.job_id == 1]) == 3


def test_an_engine_dies_on_request() -> None:
    engine = ScriptedEngine(ScriptedOptions(die_at_step=2))
    engine.add(job())
    engine.step()
    with pytest.raises(SimulatedDeath):
        engine.step()
    assert not issubclass(SimulatedDeath, Exception)


def test_gates_hold_a_load_and_a_step() -> None:
    loading, stepping, load_gate, step_gate = (threading.Event() for _ in range(4))
    options = ScriptedOptions(
        text="x", loading=loading, stepping=stepping, load_gate=load_gate, step_gate=step_gate
    )
    engine = ScriptedEngine(options)
    engine.add(job(1, max_tokens=1))
    results: list[StepResult] = []

    def work() -> None:
        engine.load()
        results.extend(drain(engine))

    thread = threading.Thread(target=work)
    thread.start()
    assert loading.wait(10)
    assert not stepping.is_set()
    load_gate.set()
    assert stepping.wait(10)
    assert results == []
    step_gate.set()
    thread.join(10)
    assert [result.token for result in results] == [ord("x")]


def test_the_text_can_be_set() -> None:
    engine = ScriptedEngine(ScriptedOptions(text="as told"))
    engine.add(job(max_tokens=4, stop_ids=frozenset()))
    engine.add(job(2))
    ids: Mapping[int, list[int]] = {1: [], 2: []}
    for result in drain(engine):
        ids[result.job_id].append(result.token or 0)
    assert CODEC.decode(ids[2]) == "as told"
    assert len(ids[1]) == 4
    empty = ScriptedEngine(ScriptedOptions(text=""))
    empty.add(job(max_tokens=3, stop_ids=frozenset()))
    empty.add(job(2))
    assert [result.token for result in drain(empty)].count(EOS) == 1


def test_a_factory_gives_each_model_its_options() -> None:
    first, second, third = scripted_cards()
    factory = ScriptedFactory({first.id: ScriptedOptions(memory_bytes=7)})
    assert factory.engine(first).load().memory_bytes == 7
    assert factory.engine(second).load().memory_bytes != 7
    assert len(factory.engines) == 2
    assert factory.codec(first).markers.tool_format == "hermes"
    picture = ChatPrompt((Message("user", (Picture(2, 1, bytes(6), "d"),)),))
    assert factory.codec(third).encode_chat(picture)
    with pytest.raises(InvalidRequest, match="no vision"):
        factory.codec(second).encode_chat(picture)
    shared = ScriptedFactory(ScriptedOptions(memory_bytes=8))
    assert shared.engine(second).load().memory_bytes == 8


def test_there_are_two_models_to_swap_and_one_that_sees() -> None:
    cards = scripted_cards()
    assert [card.id for card in cards] == ["scripted", "scripted-2", "scripted-vision"]
    assert [card.supports_vision for card in cards] == [False, False, True]
    first = cards[0]
    assert first.path == Path("scripted")
    assert first.usable
    assert first.supports_tools
    assert first.context_length == 32768


def test_a_step_costs_little_per_token() -> None:
    engine = ScriptedEngine()
    for number in range(256):
        engine.add(job(number, max_tokens=2000, stop_ids=frozenset()))
    while len(engine.step()) < 256:
        pass
    rounds = []
    for _ in range(10):
        start = time.thread_time()
        tokens = sum(len(engine.step()) for _ in range(10))
        rounds.append((time.thread_time() - start) / tokens)
    assert min(rounds) < 1.5e-6


def test_it_needs_no_mlx() -> None:
    code = (
        "import sys, mlx_router.engine.scripted, mlx_router.parsing, mlx_router.prompt.template;"
        "sys.exit(any(name.split('.')[0] in ('mlx', 'transformers') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
