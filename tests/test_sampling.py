"""Sampling: what each parameter promises, on arrays and on a real model in a real batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

from mlx_router import ChatResult, MLXModelManager
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.sampling import LogitBias, Penalties, Sampler, make_processors, make_sampler

VOCAB = 50


def logprobs(seed: int = 0) -> mx.array:
    logits = mx.random.normal((1, VOCAB), key=mx.random.key(seed)) * 2
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def number(array: mx.array) -> float:
    return cast(float, array.item())


def draws(sampling: Sampling, scores: mx.array, times: int = 300) -> set[int]:
    sampler = make_sampler(sampling)
    assert sampler is not None
    return {int(number(sampler(scores))) for _ in range(times)}


def likeliest(scores: mx.array, count: int) -> set[int]:
    order = cast(list[int], mx.argsort(-scores[0]).tolist())
    return set(order[:count])


# --- the sampler ----------------------------------------------------------------------------


def test_temperature_zero_is_greedy() -> None:
    assert make_sampler(Sampling(temperature=0.0)) is None


def test_top_k_draws_from_the_k_likeliest_only() -> None:
    scores = logprobs()
    assert draws(Sampling(temperature=2.0, top_k=4, seed=1), scores) == likeliest(scores, 4)


def test_top_k_beyond_the_vocabulary_is_no_filter() -> None:
    assert len(draws(Sampling(temperature=5.0, top_k=VOCAB + 1000, seed=1), logprobs())) > 30


def test_top_p_draws_from_the_smallest_set_that_holds_p() -> None:
    scores = logprobs()
    total = 0.0
    nucleus: set[int] = set()
    for token in cast(list[int], mx.argsort(-scores[0]).tolist()):
        if total >= 0.6:
            break
        nucleus.add(token)
        total += number(mx.exp(scores[0, token]))
    assert 1 < len(nucleus) < VOCAB
    assert draws(Sampling(temperature=3.0, top_p=0.6, seed=1), scores, 600) == nucleus


def test_a_tiny_top_p_still_leaves_the_likeliest() -> None:
    scores = logprobs()
    assert draws(Sampling(temperature=1.0, top_p=0.0, seed=1), scores, 20) == likeliest(scores, 1)


def test_min_p_drops_what_is_less_likely_than_a_share_of_the_likeliest() -> None:
    scores = logprobs()
    probabilities = mx.exp(scores[0])
    least = 0.2 * number(probabilities.max())
    allowed = {i for i in range(VOCAB) if number(probabilities[i]) >= least}
    assert draws(Sampling(temperature=3.0, min_p=0.2, seed=1), scores, 600) == allowed


def test_draws_follow_the_probabilities() -> None:
    scores = logprobs(3)
    sampler = Sampler(Sampling(temperature=1.0, seed=7))
    counts = [0] * VOCAB
    for _ in range(4000):
        counts[int(number(sampler(scores)))] += 1
    for token in likeliest(scores, 3):
        expected = number(mx.exp(scores[0, token]))
        assert counts[token] / 4000 == pytest.approx(expected, abs=0.03)


def test_the_number_for_a_token_depends_on_seed_and_position_alone() -> None:
    scores = logprobs()
    sampling = Sampling(temperature=1.0, seed=5)
    whole = Sampler(sampling)
    tokens = [int(number(whole(scores))) for _ in range(12)]
    resumed = Sampler(sampling, position=6)
    assert [int(number(resumed(scores))) for _ in range(6)] == tokens[6:]
    other = Sampler(Sampling(temperature=1.0, seed=6))
    assert [int(number(other(scores))) for _ in range(12)] != tokens


def test_a_sharper_sampler_draws_with_the_same_numbers_at_a_lower_temperature() -> None:
    scores = logprobs()
    sampling = Sampling(temperature=2.0, seed=5)
    sampler, colder = Sampler(sampling), Sampler(Sampling(temperature=1.0, seed=5))
    sharper = sampler.sharper(0.5)
    tokens = [int(number(colder(scores))) for _ in range(12)]
    assert [int(number(sharper(scores))) for _ in range(12)] == tokens
    assert sampler.position == 0


# --- processors -----------------------------------------------------------------------------


def test_penalties_count_generated_tokens_not_the_prompt() -> None:
    penalties = Penalties(Sampling(presence_penalty=0.5, frequency_penalty=0.25), prompt=[1, 2])
    logits = mx.zeros((1, 6))
    assert penalties(mx.array([1, 2]), logits).tolist() == [[0] * 6]
    once = penalties(mx.array([1, 2, 4]), logits).tolist()
    assert once == [[0, 0, 0, 0, -0.75, 0]]
    twice = penalties(mx.array([1, 2, 4, 4]), logits).tolist()
    assert twice == [[0, 0, 0, 0, -1.0, 0]]


def test_repetition_penalty_counts_the_prompt_too() -> None:
    penalties = Penalties(Sampling(repetition_penalty=2.0), prompt=[0, 1])
    logits = mx.array([[4.0, -4.0, 4.0]])
    assert penalties(mx.array([0, 1]), logits).tolist() == [[2.0, -8.0, 4.0]]


def test_penalties_resume_where_they_were() -> None:
    penalties = Penalties(Sampling(frequency_penalty=1.0), prompt=[0], generated=[3, 3])
    logits = mx.zeros((1, 5))
    assert penalties(mx.array([0, 3, 3]), logits).tolist() == [[0, 0, 0, -2, 0]]


def test_logit_bias_is_added() -> None:
    bias = LogitBias({1: 5.0, 3: -100.0})
    assert bias(mx.array([0]), mx.zeros((1, 4))).tolist() == [[0, 5, 0, -100]]


def test_no_processor_where_nothing_asks_for_one() -> None:
    job = Job(id=1, prompt=[1, 2], max_tokens=5, sampling=Sampling(temperature=0.7, top_p=0.9))
    assert make_processors(job) == []


# --- on a real model ------------------------------------------------------------------------


@pytest.fixture
async def manager(tiny_models: Path) -> AsyncIterator[MLXModelManager]:
    async with MLXModelManager(model_directory=tiny_models / "tiny") as manager:
        yield manager


async def ask(manager: MLXModelManager, prompt: str = "Hello", **options: Any) -> ChatResult:
    given = {"max_tokens": 24, "temperature": 1.0, **options}
    return await manager.achat(prompt, model="llama", **given)


async def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(
    manager: MLXModelManager,
) -> None:
    alone = await ask(manager, seed=11)
    company = [ask(manager, f"Number {i}", seed=i, temperature=0.3 * i) for i in range(5)]
    _, in_batch, *_ = await asyncio.gather(company[0], ask(manager, seed=11), *company[1:])
    assert in_batch.token_ids == alone.token_ids
    assert len(alone.token_ids) == 24
    other = await ask(manager, seed=12)
    assert other.token_ids != alone.token_ids


async def test_without_a_seed_answers_differ(manager: MLXModelManager) -> None:
    first, second = await asyncio.gather(ask(manager), ask(manager))
    assert first.token_ids != second.token_ids


async def test_greedy_rows_stay_greedy_beside_sampled_ones(manager: MLXModelManager) -> None:
    alone = await ask(manager, temperature=0)
    together = await asyncio.gather(
        ask(manager, temperature=0), *(ask(manager, temperature=2.0) for _ in range(3))
    )
    assert together[0].token_ids == alone.token_ids
    assert together[1].token_ids != alone.token_ids


async def test_logit_bias_forces_and_forbids(manager: MLXModelManager) -> None:
    plain = await ask(manager, temperature=0)
    forbidden = plain.token_ids[0]
    without = await ask(manager, temperature=0, logit_bias={forbidden: -100})
    assert forbidden not in without.token_ids
    forced = await ask(manager, temperature=0, max_tokens=6, logit_bias={200: 100})
    assert forced.token_ids == (200,) * 6


async def test_a_strong_frequency_penalty_leaves_no_repetition(manager: MLXModelManager) -> None:
    forced = dict.fromkeys(range(100, 130), 50.0)
    plain = await ask(manager, temperature=0, logit_bias=forced, max_tokens=20)
    assert len(set(plain.token_ids)) < 20
    spread = await ask(
        manager, temperature=0, logit_bias=forced, frequency_penalty=2.0, max_tokens=20
    )
    assert len(set(spread.token_ids)) > len(set(plain.token_ids))


async def test_stop_strings_are_never_shown(manager: MLXModelManager) -> None:
    whole = await ask(manager, temperature=0, max_tokens=30)
    text = whole.content
    assert len(text) > 20
    for start, length in ((8, 1), (8, 3), (10, 6)):  # within a token, and over several
        stop = text[start : start + length]
        cut = await ask(manager, temperature=0, max_tokens=30, stop=[stop, "never in there"])
        assert cut.content == text[: text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.usage.completion_tokens < 30


async def test_max_tokens_ends_with_length(manager: MLXModelManager) -> None:
    result = await ask(manager, temperature=0, max_tokens=7)
    assert result.finish_reason == "length"
    assert result.usage.completion_tokens == len(result.token_ids) == 7
