"""What is reused of prompts with images: what a tower made of them, and what was computed.

What is right is what mlx-vlm's own loop answers to the same tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.test_text_engine import FailingRunner
from tests.vision_support import (
    BALL,
    BOX,
    CHATS,
    DIFFERENT,
    FAMILIES,
    LARGE,
    QUESTION,
    SYSTEM,
    TOKENS,
    WORDS,
    Looks,
    Part,
    Sight,
    draw,
    user,
)


@pytest.fixture(params=DIFFERENT)
def sight(request: pytest.FixtureRequest, vision_sights: Callable[[str], Sight]) -> Sight:
    return vision_sights(request.param)


# --- what a tower made ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_image_that_was_seen_is_not_computed_again(
    kind: str, vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor beside a new one, in another place, or in another prompt."""
    sight = vision_sights(kind)
    looks = Looks(sight, monkeypatch)

    def look(*parts: Part) -> int:
        chat = (user(*parts),)
        assert sight.run(sight.job(*chat)) == [sight.expected(*chat)]
        return looks.take()

    first = look(BOX, "What is it?")
    assert first >= 1
    assert look(BOX, "And what more?") == 0
    new = look("Compare ", BOX, " with ", BALL)
    assert 1 <= new <= first
    assert look(BALL, BOX, BALL) == 0
    assert look(LARGE, BALL) >= 1
    sight.on_thread(sight.engine.drop_caches)
    assert look(BOX, "What is it?") == first


