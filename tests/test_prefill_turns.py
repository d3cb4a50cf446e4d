"""Who is computed when: long prompts, short ones and streams beside each other, on real models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from mlx_router.domain import ChatPrompt, ResponseFormat
from mlx_router.engine import device
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.grammar.compiler import Compiler
from mlx_router.engine.grammar.mask import GrammarConstraint
from mlx_router.engine.prefill import SliceSize
from tests.stepping import ByHand, make_job, words
from tests.test_text_engine import FailingRunner
from tests.waiting import until_sync

SLICE = 16
LONG = words(10 * SLICE + 1, start=5)  # ten slices, and the token that it joins with
SHORT = words(8)
LAST_STEP = 4096  # bytes of tokens and probabilities; the KV cache of a prompt is 64 KB at least
POISON = 470  # a token that no prompt of words() has


@pytest.fixture(scope="module")
def llama(tiny_models: Path) -> Iterator[ByHand]:
    engine = ByHand(tiny_models / "tiny" / "llama")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(llama: ByHand) -> Callable[[Job], list[int | None]]:
    """What a job answers alone."""
    known: dict[tuple[int, ...], list[int | None]] = {}

    def answer(job: Job) -> list[int | None]:
        key = (job.max_tokens, *job.prompt)
        if key not in known:
            known[key] = llama.answer(make_job(0, job.prompt, job.max_tokens))
        return known[key]

    return answer


@pytest.fixture
def start(tiny_models: Path) -> Iterator[Callable[..., ByHand]]:
    started: list[ByHand] = []

    def begin(**options: Any) -> ByHand:
        started.append(ByHand(tiny_models / "tiny" / "llama", **options))
        return started[-1]

    yield begin
    for engine in started:
        engine.close()


def nothing_left(engine: ByHand) -> bool:
    """Whether the engine holds nothing of any sequence."""
    runner, generator = engine.runner, engine.runner._generator
    held = (
        *(engine.engine._live, runner._prefills, runner._live, runner._uids, runner._failed),
        *(generator._unprocessed_sequences, generator._currently_processing),
        *(generator._prompt_batch.uids, generator._generation_batch.uids),
    )
    return not any(held) and runner._solo is None


# --- turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_cache_bytes", [0, 10**8])
def test_a_stream_gets_a_token_between_any_two_slices(
    start: Callable[..., ByHand],
    expected: Callable[[Job], list[int | None]],
    prefix_cache_bytes: int,
) -> None:
    engine = start(prefix_cache_bytes=prefix_cache_bytes)
    stream, late = make_job(1, SHORT, 40), make_job(2, LONG, 5)
    engine.add(stream)
    got = engine.until(lambda: bool(engine.engine._live[1].tokens))
    engine.add(late)
    slices = 0
    while 2 not in got:
        del engine.model.passes[:]
        results = engine.step()
        sliced = [tokens for rows, tokens in engine.model.passes if tokens > 1]
        assert len(sliced) <= 1
        assert all(tokens <= SLICE for tokens in sliced)
        slices += len(sliced)
        assert 1 in [result.job_id for result in results]
        for result in results:
            got.setdefault(result.job_id, []).append(result)
    assert slices == 10
    rest = engine.until(lambda: not engine.engine.busy)
    for job in (stream, late):
        answer = [result.token for result in got[job.id] + rest.get(job.id, [])]
        assert answer == expected(job)


def test_a_short_request_has_its_first_token_before_a_long_prompt_is_through(
    llama: ByHand, expected: Callable[[Job], list[int | None]]
) -> None:
    long, short = make_job(1, LONG, 3), make_job(2, SHORT, 3)
    llama.add(long)
    for _ in range(3):
        assert llama.step() == []
    llama.add(short)
    steps = 0
    while not (results := llama.step()):
        steps += 1
    assert steps <= 3
    assert [result.job_id for result in results] == [2]
    rest = llama.until(lambda: not llama.engine.busy)
    assert [result.token for result in rest[1]] == expected(long)
    assert [result.token for result in (*results, *rest[2])] == expected(short)


@pytest.mark.parametrize("room", [2, 32])
def test_short_prompts_that_keep_coming_do_not_starve_a_long_one(
    start: Callable[..., ByHand], expected: Callable[[Job], list[int | None]], room: int
) -> None:
    engine = start(max_batch_size=room)
    numbers = iter(range(100, 10_000))
    for _ in range(3):
        engine.add(make_job(next(numbers), words(9, start=7), 4))
    engine.add(make_job(1, LONG, 3))
    got: list[int | None] = []
    steps = 0
    while len(got) < 3:
        engine.add(make_job(next(numbers), words(9, start=steps), 4))
        got += [result.token for result in engine.step() if result.job_id == 1]
        steps += 1
        # One step of four is its own: others join in one, and get their first tokens in two. Where
        # there is room for two, it also waits for that.
        assert steps <= (4 if room > 2 else 5) * (10 + 3) + 5
    assert got == expected(make_job(1, LONG, 3))
    engine.until(lambda: not engine.engine.busy)


def test_prompts_beyond_the_room_wait_uncomputed(
    start: Callable[..., ByHand], expected: Callable[[Job], list[int | None]]
) -> None:
    engine = start(max_batch_size=2)
    jobs = [make_job(number, words(20, start=number), 6) for number in range(5)]
    engine.add(*jobs)
    got = engine.until(lambda: len(engine.runner._live) == 2)
    waiting = list(engine.runner._prefills)
    assert len(waiting) == 3
    del engine.model.passes[:]
    for number, results in engine.until(lambda: len(engine.runner._live) < 2).items():
        got.setdefault(number, []).extend(results)
    assert all(tokens == 1 for _, tokens in engine.model.passes)
    assert [prefill.done for prefill in waiting] == [0, 0, 0]
    assert not any(prefill.cache for prefill in waiting)
    rest = engine.until(lambda: not engine.engine.busy)
    for job in jobs:
        answer = [each.token for each in got.get(job.id, []) + rest.get(job.id, [])]
        assert answer == expected(job)


# --- how much is computed at once -----------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tiny_models: Path) -> Iterator[ByHand]:
    """With slices that hold many short prompts."""
    engine = ByHand(tiny_models / "tiny" / "llama", prefill_step_size=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def grammar(tiny_models: Path) -> GrammarConstraint:
    tokenizer = load_tokenizer(tiny_models / "tiny" / "llama")
    made_by = Compiler(tokenizer._tokenizer, tokenizer.eos_token_ids, family="hermes", template="")
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 200}
    wanted = ResponseFormat("json_schema", "answer", schema, strict=True)
    compiled = made_by.compile(ChatPrompt((), response_format=wanted))
    assert compiled is not None
    return GrammarConstraint(made_by, compiled, None)


@pytest.mark.parametrize("streams", [1, 2, 4, 8, 16, 32])
def test_a_pass_serves_all_streams_whatever_they_ask_for(
    wide: ByHand, grammar: GrammarConstraint, streams: int
) -> None:
    engine = wide
    del engine.model.passes[:]
    kinds: list[dict[str, Any]] = [
        {"sampling": Sampling(temperature=1.0, seed=7)},
        {"sampling": Sampling(frequency_penalty=1.0, repetition_penalty=1.2)},
        {"constraint": grammar},
        {"logprobs": 3},
        {"stop_ids": frozenset({1})},  # which no answer has
        {"sampling": Sampling(logit_bias={40: 3.0}, temperature=0.5)},
    ]
    jobs = [
        make_job(number, words(12, start=number), 44, **kinds[number % len(kinds)])
        for number in range(streams)
    ]
    results = engine.run(*jobs)
    made = sum(len(got) for got in results.values())
    assert made >= 0.97 * 44 * streams  # a grammar may come to its end early
    assert len(engine.model.passes) / made <= 1.05 / streams


@given(
    most=st.integers(1, 4096),
    slices=st.lists(st.tuples(st.integers(1, 4096), st.floats(1e-4, 60)), max_size=8),
    steps=st.lists(st.floats(0, 10), max_size=8),
)
def test_a_slice_takes_a_quarter_of_a_second_or_four_steps(
    most: int, slices: list[tuple[int, float]], steps: list[float]
) -> None:
    size = SliceSize(most)
    for tokens, seconds in slices:
        size.slice_took(tokens, seconds)
    for took in steps:
        size.step_took(took)
    assert size.tokens(others_decode=False) == most
    chosen = size.tokens(others_decode=True)
    few = min(32, most)
    assert few <= chosen <= most
    measured = [tokens / seconds for tokens, seconds in slices if tokens >= few]
    if not measured:
        assert chosen == min(128, most)  # nothing was measured yet
        return
    # Never longer than the slowest slice says, nor shorter than the fastest.
    step = max(steps, default=0.0)
    if chosen > few:
        assert chosen / max(measured) <= max(0.25, 4 * step) * 1.001
    if chosen < most:
        assert (chosen + 1) / min(measured) >= 0.25 * 0.999


@given(rate=st.floats(10, 1e6), step=st.floats(1e-4, 5))
def test_a_steady_slice_is_as_long_as_it_should_be(rate: float, step: float) -> None:
    size = SliceSize(10**9)
    for tokens in (512, 32, 100_000):
        size.slice_took(tokens, tokens / rate)
    size.slice_took(31, 100.0)  # too short to say anything
    size.step_took(step)
    wanted = max(0.25, 4 * step) * rate
    assert size.tokens(others_decode=True) == pytest.approx(max(wanted, 32), abs=1.01, rel=1e-6)


@given(waiting=st.integers(1, 500), decoding=st.integers(0, 500), rate=st.floats(200, 1e5))
def test_short_prompts_are_computed_together_for_up_to_a_second_where_many_wait_for_few(
    waiting: int, decoding: int, rate: float
) -> None:
    size = SliceSize(10**9)
    size.slice_took(10_000, 10_000 / rate)
    alone = size.tokens(others_decode=decoding > 0)
    together = size.together(alone, waiting, decoding)
    assert together >= alone
    if decoding:
        assert together <= rate + 1
        if waiting <= decoding:
            assert together == alone
        if waiting >= 4 * decoding:
            assert together == pytest.approx(rate, abs=1)


def test_prompts_that_come_just_after_the_first_are_computed_a_few_at_a_time_not_one_by_one(
    start: Callable[..., ByHand], expected: Callable[[Job], list[int | None]]
) -> None:
    """How fast prompts are computed is known from the first one, which was alone."""
    engine = start(prefill_step_size=2048)
    jobs = [make_job(number, words(40, start=number), 12) for number in range(12)]
    engine.add(jobs[0])
    results = [*engine.step()]  # nothing else was known of the model's speed
    engine.add(*jobs[1:])
    engine.model.passes.clear()
    while engine.engine.busy:
        results += engine.step()
    prompts = [rows for rows, tokens in engine.model.passes if tokens > 1]
    assert sum(prompts) == len(jobs) - 1
    assert max(prompts) >= 4
    for job in jobs:
        assert [r.token for r in results if r.job_id == job.id] == expected(job)


# --- aborts -----------------------------------------------------------------------------------


def waiting(engine: ByHand) -> None:
    engine.add(*(make_job(number, SHORT, 40) for number in (2, 3)), make_job(1, LONG, 5))
    engine.until(lambda: len(engine.runner._live) == 2)
    assert not engine.runner._prefills[0].begun


def half_prefilled(engine: ByHand) -> None:
    engine.add(make_job(1, LONG, 5))
    engine.step()
    engine.step()
    assert 0 < engine.runner._prefills[0].done < len(LONG) - 1


def just_joined(engine: ByHand) -> None:
    engine.add(make_job(1, LONG, 5))
    engine.until(lambda: 1 in engine.runner._uids)
    assert not engine.engine._live[1].tokens


def handed_over(engine: ByHand) -> None:
    """A short prompt, in the generator's own hands."""
    engine.add(make_job(1, SHORT, 5))
    engine.step()
    assert 1 in engine.runner._uids
    assert not engine.engine._live[1].tokens


