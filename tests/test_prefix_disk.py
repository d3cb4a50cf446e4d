"""Computed prompts on disk: what is read back is what was computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList, KVCache, QuantizedKVCache

from mlx_router.engine import device
from mlx_router.engine.prefix.blocks import BLOCK, Entry, Index, chain, digest_of, parse, root
from mlx_router.engine.prefix.cache import text_key
from tests.models import make_model
from tests.prefix_disk_support import (
    FAMILIES,
    PROMPT,
    WIDTH,
    Tiny,
    files,
    held,
    keep,
    longest,
    make_tiny,
    opened,
    read,
    rows_cache,
    settled,
)

MORE = [5, 6, 7]


@pytest.fixture(scope="module")
def tiny(tiny_models: Path) -> Callable[[str], Tiny]:
    made: dict[str, Tiny] = {}

    def get(kind: str) -> Tiny:
        if kind not in made:
            made[kind] = make_tiny(kind, tiny_models)
        return made[kind]

    return get


# --- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_prompt_survives_a_restart(
    kind: str, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    """From each number of tokens that can be had the answer is the one without the disk."""
    model = tiny(kind)
    cache, marks = model.prefill(PROMPT, [100, 300, 512])
    keep(tmp_path, PROMPT, cache, marks=marks)
    answer = model.go_on(None, PROMPT + MORE)
    assert len(set(answer)) > 3, "an answer that depends on little proves nothing"
    cuttable = kind == "qwen3"
    reached = {700: 512 if cuttable else 700, 511: 256 if cuttable else 300}
    if not cuttable:
        reached |= {699: 512, 299: 100}
    with opened(tmp_path) as disk:
        for limit, tokens in reached.items():
            assert longest(disk, PROMPT, limit) == tokens
            layers = read(disk, PROMPT, tokens)
            assert layers is not None
            assert model.go_on(layers, PROMPT[tokens:] + MORE) == answer
        assert longest(disk, PROMPT, 99) == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_prompt_survives_a_restart(bits: int, tmp_path: Path) -> None:
    def quantized(cache: list[Any]) -> list[Any]:
        return [layer.to_quantized(group_size=32, bits=bits) for layer in cache]

    make_model("qwen3", tmp_path / "tiny" / "qwen3", changes={"head_dim": 32})
    model = make_tiny("qwen3", tmp_path)
    cache, _ = model.prefill(PROMPT, change=quantized)
    keep(tmp_path / "disk", PROMPT, cache)
    with opened(tmp_path / "disk") as disk:
        layers = read(disk, PROMPT, 512)
    assert layers is not None
    assert all(isinstance(layer, QuantizedKVCache) for layer in layers)
    before, _ = model.prefill(PROMPT[:512], change=quantized)
    assert model.go_on(layers, PROMPT[512:] + MORE) == model.go_on(before, PROMPT[512:] + MORE)


def test_a_prompt_is_kept_while_models_generate(
    tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    """Neither what they say nor what is kept depends on it."""
    kinds = ("qwen3", "gemma3_text", "falcon_h1")
    answers = {kind: tiny(kind).go_on(None, PROMPT + MORE, 20) for kind in kinds}
    failed: list[BaseException] = []

    def serve(kind: str) -> None:
        device.begin_thread()
        try:
            model = tiny(kind)
            with opened(tmp_path, fingerprint=kind) as disk:
                for turn in range(3):
                    tokens = longest(disk, PROMPT, 699)
                    found = read(disk, PROMPT, tokens) if tokens else None
                    assert turn == 0 or found is not None
                    cache, marks = model.prefill(PROMPT, [512])
                    disk.write("", text_key(PROMPT), cache, marks)
                    # Goes on in the same cache, in place, while it is written.
                    assert model.go_on(cache, MORE, 20) == answers[kind]
                    settled(disk, PROMPT, 512)
                    if found is not None:
                        assert model.go_on(found, PROMPT[tokens:] + MORE, 20) == answers[kind]
        except BaseException as error:
            failed.append(error)
        finally:
            device.end_thread()

    threads = [threading.Thread(target=serve, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert not failed


# --- caches -----------------------------------------------------------------------------------


def test_what_is_done_to_a_cache_after_it_was_given_away_does_not_matter(tmp_path: Path) -> None:
    ids = list(range(1000, 1700))
    cache = rows_cache(ids)
    with opened(tmp_path) as disk:
        disk.write("", text_key(ids), cache, {})
        cache[0].trim(700)
        rows = mx.zeros((1, 1, 700, WIDTH))
        cache[0].update_and_fetch(rows, rows)
        mx.eval(cache[0].state)
        settled(disk, ids, 512)
        assert held(read(disk, ids, 512)) == ids[:512]


def test_a_conversation_that_goes_on_writes_its_new_blocks_only(tmp_path: Path) -> None:
    ids = list(range(2000))
    keep(tmp_path, ids[:600], rows_cache(ids[:600]))
    first = {file: file.stat().st_ino for file in files(tmp_path)}
    assert len(first) == 2
    keep(tmp_path, ids[:1100], rows_cache(ids[:1100]))
    after = {file: file.stat().st_ino for file in files(tmp_path)}
    assert len(after) == 4
    assert first.items() <= after.items()


def test_conversations_share_what_they_begin_with(tmp_path: Path) -> None:
    ids, other = list(range(1000)), [*range(512), *range(5000, 5488)]
    keep(tmp_path, ids, rows_cache(ids))
    keep(tmp_path, other, rows_cache(other))
    assert len(files(tmp_path)) == 3 + 1
    with opened(tmp_path) as disk:
        assert held(read(disk, ids, 768)) == ids[:768]
        assert held(read(disk, other, 768)) == other[:768]
        assert longest(disk, [*ids[:600], 1, 2]) == 512
        assert longest(disk, [9, *ids]) == 0


def test_scopes_and_fingerprints_see_their_own_only(tmp_path: Path) -> None:
    ids = list(range(600))
    keep(tmp_path, ids, rows_cache(ids), scope="one")
    with opened(tmp_path) as disk:
        assert longest(disk, ids, scope="one") == 512
        assert longest(disk, ids, scope="two") == longest(disk, ids) == 0
        assert read(disk, ids, 512, scope="two") is None
    for fingerprint in ("model2", "mode", "modelone"):
        with opened(tmp_path, fingerprint=fingerprint) as disk:
            assert longest(disk, ids, scope="one") == 0
            assert longest(disk, ids) == 0


def test_layers_of_all_shapes_are_kept(tmp_path: Path) -> None:
    """Nothing was put into one layer, and another keeps no values, as an indexer's does."""
    rows = mx.arange(600, dtype=mx.bfloat16).reshape(1, 1, 600, 1)
    pair = CacheList(KVCache(), KVCache())
    pair[0].update_and_fetch(rows, mx.concatenate([rows, rows], axis=-1))
    pair[1].update_and_fetch(rows, mx.zeros((1, 1, 600, 0)))
    cache = [KVCache(), pair]
    mx.eval([layer.state for layer in pair.caches])
    ids = list(range(600))
    keep(tmp_path, ids, cache)
    with opened(tmp_path) as disk:
        layers = read(disk, ids, 512)
    assert layers is not None
    empty, both = layers
    assert empty.empty()
    assert empty.offset == 0
    assert [part.offset for part in both.caches] == [512, 512]
    assert mx.array_equal(both[0].keys, rows[..., :512, :]).item()
    assert both[0].values.shape == (1, 1, 512, 2)
    assert both[1].values.shape == (1, 1, 512, 0)


