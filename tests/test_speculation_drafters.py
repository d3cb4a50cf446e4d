"""What guesses how an answer goes on: prompt lookup, and a second model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Sampling
from mlx_router.engine.sampling import Sampler, make_sampler
from mlx_router.engine.speculation.draft import DraftModel, load_draft
from mlx_router.engine.speculation.lookup import Lookup
from mlx_router.errors import ModelLoadFailed
from tests.models import VOCAB_SIZE, copy_model, truncate_shard, write_json
from tests.speculation_support import (
    GREEDY,
    LENGTH,
    PROMPT,
    Counted,
    Models,
    begin,
    draft_model,
    plain,
    run,
)

WIDER = VOCAB_SIZE + 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("speculation"))


# --- drafters -------------------------------------------------------------------------------


def test_lookup_drafts_what_followed_the_latest_occurrence() -> None:
    context = [1, 2, 3, 50, 51, 9, 1, 2, 3, 60, 61, 62, 8, 1, 2, 3]
    lookup = Lookup(context)
    assert lookup.draft(context, 3) == [60, 61, 62]
    assert lookup.draft([*context, 50], 2) == [51, 9]
    lookup.observe(51)
    assert lookup.draft([*context, 50, 51], 1) == [9]


def test_lookup_prefers_the_longer_match_and_settles_for_the_shorter() -> None:
    assert Lookup([1, 2, 3, 50, 7, 2, 3, 60, 1, 2, 3]).draft([], 1) == [50]
    assert Lookup([1, 2, 3, 50, 9, 2, 3]).draft([], 1) == [50]


def test_lookup_goes_on_with_what_repeats_itself() -> None:
    assert Lookup([7, 8, 9] * 3).draft([], 8) == [7, 8, 9, 7, 8, 9, 7, 8]


@pytest.mark.parametrize("context", [[1], [1, 2], [1, 2, 3], list(range(3000))])
def test_lookup_drafts_nothing_where_nothing_is_repeated(context: list[int]) -> None:
    assert Lookup(context).draft(context, 8) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 60))
def test_lookup_drafts_only_what_did_follow(context: list[int], built: int) -> None:
    built = max(1, min(built, len(context)))
    lookup = Lookup(context[:built])
    draft = lookup.draft(context, 4)
    repeats = any(context[i : i + 2] == context[-2:] for i in range(len(context) - 2))
    assert bool(draft) == (len(context) > 2 and repeats)
    if draft:
        both = [*context[-2:], draft[0]]
        assert any(context[i : i + 3] == both for i in range(len(context) - 2))


def test_lookup_knows_when_an_answer_begins_to_copy_and_when_it_ends() -> None:
    source = random.Random(1).sample(range(100_000), 200)
    lookup = Lookup(source)
    for token in range(200_000, 200_020):
        lookup.observe(token)
    assert lookup.likely == 0
    for token in source[50:70]:
        lookup.observe(token)
    assert lookup.likely > 0.85
    for token in range(300_000, 300_020):
        lookup.observe(token)
    assert lookup.likely < 0.1


def test_a_draft_model_computes_one_slice_of_a_long_prompt_at_a_time(
    models: Models,
) -> None:
    counted = Counted(models.get())
    drafter = draft_model(counted)
    prompt = random.Random(2).choices(range(20, 400), k=200)
    for slices in range(1, 4):
        assert drafter.draft(prompt, 3) == []
        assert counted.passes == slices
    assert drafter.draft(prompt, 3) == plain(models.get(), prompt, n=3)
    assert counted.passes == 6


def test_a_draft_model_goes_on_from_what_contexts_share(models: Models) -> None:
    drafter = draft_model(models.get())
    prompt = random.Random(3).choices(range(20, 400), k=60)
    others = [prompt, prompt[:40] + PROMPT, PROMPT, prompt[:20]]
    for context in others:
        while not (draft := drafter.draft(context, 4)):
            pass
        assert draft == plain(models.get(), context, n=4)
    assert drafter.cache_bytes > 0
    drafter.clear()
    assert drafter.cache_bytes == 0
    assert drafter.draft(PROMPT, 4) == plain(models.get(), PROMPT, n=4)


def test_a_draft_model_that_guesses_badly_is_tried_again_after_a_while(models: Models) -> None:
    drafter = draft_model(models.get())
    while drafter.likely > 0.1:
        (guess,) = drafter.draft(PROMPT, 1)
        drafter.observe(guess + 1)
    low = drafter.likely
    for _ in range(62):
        drafter.observe(0)
    assert drafter.likely == low
    drafter.observe(0)
    assert drafter.likely > 0.5


def test_no_id_is_drafted_or_embedded_that_a_model_does_not_have(
    models: Models,
) -> None:
    narrow, wide = models.get(), models.get(vocab_size=WIDER)
    beyond = [WIDER - 1, 5, 90, VOCAB_SIZE + 3, 41]
    for model, drafter in (
        (wide, draft_model(narrow, vocab_size=WIDER)),
        (narrow, draft_model(wide, own_size=WIDER)),
    ):
        prompt = beyond if model is wide else PROMPT
        for sampling in (GREEDY, Sampling(temperature=3.0, seed=1)):
            assert run(begin(model, drafter, prompt, sampling=sampling)) == plain(
                model, prompt, sampling
            )
            drafter.clear()
            drafted = drafter.draft(prompt, 60, make_sampler(sampling))
            assert max(drafted) < VOCAB_SIZE


class Failing:
    likely = 1.0

    def observe(self, token: int) -> None: ...

    def draft(self, context: Sequence[int], count: int, sampler: Sampler | None) -> list[int]:
        raise RuntimeError("injected")


def test_an_answer_goes_on_without_a_drafter_that_fails(models: Models) -> None:
    speculation = begin(models.get(), Failing(), PROMPT)
    assert speculation.helps
    assert run(speculation) == plain(models.get(), PROMPT)
    assert not speculation.helps


def test_a_draft_model_that_failed_drafts_rightly_for_the_next(models: Models) -> None:
    class Once(Counted):
        def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
            logits = super().__call__(ids, cache)
            if self.passes == 4:
                raise RuntimeError("injected")
            return logits

    drafter = draft_model(Once(models.get()))
    expected = plain(models.get(), PROMPT)
    assert run(begin(models.get(), drafter, PROMPT)) == expected
    assert drafter.cache_bytes == 0
    counted = Counted(models.get())
    speculation = begin(counted, drafter, PROMPT, drafted=7)
    counted.passes = 0
    assert run(speculation) == expected
    assert counted.passes == LENGTH / 8


# --- loading --------------------------------------------------------------------------------


def card(folder: Path, name: str) -> ModelCard:
    return ModelCard(id=name, path=folder, kind=ModelKind.TEXT, architecture="")


def load(draft: Path, target: Path) -> DraftModel:
    return load_draft(
        card(draft, "org/small"), card(target, "org/large"), VOCAB_SIZE, prefill_step_size=64
    )


def test_a_draft_model_is_loaded_and_gives_its_memory_back(models: Models) -> None:
    drafter = load(models.folder(seed=1), models.folder())
    assert drafter.weight_bytes > 100_000
    assert len(drafter.draft(PROMPT, 5)) == 5
    before = mx.get_active_memory()
    freed = drafter.weight_bytes
    drafter.close()
    drafter.close()
    assert before - mx.get_active_memory() >= freed


def edited(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    copied = copy_model(folder, target)
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    change(tokenizer)
    write_json(copied / "tokenizer.json", tokenizer)
    return copied


def swap_two_tokens(tokenizer: dict[str, Any]) -> None:
    ids = tokenizer["model"]["vocab"]
    first, second = sorted(ids, key=ids.__getitem__)[40:42]
    ids[first], ids[second] = ids[second], ids[first]


def rename_an_added_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][-1]["content"] = "<|reserved|>"


def drop_the_vocabulary(tokenizer: dict[str, Any]) -> None:
    del tokenizer["model"]["vocab"]


@pytest.mark.parametrize("change", [swap_two_tokens, drop_the_vocabulary])
def test_a_draft_model_of_another_vocabulary_is_refused(
    models: Models, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    other = edited(models.folder(), tmp_path / "other", change)
    assert_refused(other, models.folder(), tmp_path)
    assert_refused(models.folder(), other, tmp_path)


def test_added_tokens_may_have_other_names(models: Models, tmp_path: Path) -> None:
    load(
        edited(models.folder(), tmp_path / "other", rename_an_added_token), models.folder()
    ).close()


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_next"])
def test_a_draft_model_that_cannot_go_back_is_refused(
    models: Models, tmp_path: Path, kind: str
) -> None:
    assert_refused(models.folder(kind), models.folder(), tmp_path)


def test_a_broken_draft_model_is_refused(models: Models, tmp_path: Path) -> None:
    broken = copy_model(models.folder(), tmp_path / "broken")
    truncate_shard(broken)
    assert_refused(broken, models.folder(), tmp_path)
    nothing = copy_model(models.folder(), tmp_path / "nothing")
    (nothing / "tokenizer.json").unlink()
    assert_refused(nothing, models.folder(), tmp_path)


def assert_refused(draft: Path, target: Path, home: Path) -> None:
    with pytest.raises(ModelLoadFailed) as refused:
        load(draft, target)
    said = refused.value.message
    assert "org/small, the draft_model of org/large," in said
    assert "leave it out" in said
    assert str(home) not in said
    assert refused.value.__traceback__ is not None
