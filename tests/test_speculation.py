"""Speculative decoding: the answer is the one without it, whatever is drafted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import QuantizedKVCache

from mlx_router.domain import FinishReason
from mlx_router.engine.base import Sampling
from mlx_router.engine.sampling import Sampler
from mlx_router.engine.speculation.draft import DraftModel
from mlx_router.engine.speculation.lookup import Lookup
from mlx_router.engine.speculation.loop import Speculation, accepted
from tests.models import VOCAB_SIZE
from tests.speculation_support import (
    GREEDY,
    LENGTH,
    PROMPT,
    Always,
    Counted,
    Held,
    Models,
    Parrot,
    Script,
    begin,
    draft_model,
    filled,
    plain,
    run,
)

REPETITIVE = [11, 200, 31, 47, 52] * 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("speculation"))


# --- the same answer ------------------------------------------------------------------------


@pytest.mark.parametrize("drafted", range(1, 9))
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_answer_is_the_one_of_mlx_lm_when_every_guess_is_right(
    models: Models, kind: str, drafted: int
) -> None:
    model = models.get(kind)
    counted = Counted(model)
    speculation = begin(counted, draft_model(model), PROMPT, drafted=drafted)
    counted.passes = 0
    assert run(speculation) == plain(model, PROMPT)
    assert counted.passes == -(-LENGTH // (drafted + 1))
    assert speculation.finish is FinishReason.LENGTH


@pytest.mark.parametrize("drafted", range(1, 9))
def test_the_answer_is_the_one_of_mlx_lm_when_every_guess_is_wrong(
    models: Models, drafted: int
) -> None:
    model = models.get()
    expected = plain(model, PROMPT)
    wrong = [(token + 1) % VOCAB_SIZE for token in expected]
    counted = Counted(model)
    speculation = begin(counted, Parrot(wrong, len(PROMPT)), PROMPT, drafted=drafted)
    counted.passes = 0
    assert run(speculation) == expected
    assert counted.passes == LENGTH


@pytest.mark.parametrize("drafted", range(1, 9))
def test_the_answer_is_the_one_of_mlx_lm_with_a_draft_model_that_knows_nothing(
    models: Models, drafted: int
) -> None:
    drafter = draft_model(models.get(seed=1))
    assert run(begin(models.get(), drafter, PROMPT, drafted=drafted)) == plain(models.get(), PROMPT)
    assert drafter.likely < 0.3


@pytest.mark.parametrize("drafted", range(1, 9))
@pytest.mark.parametrize("prompt", [REPETITIVE, PROMPT], ids=["repetitive", "other"])
def test_the_answer_is_the_one_of_mlx_lm_with_prompt_lookup(
    models: Models, prompt: list[int], drafted: int
) -> None:
    found = run(begin(models.get(), Lookup(prompt), prompt, drafted=drafted))
    assert found == plain(models.get(), prompt)


SAMPLED = [
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=11),
    Sampling(temperature=1.5, min_p=0.05, seed=5),
]


@pytest.mark.parametrize("sampling", SAMPLED)
@pytest.mark.parametrize("drafted", [1, 6])
def test_a_sampled_answer_is_the_one_of_its_seed(
    models: Models, sampling: Sampling, drafted: int
) -> None:
    model = models.get()
    expected = plain(model, PROMPT, sampling)
    right = Parrot(expected, len(PROMPT))
    for drafter in (right, draft_model(models.get(seed=1)), Lookup(PROMPT)):
        found = run(begin(model, drafter, PROMPT, sampling=sampling, drafted=drafted))
        assert found == expected


class Greedy(DraftModel):
    def draft(
        self, context: Sequence[int], count: int, sampler: Sampler | None = None
    ) -> list[int]:
        return super().draft(context, count, None)


def test_a_draft_drawn_with_the_random_numbers_of_the_answer_is_right_more_often(
    models: Models,
) -> None:
    passes = {}
    for drafter in (DraftModel, Greedy):
        counted = Counted(models.get())
        for sampling in SAMPLED[::2]:
            draft = draft_model(models.get(), cls=drafter)
            run(begin(counted, draft, PROMPT, sampling=sampling, drafted=7))
        passes[drafter] = counted.passes
    assert passes[DraftModel] < passes[Greedy]


def test_without_a_seed_answers_differ(models: Models) -> None:
    sampling = Sampling(temperature=1.0)
    first, second = (
        run(begin(models.get(), Lookup(PROMPT), PROMPT, sampling=sampling)) for _ in range(2)
    )
    assert first != second


def test_rows_of_a_sampler_are_the_draws_one_by_one() -> None:
    logits = mx.random.normal((5, 60), key=mx.random.key(0))
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for sampling in SAMPLED:
        one, all_of_them = Sampler(sampling, position=4), Sampler(sampling, position=4)
        each = mx.concatenate([one(logprobs[i : i + 1]) for i in range(5)])
        assert all_of_them(logprobs).tolist() == each.tolist()
        assert one.position == all_of_them.position == 9


# --- where it ends, and what it leaves ------------------------------------------------------


@pytest.mark.parametrize("place", range(7))
def test_a_stop_id_inside_a_draft_ends_the_answer(models: Models, place: int) -> None:
    expected = plain(models.get(), PROMPT)
    stop = frozenset({expected[place]})
    first = expected.index(expected[place])
    speculation = begin(
        models.get(), Parrot(expected, len(PROMPT)), PROMPT, drafted=8, stop_ids=stop
    )
    assert run(speculation) == expected[: first + 1]
    assert speculation.finish is FinishReason.STOP
    assert speculation.tokens == expected[: first + 1]
    assert_holds_its_context(models.get(), speculation)


@pytest.mark.parametrize("remaining", range(1, 12))
def test_an_answer_never_exceeds_its_length(models: Models, remaining: int) -> None:
    expected = plain(models.get(), PROMPT)
    speculation = begin(
        models.get(), Parrot(expected, len(PROMPT)), PROMPT, drafted=8, remaining=remaining
    )
    assert run(speculation) == expected[:remaining]
    assert speculation.finish is FinishReason.LENGTH
    assert speculation.remaining == 0
    assert_holds_its_context(models.get(), speculation)


def test_after_each_step_the_cache_holds_all_but_the_last_token(
    models: Models,
) -> None:
    expected = plain(models.get(), PROMPT)
    mixed = [token if i % 5 else 9 for i, token in enumerate(expected)]
    speculation = begin(models.get(), Parrot(mixed, len(PROMPT)), PROMPT, drafted=6)
    while speculation.finish is None:
        speculation.step()
        assert speculation.context == PROMPT + speculation.tokens
        assert_holds_its_context(models.get(), speculation)


def assert_holds_its_context(model: Any, speculation: Speculation) -> None:
    held = speculation.context[:-1]
    fresh = filled(model, held)
    for layer, other in zip(speculation.cache, fresh, strict=True):
        assert layer.offset == other.offset == len(held)
        for ours, theirs in zip(layer.keys_and_values(), other.keys_and_values(), strict=True):
            assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_another_takes_the_sequence_over_where_it_is(models: Models) -> None:
    for sampling in (GREEDY, SAMPLED[0]):
        expected = plain(models.get(), PROMPT, sampling)
        right = Parrot(expected, len(PROMPT))
        first = begin(models.get(), right, PROMPT, sampling=sampling, drafted=3)
        done = first.step() + first.step()
        assert len(done) == 8
        second = Speculation(
            models.get(),
            first.cache,
            first.context,
            len(done),
            sampling,
            Lookup(first.context),
            stop_ids=frozenset(),
            remaining=first.remaining,
            pace=Always(3),
        )
        assert done + run(second) == expected
        assert second.tokens == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_cache_gives_the_answer_that_it_gives_without_drafts(
    models: Models, bits: int
) -> None:
    model = models.get(head_dim=32)  # what is quantised together
    layers = [QuantizedKVCache(group_size=32, bits=bits) for _ in model.layers]
    without = run(begin(model, Parrot([], 0), PROMPT, layers=copy.deepcopy(layers)))
    for drafter in (Parrot(without, len(PROMPT)), draft_model(model), Lookup(PROMPT)):
        speculation = begin(model, drafter, PROMPT, layers=copy.deepcopy(layers))
        assert run(speculation) == without
        assert {layer.offset for layer in speculation.cache} == {len(speculation.context) - 1}


# --- acceptance, with a model that is a function --------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 30),
    st.sets(st.integers(0, 9), max_size=2),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.integers(0, 8),
)
def test_any_draft_gives_the_same_answer(
    prompt: list[int], length: int, stops: set[int], right: list[bool], drafted: int
) -> None:
    model, held = Script(), Held()
    held.tokens = prompt[:-1]
    whole = model.answer(prompt, length)
    ends = [place for place, token in enumerate(whole) if token in stops]
    expected = whole[: ends[0] + 1] if ends else whole
    guesses = [t if ok else (t + 1) % 10 for t, ok in zip(whole, right, strict=False)]
    speculation = Speculation(
        model,
        [held],
        prompt,
        0,
        GREEDY,
        Parrot(guesses, len(prompt)),
        stop_ids=frozenset(stops),
        remaining=length,
        pace=Always(drafted),
    )
    assert run(speculation) == expected
    assert held.tokens == speculation.context[:-1] == (prompt + expected)[:-1]
    assert model.passes <= len(expected)
    assert (speculation.finish is FinishReason.STOP) == bool(ends)


def test_what_is_accepted_ends_at_the_first_wrong_guess() -> None:
    nothing = frozenset[int]()
    assert accepted([], [4], nothing, 9) == [4]
    assert accepted([4, 5], [4, 5, 6], nothing, 9) == [4, 5, 6]
    assert accepted([4, 5], [4, 7, 6], nothing, 9) == [4, 7]
    assert accepted([4, 5], [3, 5, 6], nothing, 9) == [3]
    assert accepted([4, 5], [4, 5, 6], frozenset({5}), 9) == [4, 5]
    assert accepted([4, 5], [4, 5, 6], nothing, 2) == [4, 5]