def test_features_stay_within_their_budget(
    vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    sight = vision_sights("qwen3_vl")
    features: Any = sight.engine._features
    sight.run(sight.job(user(BOX)))
    one = features.nbytes
    monkeypatch.setattr(features, "_max_bytes", 2 * one)
    looks = Looks(sight, monkeypatch)
    others = [draw("ellipse", colour) for colour in ("red", "yellow", "black", "pink")]
    for each in [BALL, *others]:
        assert sight.run(sight.job(user(BOX, each))) == [sight.expected(user(BOX, each))]
        assert features.nbytes == 2 * one
        assert looks.take() == 1  # the other one was used last, and is there
    assert sight.run(sight.job(user(BALL))) == [sight.expected(user(BALL))]
    assert looks.take() == 1
    many = (user(BOX, *others),)  # more than there is room for
    assert sight.run(sight.job(*many)) == [sight.expected(*many)]
    assert features.nbytes <= 2 * one


def test_memory_that_the_engine_names_holds_what_it_keeps(sight: Sight) -> None:
    sight.prefixes()
    before = sight.engine.memory_bytes()
    sight.run(sight.job(user(BOX, WORDS)))
    assert sight.engine.memory_bytes() > before
    sight.on_thread(sight.engine.drop_caches)
    assert sight.engine.memory_bytes() == before


# --- what was computed of a prompt ----------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_answer_never_depends_on_what_was_computed_before(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    """Whatever the chats were, in whatever order, one by one and all at once."""
    sight = vision_sights(kind)
    sight.prefixes()
    order = list(CHATS)
    for seed in range(2):
        for name in order:
            job = sight.job(*CHATS[name])
            assert sight.run(job) == [sight.expected(*CHATS[name])], (name, order)
        random.Random(seed).shuffle(order)
        if seed == 0:
            sight.on_thread(sight.engine.drop_caches)
    jobs = [sight.job(*CHATS[name]) for name in order]
    assert sight.run(*jobs) == [sight.expected(*CHATS[name]) for name in order]


@pytest.mark.parametrize("kind", FAMILIES)
def test_another_image_with_the_same_tokens_is_another_prompt(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    sight = vision_sights(kind)
    sight.prefixes()
    box, ball = sight.encode(*CHATS["an image"]), sight.encode(*CHATS["another image"])
    assert box.ids == ball.ids
    assert sight.expected(*CHATS["an image"]) != sight.expected(*CHATS["another image"])
    media: Any = box.media
    first_of_image = int(np.flatnonzero(media.key < 0)[0])
    sight.cached(*CHATS["an image"])
    assert sight.cached(*CHATS["another image"]) <= first_of_image
    # Their next turns go on from their own.
    for name in ("the next turn", "the next turn about it"):
        first = CHATS["an image" if name == "the next turn" else "another image"]
        sight.on_thread(sight.engine.drop_caches)
        sight.cached(*CHATS["an image"])
        sight.cached(*CHATS["another image"])
        shared = len(sight.encode(*first).ids)
        cached = sight.cached(*CHATS[name])
        assert cached == 0 or first_of_image <= cached
        assert cached < shared + TOKENS


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_as_much_is_reused_as_two_prompts_share(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    """Positions are not the number in the sequence there: cutting must set them right."""
    sight = vision_sights(kind)

    def shared(before: str, after: str) -> tuple[int, int]:
        sight.on_thread(sight.engine.drop_caches)
        sight.prefixes()
        sight.cached(*CHATS[before])
        one, other = (sight.encode(*CHATS[name]) for name in (before, after))
        keys = [np.asarray(e.media.key if e.media else e.ids) for e in (one, other)]  # type: ignore[attr-defined]
        count = min(map(len, keys))
        same = np.append(keys[0][:count] == keys[1][:count], [False])
        return sight.cached(*CHATS[after]), min(int(np.argmin(same)), len(other.ids) - 1)

    for before, after in (
        ("an image", "the next turn"),
        ("an image", "another image"),
        ("an image", "no image"),
        ("no image", "an image"),
        ("two images", "the second image gone"),
        ("two images", "other two images"),
        ("side by side", "side by side with another"),
        ("side by side", "one twice"),
        ("one twice", "an image"),
        ("the first image gone", "two images"),
        ("text, then an image", "no image"),
    ):
        reused, common = shared(before, after)
        assert reused == common > 16, (before, after)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_a_prompt_goes_on_from_the_middle_of_an_image(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    sight = vision_sights(kind)
    chat = (SYSTEM, user(LARGE, "or", BOX, QUESTION))
    expected = sight.expected(*chat)
    media: Any = sight.encode(*chat).media
    prefixes = sight.engine._prefixes
    seen = np.flatnonzero(media.key < 0)
    for tokens_kept in range(int(seen[0]), int(seen[-1]) + 3, 5):
        sight.on_thread(sight.engine.drop_caches)
        sight.prefixes()
        sight.run(sight.job(*chat))

        def cut(count: int = tokens_kept) -> None:
            found = prefixes.find("", media.key[: count + 1])
            assert found.cache is not None
            prefixes.clear()
            prefixes.keep("", media.key[:count], found.cache, {})

        sight.on_thread(cut)
        assert sight.cached(*chat) == tokens_kept
    assert expected == sight.expected(*chat)


def test_a_scope_sees_its_own_prompts_only(sight: Sight) -> None:
    sight.prefixes()
    chat, longer = CHATS["an image"], CHATS["the next turn"]
    sight.cached(*chat, scope="one")
    assert sight.cached(*longer, scope="two") == 0
    text = (SYSTEM, user(WORDS))
    sight.cached(*text, scope="one")
    assert sight.cached(*text, scope="three") == 0


def test_a_scope_sees_its_own_images_only(sight: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    """How soon an answer begins says nothing of what another has shown."""
    sight.on_thread(sight.engine.drop_caches)
    looks = Looks(sight, monkeypatch)
    found = []
    for scope in ("one", "one", "two", "two", "one"):
        sight.cached(*CHATS["an image"], scope=scope)
        found.append(looks.take())
    first = found[0]
    assert first >= 1
    assert found == [first, 0, first, 0, 0]


def test_choices_go_on_from_what_was_computed(sight: Sight) -> None:
    sight.prefixes()
    chat = CHATS["the next turn"]
    sight.cached(*CHATS["an image"])
    first = sight.job(*chat)
    jobs = [first, *(sight.job(*chat, fork_of=first.id) for _ in range(2))]
    assert sight.run(*jobs) == [sight.expected(*chat)] * 3


def test_prompts_are_recomputed_from_what_is_kept_after_a_fault(sight: Sight) -> None:
    sight.prefixes()
    names = ("the next turn", "two images", "no image")
    sight.cached(*CHATS["an image"])
    for number in range(1, 24, 3):
        sight.engine._runner = FailingRunner(sight.engine._runner, {number})
        jobs = [sight.job(*CHATS[name]) for name in names]
        assert sight.run(*jobs) == [sight.expected(*CHATS[name]) for name in names], number
        if isinstance(sight.engine._runner, FailingRunner):
            sight.engine._runner = sight.engine._runner._inner


def test_dropping_caches_under_load_changes_no_answer(sight: Sight) -> None:
    sight.prefixes()
    jobs = [sight.job(*chat) for chat in CHATS.values()]
    jobs.append(sight.job(*CHATS["an image"], fork_of=jobs[0].id))
    got = sight.run(*jobs, after_step=sight.engine.drop_caches)
    assert got == [
        *(sight.expected(*chat) for chat in CHATS.values()),
        sight.expected(*CHATS["an image"]),
    ]


def test_an_aborted_answer_is_kept_as_far_as_it_came(sight: Sight) -> None:
    sight.prefixes()
    chat = CHATS["an image"]
    for steps in range(4):
        job = sight.job(*chat, max_tokens=50)
        sight.add(job)
        while not sight.step():
            pass
        for _ in range(steps):
            sight.step()
        sight.abort(job)
        assert not sight.engine.busy
        sight.check_nothing_is_left()
        for name in ("the next turn", "an image", "another image"):
            sight.cached(*CHATS[name])
