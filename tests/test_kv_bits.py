"""KV caches of 4 and 8 bits: what they hold, what they cost, and which models cannot have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_router.engine.base import Sampling
from mlx_router.errors import ModelLoadFailed
from tests.context_support import DEMO
from tests.grammar_support import ids
from tests.models import make_model
from tests.stepping import ByHand, card_of, make_job, words
from tests.test_text_engine import make_gemma2

WIDE = {"head_dim": 32}
PROMPT = words(300)
DEMO_CHATS = [
    "<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n"
    for text in ("Hello! Who are you?", "What can MLX Router do?", "Tell me a story about a boat.")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kv_bits")
    for kind in ("llama", "qwen3"):
        make_model(kind, home / kind, changes=WIDE)
    make_model("llama", home / "wide", changes={"head_dim": 64})
    make_model("llama", home / "half", changes=WIDE, dtype="bfloat16")
    make_model("llama", home / "other", changes=WIDE, seed=1)
    make_model("llama", home / "narrow")  # heads of 16 numbers
    make_model("gemma3_text", home / "window", changes=WIDE)
    make_model("qwen3_next", home / "recurrent", changes=WIDE)
    make_gemma2(home / "gemma2", home / "llama")
    return home


@pytest.fixture(scope="module")
def loaded(folders: Path) -> Iterator[Callable[..., ByHand]]:
    """Engines with a prefix cache in memory, by name and kv_bits; each is loaded once."""
    known: dict[tuple[str, int | None], ByHand] = {}

    def get(name: str, bits: int | None) -> ByHand:
        if (name, bits) not in known:
            folder = DEMO if name == "demo" else folders / name
            known[name, bits] = ByHand(
                folder, kv_bits=bits, prefix_cache_bytes=10**9, prefill_step_size=64
            )
        engine = known[name, bits]
        engine.call(engine.engine.drop_caches)
        return engine

    yield get
    for engine in known.values():
        engine.close()


# --- quality and size ----------------------------------------------------------------------------


def test_eight_bits_say_nearly_what_full_precision_says(loaded: Callable[..., ByHand]) -> None:
    full, eight = loaded("demo", None), loaded("demo", 8)
    same = asked = 0
    for number, chat in enumerate(DEMO_CHATS):
        job = make_job(number, ids(chat), 12)
        wanted, got = full.answer(job), eight.answer(job)
        same += sum(one == other for one, other in zip(wanted, got, strict=True))
        asked += len(wanted)
    assert same >= 0.9 * asked


@pytest.mark.parametrize(
    ("name", "width", "group"), [("llama", 32, 32), ("wide", 32, 64), ("half", 16, 32)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_takes_its_bits_and_a_share_of_the_scales(
    loaded: Callable[..., ByHand], name: str, width: int, group: int, bits: int
) -> None:
    sizes = {}
    for kept in (None, bits):
        engine = loaded(name, kept)
        weights = engine.engine.memory_bytes()
        # 512 tokens, for which memory is taken in pieces of 256
        engine.answer(make_job(1, words(511), 1))
        sizes[kept] = engine.engine.memory_bytes() - weights
        assert sizes[kept] > 0
    scales = 2 * width / group  # a scale and a bias for each group
    assert sizes[bits] / sizes[None] == pytest.approx((bits + scales) / width, rel=0.02)


def test_what_a_load_says_of_the_cache_is_what_it_takes(loaded: Callable[..., ByHand]) -> None:
    full, four = loaded("llama", None), loaded("llama", 4)
    assert four.loaded.cache_bytes / full.loaded.cache_bytes == pytest.approx(6 / 32, rel=0.02)


# --- who can have one ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("window", "RotatingKVCache"),
        ("recurrent", "ArraysCache"),
        ("narrow", "heads have 16 numbers, not a multiple of 32"),
    ],
)
def test_a_model_that_cannot_have_one_is_refused_with_what_to_do(
    folders: Path, name: str, reason: str, bits: int
) -> None:
    before = mx.get_active_memory()
    with pytest.raises(ModelLoadFailed) as caught:
        ByHand(folders / name, kv_bits=bits)
    message = caught.value.message
    assert message.startswith(f"{name} cannot have a KV cache of {bits} bits")
    assert reason in message
    assert message.endswith("Leave kv_bits out of its config.")
    assert mx.get_active_memory() <= before


@pytest.mark.parametrize("name", ["llama", "qwen3", "wide", "half", "demo"])
@pytest.mark.parametrize("bits", [4, 8])
def test_bits_are_refused_nowhere_they_work(
    loaded: Callable[..., ByHand], name: str, bits: int
) -> None:
    engine = loaded(name, bits)
    assert not engine.loaded.batches
    assert engine.loaded.batch_trial is not None
    assert not engine.loaded.batch_trial.lasting  # without kv_bits it batches
    assert len(engine.answer(make_job(1, PROMPT[:40], 4))) == 4


def test_an_attention_that_reads_whole_numbers_only_is_refused(folders: Path) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        ByHand(folders / "gemma2", kv_bits=8)
    assert caught.value.message.endswith("Leave kv_bits out of its config.")


# --- together with the rest ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_a_prompt_that_is_kept_gives_the_same_answer(
    loaded: Callable[..., ByHand], bits: int
) -> None:
    engine = loaded("llama", bits)
    first = engine.run(make_job(1, PROMPT, 8))[1]
    again = engine.run(make_job(2, PROMPT, 8))[2]
    assert [result.token for result in again] == [result.token for result in first]
    assert (first[0].cached_tokens, again[0].cached_tokens) == (0, len(PROMPT) - 1)
    branch = [*PROMPT[:100], 5, 6, 7]
    cut = engine.run(make_job(3, branch, 8))[3]
    assert cut[0].cached_tokens == 100
    engine.call(engine.engine.drop_caches)
    assert engine.answer(make_job(4, branch, 8)) == [result.token for result in cut]


def test_a_prompt_on_disk_is_of_its_bits_only(folders: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prefix_disk": (tmp_path / "disk", 10**9), "fingerprint": "one"}
    options["prefill_step_size"] = 64
    answers: dict[int | None, list[Any]] = {}
    for bits in (8, 4, None):
        for cached in (0, 256):
            engine = ByHand(folders / "llama", kv_bits=bits, **options)
            try:
                results = engine.run(make_job(1, PROMPT, 6))[1]
            finally:
                engine.close()
            assert results[0].cached_tokens == cached
            said = [result.token for result in results]
            assert answers.setdefault(bits, said) == said


def test_requests_are_answered_one_at_a_time_and_none_is_lost(
    loaded: Callable[..., ByHand],
) -> None:
    engine = loaded("llama", 8)
    jobs = [make_job(number, words(30, start=number), 5) for number in range(4)]
    alone = {job.id: engine.answer(job) for job in jobs}
    engine.call(engine.engine.drop_caches)
    results = engine.run(*jobs)
    assert {number: [each.token for each in got] for number, got in results.items()} == alone
    assert all(rows == 1 for rows, _ in engine.model.passes)


def test_choices_share_their_prompt(loaded: Callable[..., ByHand]) -> None:
    engine = loaded("llama", 8)
    seeds = [Sampling(temperature=1.0, seed=seed) for seed in (1, 2, 3)]
    alone = [
        engine.answer(make_job(number, PROMPT, 6, sampling=seed))
        for number, seed in enumerate(seeds)
    ]
    engine.call(engine.engine.drop_caches)
    del engine.model.passes[:]
    jobs = [
        make_job(10 + number, PROMPT, 6, sampling=seed, fork_of=10 if number else None)
        for number, seed in enumerate(seeds)
    ]
    results = engine.run(*jobs)
    assert [[each.token for each in results[job.id]] for job in jobs] == alone
    assert sum(tokens for _, tokens in engine.model.passes if tokens > 1) <= len(PROMPT)


@pytest.mark.parametrize("steps", [0, 2, 6, 8])
def test_an_abort_lets_the_next_one_go_on(loaded: Callable[..., ByHand], steps: int) -> None:
    """While it waits, while its prompt is computed, and while it decodes."""
    engine = loaded("llama", 8)
    wanted = engine.answer(make_job(1, PROMPT[:90], 5))
    engine.call(engine.engine.drop_caches)
    engine.add(make_job(2, PROMPT, 50), make_job(3, PROMPT[:90], 5))
    for _ in range(steps):
        engine.step()
    engine.abort(2)
    results = engine.until(lambda: not engine.engine.busy)
    assert set(results) == {3}
    assert [result.token for result in results[3]] == wanted
    assert not engine.runner._queue
    assert not engine.runner._cache


def test_a_model_that_fails_on_a_prompt_fails_that_request_alone(
    loaded: Callable[..., ByHand],
) -> None:
    engine = loaded("llama", 8)
    poison = 470  # a token that no prompt of words() has
    others = [make_job(number, words(20, start=number), 5) for number in (1, 2, 3)]
    alone = {job.id: engine.answer(job) for job in others}
    engine.call(engine.engine.drop_caches)
    engine.model.failing_on(poison)
    try:
        results = engine.run(others[0], make_job(9, [30, poison, 31], 5), *others[1:])
    finally:
        engine.model.before = lambda ids: None
    assert [bool(result.error) for result in results.pop(9)] == [True]
    assert {number: [each.token for each in got] for number, got in results.items()} == alone


@pytest.mark.parametrize("draft", ["llama", "other"])
def test_a_draft_model_changes_no_answer(folders: Path, draft: str) -> None:
    answers = []
    drafting: dict[str, Any] = {"draft": card_of(folders / draft)}
    for more in ({}, drafting):
        engine = ByHand(folders / "llama", kv_bits=8, prefix_cache_bytes=10**8, **more)
        try:
            answers.append([engine.answer(make_job(1, PROMPT[:60], 12))])
            # Once more, from the prompt that is kept.
            answers[-1].append(engine.answer(make_job(2, PROMPT[:60], 12)))
            if more:
                assert engine.draft is not None
                assert engine.draft.passes
        finally:
            engine.close()
    assert answers[0] == answers[1]