def decoding(engine: ByHand) -> None:
    engine.add(make_job(1, SHORT, 50))
    engine.until(lambda: len(engine.engine._live[1].tokens) >= 3)


def decoding_beside_others(engine: ByHand) -> None:
    engine.add(make_job(2, LONG, 9))
    decoding(engine)


def one_of_several_choices(engine: ByHand) -> None:
    engine.add(make_job(1, LONG, 50), make_job(2, LONG, 9, fork_of=1))
    engine.step()
    assert len(engine.runner._prefills[0].sequences) == 2


STATES = (
    *(waiting, half_prefilled, just_joined, handed_over),
    *(decoding, decoding_beside_others, one_of_several_choices),
)


@pytest.mark.parametrize("state", STATES)
def test_an_abort_leaves_nothing_behind(
    start: Callable[..., ByHand],
    expected: Callable[[Job], list[int | None]],
    state: Callable[[ByHand], None],
) -> None:
    engine = start(max_batch_size=2)
    engine.run(*(make_job(number, LONG, 3) for number in (7, 8)))
    before = memory(engine)
    for _ in range(2):
        state(engine)
        engine.abort(1)
        rest = engine.until(lambda: not engine.engine.busy)
        assert 1 not in rest
        assert nothing_left(engine)
    assert memory(engine) <= before + LAST_STEP
    check = make_job(9, LONG, 5)
    assert engine.answer(check) == expected(check)


