"""Whose turn it is where sequences with images and text share a batch, step by step.

What is right is what mlx-vlm's own loop answers to the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_router.engine.base import Job, StepResult
from mlx_router.engine.vision.runner import ImagePrefill
from tests.vision_support import BALL, BOX, LARGE, WORDS, Sight, tokens, user

SHORT = (user(BOX, "Hm?"),)
LONG = (user(BALL, LARGE, BOX, LARGE, WORDS),)


def waiting_with_images(sight: Sight) -> int:
    """Sequences whose images are computed and that have no token yet."""
    live = sight.engine._runner._live.values()  # type: ignore[union-attr]
    return sum(each.job.media is not None and not each.tokens for each in live)


def test_text_that_keeps_coming_does_not_keep_an_image_from_its_answer(
    vision_sight_of: Callable[..., Sight],
) -> None:
    sight = vision_sight_of("qwen3_vl", max_batch_size=2)
    shown = sight.job(*SHORT)
    own: list[StepResult] = []
    texts: set[int] = set()
    answered, added = 0, False
    while not own or own[-1].finish is None:
        assert answered < 40, "an image is starved"
        while len(texts) < 4:  # two of them always wait
            job = sight.job(user("Well?"))
            sight.add(job)
            texts.add(job.id)
        if not added and answered >= 2:
            sight.add(shown)
            added = True
        for result in sight.step():
            if result.job_id == shown.id:
                own.append(result)
            if result.finish is not None:
                texts.discard(result.job_id)
                answered += 1
    assert tokens(own) == sight.expected(*SHORT)
    sight.drain()


def test_images_that_are_computed_never_pile_up_before_a_full_batch(
    vision_sight_of: Callable[..., Sight],
) -> None:
    sight = vision_sight_of("qwen3_vl", max_batch_size=2)
    streams = [sight.job(user(WORDS), max_tokens=500) for _ in range(2)]
    shown = [sight.job(*SHORT) for _ in range(5)]
    sight.add(*streams)
    while len(sight.step()) < 2:
        pass
    sight.add(*shown)
    most = 0
    for _ in range(60):  # steps enough to compute all of them
        results = sight.step()
        assert {result.job_id for result in results} == {job.id for job in streams}
        most = max(most, waiting_with_images(sight))
    assert most == 0
    for job in streams:
        sight.abort(job)
    late = sight.drain()
    assert [tokens(late[job.id]) for job in shown] == [sight.expected(*SHORT)] * 5


def test_one_picture_does_not_wait_for_the_many_before_it(
    vision_sight_of: Callable[..., Sight],
) -> None:
    sight = vision_sight_of("qwen3_vl")
    long, short = sight.job(*LONG), sight.job(*SHORT)
    sight.add(long, short)
    order: list[int] = []
    while long.id not in order:
        order += [result.job_id for result in sight.step()]
    assert order[0] == short.id
    sight.drain()


def test_many_pictures_are_not_put_off_for_ever_by_single_ones(
    vision_sight_of: Callable[..., Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get every second turn."""
    sight = vision_sight_of("qwen3_vl")
    advanced: list[int] = []
    advance = ImagePrefill.advance

    def counted(prefill: ImagePrefill, size: int) -> bool:
        advanced.append(prefill.sequences[0].job.id)
        return advance(prefill, size)

    monkeypatch.setattr(ImagePrefill, "advance", counted)
    sight.run(sight.job(*LONG))
    alone = len(advanced)
    sight.on_thread(sight.engine.drop_caches)
    advanced.clear()
    long = sight.job(*LONG)
    sight.add(long)
    own: list[StepResult] = []
    others: list[Job] = []
    while not own:
        assert len(advanced) <= 2 * alone + 1, "they are put off"
        runner: Any = sight.engine._runner
        if len(runner._prefills) < 3:  # single ones keep coming
            others.append(sight.job(*SHORT, max_tokens=1))
            sight.add(others[-1])
        own += [result for result in sight.step() if result.job_id == long.id]
    last = len(advanced) - advanced[::-1].index(long.id)
    assert advanced.count(long.id) == alone
    assert last <= 2 * alone + 1
    assert len(others) > 2
    late = sight.drain()
    assert tokens(own + late[long.id]) == sight.expected(*LONG)