@pytest.mark.parametrize("layer", [BatchKVCache([0]), object()])
def test_a_cache_of_another_kind_is_left_alone(layer: Any, tmp_path: Path) -> None:
    keep(tmp_path, list(range(600)), [*rows_cache(range(600)), layer])
    assert files(tmp_path) == []


def test_a_cache_that_holds_other_tokens_than_its_key_is_left_alone(tmp_path: Path) -> None:
    keep(tmp_path, list(range(600)), rows_cache(range(599)))
    keep(tmp_path, list(range(600)), rows_cache(range(601)))
    assert files(tmp_path) == []


def test_a_mark_that_misses_a_layer_is_left_out(tmp_path: Path) -> None:
    ids = list(range(600))
    state = ArraysCache(1)
    state[0] = mx.array([1.0])
    cache = [*rows_cache(ids), state, state]
    keep(tmp_path, ids, cache, marks={300: {1: state}, 310: {1: state, 2: state}, 900: {}})
    with opened(tmp_path) as disk:
        assert [longest(disk, ids, limit) for limit in (309, 599, 600)] == [0, 310, 600]


# --- names ------------------------------------------------------------------------------------

_IDS = st.integers(-(2**63), 2**63 - 1)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    one=st.integers(0, 5 * BLOCK),
    two=st.integers(0, 5 * BLOCK),
    shared=st.integers(0, 5 * BLOCK),
    states=st.lists(st.integers(1, 5 * BLOCK), max_size=4),
    limit=st.integers(-1, 6 * BLOCK),
    seed=st.integers(0, 2**32),
)
def test_what_can_be_read_is_what_prompts_have_in_common(
    one: int, two: int, shared: int, states: list[int], limit: int, seed: int
) -> None:
    """Blocks of one prompt are found for another as far as both are the same, and no further."""
    shared = min(one, two, shared)
    random = np.random.default_rng(seed)
    first = random.integers(0, 1000, one)
    second = np.concatenate([first[:shared], random.integers(1000, 2000, two - shared)])
    start = root("model", "")
    digests = chain(start, first)
    assert len(digests) == one // BLOCK + 1
    states = [count for count in states if count <= one]
    kind = "part" if states else "block"
    index = Index()
    for number in range(one // BLOCK):
        index.add(Entry(digests[number], BLOCK, digests[number + 1], kind))  # type: ignore[arg-type]
    for count in states:
        number, rest = divmod(count, BLOCK)
        digest = digest_of(digests[number], first[number * BLOCK : count])
        index.add(Entry(digests[number], rest, digest, "state"))
    usable = min(shared, max(limit, 0))
    expected = (
        max([0, *(count for count in states if count <= usable)])
        if states
        else usable // BLOCK * BLOCK
    )
    tokens, entries = index.path(start, second, limit)
    assert tokens == expected == sum(entry.tokens for entry in entries)
    if entries and not states:  # without one of its blocks a path ends before it
        index.remove(entries[len(entries) // 2])
        assert index.path(start, second, limit)[0] == len(entries) // 2 * BLOCK


@hypothesis_settings(deadline=None)
@given(
    one=st.tuples(st.text(), st.text(), st.lists(_IDS, max_size=5)),
    other=st.tuples(st.text(), st.text(), st.lists(_IDS, max_size=5)),
)
def test_what_differs_in_anything_has_another_name(
    one: tuple[str, str, list[int]], other: tuple[str, str, list[int]]
) -> None:
    names = {digest_of(root(model, scope), text_key(ids)) for model, scope, ids in (one, other)}
    assert len(names) == (1 if one == other else 2)


@hypothesis_settings(deadline=None)
@given(tokens=st.integers(0, BLOCK), check=st.integers(0, 2**32 - 1), version=st.integers(1, 99))
def test_a_file_name_says_all_of_its_entry(tokens: int, check: int, version: int) -> None:
    entry = Entry("a" * 40, tokens, "0" * 40, "state", check, version)
    assert parse(entry.file) == entry
    assert len(entry.file) < 255
    assert parse(entry.file + "x") is parse("x" + entry.file) is parse("notes.safetensors") is None
