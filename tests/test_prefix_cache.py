"""Which computed prompts are kept, and which of them a prompt may go on from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from mlx_router.engine.prefix.cache import PrefixCache, text_key

WINDOW = 32
PLENTY = 10**9

CHAT = list(range(100, 140))


def kept_cache(ids: Sequence[int], cache: list[Any] | None = None) -> list[Any]:
    """A KV cache whose rows are the token ids that it holds; ``cache``: written to as well."""
    cache = [KVCache()] if cache is None else cache
    rows = mx.array(list(ids), dtype=mx.float32).reshape(1, 1, -1, 1)
    for layer in cache:
        if isinstance(layer, ArraysCache):  # a recurrent state: what it has seen, in one number
            seen = 0.0 if layer[0] is None else layer[0].item()
            layer[0] = mx.array([[seen + sum(ids)]])
        else:
            layer.update_and_fetch(rows, rows)
    return cache


def held(layer: Any) -> list[int]:
    """The ids in a cache, as attention reads them."""
    keys = layer.keys_and_values()[0]
    found: list[int] = keys.flatten().astype(mx.int32).tolist()
    return found


def keep(prefixes: PrefixCache, ids: Sequence[int], scope: str = "") -> None:
    prefixes.keep(scope, text_key(ids), kept_cache(ids), {})


def found_tokens(prefixes: PrefixCache, ids: Sequence[int], scope: str = "") -> int:
    return prefixes.find(scope, text_key(ids)).tokens


# --- what is found --------------------------------------------------------------------------


def test_the_longest_common_beginning_is_found() -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, [*CHAT[:20], 1, 2, 3])
    keep(prefixes, [*CHAT[:30], 4, 5, 6])
    keep(prefixes, [*CHAT[:25], 7, 8, 9])
    found = prefixes.find("", text_key([*CHAT, 1, 2]))
    assert found.cache is not None
    assert found.tokens == 30
    assert held(found.cache[0]) == CHAT[:30]


def test_at_least_one_token_is_left_to_compute() -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, CHAT)
    for ids in (CHAT, CHAT[:-5]):
        found = prefixes.find("", text_key(ids))
        assert found.cache is not None
        assert held(found.cache[0]) == ids[:-1]
        assert found.tokens == len(ids) - 1
    assert found_tokens(prefixes, [*CHAT, 1]) == len(CHAT)


@pytest.mark.parametrize("ids", [[], [5], CHAT[:8], [1, *CHAT], [-1] * 40])
def test_prompts_that_have_little_or_nothing_in_common_with_another_find_nothing(
    ids: list[int],
) -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, CHAT)
    assert found_tokens(prefixes, ids) == 0


@pytest.mark.parametrize("ids", [[], [5], CHAT[:8]])
def test_short_prompts_are_not_kept(ids: list[int]) -> None:
    """Nor may a cache that holds nothing yet raise."""
    prefixes = PrefixCache(PLENTY)
    cache = kept_cache(ids) if ids else [KVCache(), RotatingKVCache(WINDOW), ArraysCache(1)]
    prefixes.keep("", text_key(ids), cache, {})
    assert prefixes.nbytes == 0
    assert found_tokens(prefixes, CHAT) == 0


def test_what_one_scope_computed_no_other_finds() -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, CHAT, "one")
    assert found_tokens(prefixes, CHAT, "two") == found_tokens(prefixes, CHAT, "") == 0
    keep(prefixes, CHAT[:30], "two")
    assert found_tokens(prefixes, CHAT, "one") == len(CHAT) - 1
    assert found_tokens(prefixes, CHAT, "two") == 30


def test_a_longer_prompt_of_one_scope_drops_nothing_of_another() -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, CHAT[:30], "one")
    keep(prefixes, CHAT, "two")
    assert found_tokens(prefixes, CHAT, "one") == 30


def test_numbers_of_images_are_compared_exactly() -> None:
    """They are as large as integers are: none is rounded to another."""
    prefixes = PrefixCache(PLENTY)
    number = -(2**62)
    key = text_key([*CHAT[:20], number, number, 1, 2])
    prefixes.keep("", key, kept_cache(range(len(key))), {})
    other = text_key([*CHAT[:20], number + 1, number, 1, 2])
    found = prefixes.find("", other)
    assert found.cache is not None
    assert found.tokens == 20
    assert found.lost_images
    whole = prefixes.find("", np.append(key, 3))
    assert whole.cache is not None
    assert whole.tokens == len(key)
    assert not whole.lost_images


def test_images_are_lost_only_with_the_part_that_is_cut_off() -> None:
    prefixes = PrefixCache(PLENTY)
    key = text_key([*CHAT[:20], -7, -7, 1, 2])
    prefixes.keep("", key, kept_cache(range(len(key))), {})
    for tokens, lost in ((20, True), (21, True), (22, False), (23, False)):
        found = prefixes.find("", np.append(key[:tokens], 9))
        assert found.cache is not None
        assert (found.tokens, found.lost_images) == (tokens, lost)


# --- what cannot be cut back ----------------------------------------------------------------


def layers() -> list[Any]:
    return [KVCache(), RotatingKVCache(max_size=WINDOW), ArraysCache(1)]


@pytest.mark.parametrize("layer", [1, 2], ids=["a window that was exceeded", "a recurrent state"])
def test_what_cannot_be_cut_is_used_as_a_whole_or_not_at_all(layer: int) -> None:
    prefixes = PrefixCache(PLENTY)
    cache = kept_cache(CHAT, [layers()[0], layers()[layer]])
    prefixes.keep("", text_key(CHAT), cache, {})
    assert found_tokens(prefixes, CHAT) == 0, "its last token could not be computed again"
    assert found_tokens(prefixes, [*CHAT[:35], 1, 2]) == 0
    found = prefixes.find("", text_key([*CHAT, 1]))
    assert found.cache is not None
    assert found.tokens == len(CHAT)


def test_a_window_that_is_not_full_is_cut() -> None:
    prefixes = PrefixCache(PLENTY)
    ids = CHAT[: WINDOW - 1]
    prefixes.keep("", text_key(ids), kept_cache(ids, layers()[:2]), {})
    found = prefixes.find("", text_key([*ids[:20], 1, 2]))
    assert found.cache is not None
    assert [held(layer) for layer in found.cache] == [ids[:20]] * 2
    kept_cache([1, 2], found.cache)
    assert [held(layer) for layer in found.cache] == [[*ids[:20], 1, 2]] * 2


def test_a_shorter_prompt_is_found_in_a_longer_one_that_cannot_be_cut() -> None:
    prefixes = PrefixCache(PLENTY)
    for ids in (CHAT[:30], CHAT):
        prefixes.keep("", text_key(ids), kept_cache(ids, [KVCache(), ArraysCache(1)]), {})
    assert found_tokens(prefixes, [*CHAT[:30], 1]) == 30
    assert found_tokens(prefixes, [*CHAT, 1]) == 40
    # Of two that hold the same the later one stays.
    size = prefixes.nbytes
    prefixes.keep("", text_key(CHAT), kept_cache(CHAT, [KVCache(), ArraysCache(1)]), {})
    assert prefixes.nbytes == size


# --- who writes to what ---------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [20, 31, 40])
def test_a_prompt_that_goes_on_from_a_kept_one_changes_nothing_of_it(tokens: int) -> None:
    prefixes = PrefixCache(PLENTY)
    keep(prefixes, CHAT)
    prompts = [[*CHAT[:tokens], *more] for more in ([1, 2, 3], [4], [5, 6])]
    found = [prefixes.find("", text_key(ids)) for ids in prompts]
    for each, ids in zip(found, prompts, strict=True):
        assert each.cache is not None
        for token in ids[tokens:]:  # token by token: into the place of what was cut off
            kept_cache([token], each.cache)
    for each, ids in zip(found, prompts, strict=True):
        assert each.cache is not None
        assert held(each.cache[0]) == ids
    whole = prefixes.find("", text_key([*CHAT, 9]))
    assert whole.cache is not None
    assert held(whole.cache[0]) == CHAT


def test_a_full_window_and_a_state_that_are_found_are_not_shared() -> None:
    prefixes = PrefixCache(PLENTY)
    cache = kept_cache(CHAT, layers()[1:])
    for token in (1, 2):
        kept_cache([token], cache)  # the window has turned
    ids = [*CHAT, 1, 2]
    prefixes.keep("", text_key(ids), cache, {})
    one = prefixes.find("", text_key([*ids, 7]))
    other = prefixes.find("", text_key([*ids, 8]))
    assert one.cache is not None
    assert other.cache is not None
    kept_cache([7], one.cache)
    kept_cache([8], other.cache)
    assert set(held(one.cache[0])) == set([*ids, 7][-WINDOW:])
    assert set(held(other.cache[0])) == set([*ids, 8][-WINDOW:])
    assert one.cache[1][0].item() == sum([*ids, 7])
    assert other.cache[1][0].item() == sum([*ids, 8])


def test_a_real_model_goes_on_from_a_kept_prompt_and_from_its_copy(tiny_models: Any) -> None:
    import mlx_lm
    from mlx_lm.generate import generate_step

    def answer(prompt: list[int], cache: list[Any] | None = None) -> list[int]:
        steps = generate_step(mx.array(prompt), model, max_tokens=8, prompt_cache=cache)
        return [token for token, _ in steps]

    for kind in ("qwen3", "gemma3_text", "qwen3_next"):
        model, _ = mlx_lm.load(str(tiny_models / "tiny" / kind))
        prefixes = PrefixCache(PLENTY)
        first = model.make_cache() if hasattr(model, "make_cache") else None
        first = first or [KVCache() for _ in model.layers]
        said = answer(CHAT, first)
        # The last token was not put in.
        prefixes.keep("", text_key([*CHAT, *said][: first_length(first)]), first, {})
        for more in ([5, 6, 7], [8], [9, 10]):
            prompt = [*CHAT, *said, *more]
            found = prefixes.find("", text_key(prompt))
            assert found.cache is not None, kind
            assert answer(prompt[found.tokens :], found.cache) == answer(prompt), kind


def first_length(cache: list[Any]) -> int:
    found: int = max(layer.offset for layer in cache if hasattr(layer, "offset"))
    return found


# --- how much is kept -----------------------------------------------------------------------


def test_what_was_used_last_stays_within_the_budget() -> None:
    size = kept_cache(CHAT)[0].nbytes
    prefixes = PrefixCache(3 * size)
    chats = [[start, *CHAT[1:]] for start in range(5)]
    for ids in chats[:3]:
        keep(prefixes, ids)
    assert prefixes.nbytes == 3 * size
    assert found_tokens(prefixes, chats[0])  # and so it is used last
    keep(prefixes, chats[3])
    assert prefixes.nbytes == 3 * size
    assert found_tokens(prefixes, chats[1]) == 0
    for number in (2, 0, 3):
        assert found_tokens(prefixes, chats[number]) == len(CHAT) - 1


def test_what_is_larger_than_the_budget_is_not_kept_and_costs_no_other_its_place() -> None:
    prefixes = PrefixCache(kept_cache(CHAT)[0].nbytes)
    keep(prefixes, CHAT)
    keep(prefixes, list(range(1000)))
    assert found_tokens(prefixes, CHAT)
    assert found_tokens(prefixes, list(range(1000))) == 0


def test_nothing_is_kept_without_a_budget() -> None:
    prefixes = PrefixCache(0)
    assert not prefixes.enabled
    keep(prefixes, CHAT)
    assert found_tokens(prefixes, CHAT) == 0


def test_a_chat_takes_the_place_of_its_earlier_turns() -> None:
    prefixes = PrefixCache(PLENTY)
    for turn in (20, 30, 40):
        keep(prefixes, CHAT[:turn])
    assert prefixes.nbytes == kept_cache(CHAT)[0].nbytes
    assert found_tokens(prefixes, [*CHAT[:20], 1, 2]) == 20


def test_clear_gives_all_of_it_back() -> None:
    prefixes = PrefixCache(PLENTY)
    before = mx.get_active_memory()
    keep(prefixes, CHAT * 100)
    assert mx.get_active_memory() > before
    prefixes.clear()
    assert mx.get_active_memory() <= before
    assert prefixes.nbytes == 0


def test_looking_for_a_long_prompt_costs_next_to_nothing() -> None:
    """Less than passes in Python over the twenty prompts would: they would stop every stream."""
    tokens = 60_000
    ids = list(range(1000)) * (tokens // 1000)
    prefixes = PrefixCache(PLENTY)
    for number in range(20):
        prefixes.keep("", text_key([*ids[:-1], 10_000 + number]), kept_cache([1]), {})
    key = text_key([*ids[:-1], 5])
    fastest, one_pass = float("inf"), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        found = prefixes.find("", key)
        between = time.perf_counter()
        assert all(one == other for one, other in zip(ids, ids, strict=True))
        fastest = min(fastest, between - start)
        one_pass = min(one_pass, time.perf_counter() - between)
    assert found.cache is not None
    assert found.tokens == tokens - 1
    assert fastest < 10 * one_pass