@pytest.mark.parametrize("state", [None, waiting, half_prefilled, decoding])
def test_a_close_in_any_state_gives_the_memory_back(
    tiny_models: Path, state: Callable[[ByHand], None] | None
) -> None:
    before = mx.get_active_memory()
    engine = ByHand(tiny_models / "tiny" / "llama", max_batch_size=2, prefix_cache_bytes=10**8)
    if state is not None:
        state(engine)
    engine.close()
    assert mx.get_active_memory() <= before


def memory(engine: ByHand) -> int:
    """Bytes in use, without what a next step would free."""
    engine.call(device.give_memory_back)
    return mx.get_active_memory()


def test_an_abort_while_a_prompt_is_read_from_disk_leaves_nothing_behind(
    start: Callable[..., ByHand],
    expected: Callable[[Job], list[int | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = words(600)
    engine = start(prefix_disk=(tmp_path / "disk", 10**9), fingerprint="one", prefill_step_size=64)
    wanted = engine.answer(make_job(1, long, 3))
    disk = engine.engine._disk
    until_sync(lambda: len(list((tmp_path / "disk").glob("*.safetensors"))) == 2)
    endless: Future[Any] = Future()
    monkeypatch.setattr(disk, "read", lambda *args: endless)
    engine.add(make_job(2, long, 3))
    for _ in range(3):
        assert engine.step() == []
    assert engine.runner._prefills[0].waits_for() is endless
    # Others do not wait for it.
    short = make_job(3, SHORT, 4)
    engine.add(short)
    got = engine.until(lambda: 3 not in engine.engine._live)
    assert [result.token for result in got[3]] == expected(short)
    engine.abort(2)
    assert not engine.engine.busy
    assert nothing_left(engine)
    assert endless.cancelled(), "nobody waits for it any more"
    monkeypatch.undo()
    assert engine.answer(make_job(4, long, 3)) == wanted


# --- failures ---------------------------------------------------------------------------------


def test_a_model_that_fails_in_a_slice_fails_that_request_alone(
    start: Callable[..., ByHand], expected: Callable[[Job], list[int | None]]
) -> None:
    engine = start()
    stream, other = make_job(1, SHORT, 40), make_job(2, LONG, 5)
    poisoned = [*LONG[:60], POISON, *LONG[60:]]
    engine.add(stream)
    got = engine.until(lambda: bool(engine.engine._live[1].tokens))
    engine.model.failing_on(POISON)
    runner = engine.runner
    rest = engine.run(make_job(3, poisoned, 5), make_job(4, poisoned, 5, fork_of=3), other)
    assert engine.runner is runner, "nobody had to be computed anew"
    for number in (3, 4):
        assert [bool(result.error) for result in rest[number]] == [True]
    assert [result.token for result in (*got[1], *rest[1])] == expected(stream)
    assert [result.token for result in rest[2]] == expected(other)
    assert nothing_left(engine)


def test_a_model_that_fails_on_a_short_prompt_fails_that_request_alone(
    start: Callable[..., ByHand], expected: Callable[[Job], list[int | None]]
) -> None:
    engine = start()
    stream, half, other = make_job(1, SHORT, 40), make_job(2, LONG, 5), make_job(3, words(6), 9)
    engine.add(stream)
    got = engine.until(lambda: bool(engine.engine._live[1].tokens))
    engine.add(half)
    got[1] += engine.step()
    engine.model.failing_on(POISON)
    rest = engine.run(make_job(4, [30, POISON, 31], 5), other)
    assert [bool(result.error) for result in rest[4]] == [True]
    assert [result.token for result in (*got[1], *rest[1])] == expected(stream)
    assert [result.token for result in rest[2]] == expected(half)
    assert [result.token for result in rest[3]] == expected(other)


@pytest.mark.parametrize(
    ("failing", "prefix_cache_bytes"), [(1, 0), (2, 10**8), (4, 0), (7, 10**8)]
)
def test_a_failed_step_recovers_streams_and_prompts_half_done(
    start: Callable[..., ByHand],
    expected: Callable[[Job], list[int | None]],
    failing: int,
    prefix_cache_bytes: int,
) -> None:
    engine = start(prefix_cache_bytes=prefix_cache_bytes)
    stream, short = make_job(1, SHORT, 40), make_job(5, words(7), 4)
    halves = [make_job(2, LONG, 5), make_job(3, LONG, 5, fork_of=2), make_job(4, LONG[:90], 5)]
    engine.add(stream)
    got = engine.until(lambda: bool(engine.engine._live[1].tokens))
    engine.engine._runner = FailingRunner(engine.runner, {failing})
    rest = engine.run(*halves, short)
    assert [result.token for result in (*got[1], *rest[1])] == expected(stream)
    for job in (*halves, short):
        assert [result.token for result in rest[job.id]] == expected(job)
    assert nothing_left(engine)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_step_recovers_a_sequence_that_drafts_alone(
    tiny_models: Path, failing: int, expected: Callable[[Job], list[int | None]]
) -> None:
    engine = ByHand(tiny_models / "tiny" / "llama", prompt_lookup=True)
    try:
        job = make_job(1, LONG, 40)
        engine.add(job)
        got = engine.until(lambda: engine.runner._solo is not None and engine.runner._solo.decodes)
        engine.engine._runner = FailingRunner(engine.runner, {failing})
        rest = engine.until(lambda: not engine.engine.busy)
        answer = [result.token for result in (*got.get(1, []), *rest[1])]
        assert answer == expected(job)
        assert nothing_left(engine)
    finally:
        engine.close()


def test_an_abort_of_a_sequence_that_drafts_alone_leaves_nothing_behind(
    tiny_models: Path, expected: Callable[[Job], list[int | None]]
) -> None:
    engine = ByHand(tiny_models / "tiny" / "llama", prompt_lookup=True)
    try:
        engine.answer(make_job(8, LONG, 30))
        before = memory(engine)
        for _ in range(2):
            engine.add(make_job(1, LONG, 40))
            engine.until(lambda: engine.runner._solo is not None and engine.runner._solo.decodes)
            engine.step()
            engine.abort(1)
            assert not engine.engine.busy
            assert nothing_left(engine)
            assert memory(engine) <= before + LAST_STEP
        job = make_job(9, LONG, 30)
        assert engine.answer(job) == expected(job)
    finally:
        engine.close()
