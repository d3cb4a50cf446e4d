"""The engine for models that see, step by step: aborts, faults, turns, and what is left.

What is right is what mlx-vlm's own loop answers to the same tensors.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest

from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.engine.vision.model import VisionModel
from mlx_router.engine.vision.runner import ImagePrefill
from tests.soak import times
from tests.test_text_engine import FailingRunner
from tests.vision_support import (
    BALL,
    BOX,
    DIFFERENT,
    FAMILIES,
    LARGE,
    SLICE,
    WORDS,
    Looks,
    Sight,
    tokens,
    user,
)
from tests.waiting import until_sync


@pytest.fixture(params=DIFFERENT)
def sight(request: pytest.FixtureRequest, vision_sights: Callable[[str], Sight]) -> Sight:
    return vision_sights(request.param)


# --- aborts ---------------------------------------------------------------------------------


VICTIMS = ((1,), (2,), (3,), (4,), (3, 4), (1, 3))


def test_an_abort_at_any_stage_leaves_the_others_right_and_nothing_behind(sight: Sight) -> None:
    """Of a stream; two requests with images, one queued behind the other; and one of two
    choices. Who is aborted changes from stage to stage."""
    chats = [(user(WORDS),), (user(BOX, BALL, WORDS),), (user("So? ", LARGE),), (user(BALL, "?"),)]
    chats.append(chats[3])
    expected = [sight.expected(*chat) for chat in chats]
    before = sight.memory()
    stages: Counter[tuple[int, ...]] = Counter()
    for steps, victims in zip(range(100), itertools.cycle(VICTIMS), strict=False):
        jobs = [sight.job(*chat) for chat in chats[:4]]
        jobs.append(sight.job(*chats[4], fork_of=jobs[3].id))
        sight.add(*jobs)
        results: list[StepResult] = []
        for _ in range(steps):
            results += sight.step()
        if not sight.engine.busy:
            break
        gone = [jobs[index] for index in victims]
        if all(any(r.job_id == job.id and r.finish for r in results) for job in gone):
            sight.drain()
            continue  # they had ended
        for job in gone:
            sight.abort(job)
        late = sight.drain()
        assert not {job.id for job in gone} & set(late)
        for index, job in enumerate(jobs):
            if index not in victims:
                own = [r for r in results if r.job_id == job.id] + late.get(job.id, [])
                assert tokens(own) == expected[index], (steps, index)
        del jobs, job, gone, late, own, results
        assert sight.memory() <= before + 4096, steps  # all stages together; a token takes 512
        stages[victims] += 1
    assert min(stages[victims] for victims in VICTIMS) >= 3, stages


def test_aborting_what_was_never_there_does_nothing(sight: Sight) -> None:
    job = sight.job(user(BOX, WORDS))
    sight.abort(job)
    assert sight.run(job) == [sight.expected(user(BOX, WORDS))]
    sight.abort(job)
    assert not sight.engine.busy


# --- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_image_that_fails_in_the_tower_fails_its_request_alone(
    kind: str, vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    sight = vision_sights(kind)
    features: Any = sight.engine._features
    compute = features._compute
    chats = [(user(BOX, WORDS),), (user(LARGE, WORDS),), (user(WORDS),), (user(BALL, BOX),)]
    failing = sight.job(user(BALL, "Fails."), max_tokens=4)
    fork = sight.job(user(BALL, "Fails."), max_tokens=4, fork_of=failing.id)

    advance = ImagePrefill.advance
    turns: list[int] = []

    def advancing(prefill: ImagePrefill, size: int) -> bool:
        turns.append(prefill.sequences[0].job.id)
        return advance(prefill, size)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        if turns[-1] == failing.id:
            raise RuntimeError("injected")
        return compute(*args, **kwargs)

    monkeypatch.setattr(ImagePrefill, "advance", advancing)
    monkeypatch.setattr(features, "_compute", poisoned)
    jobs = [sight.job(*chat) for chat in chats]
    sight.add(jobs[0], failing, fork, *jobs[1:])
    results = sight.drain()
    for bad in (failing, fork):
        (result,) = results[bad.id]
        assert result.error
        assert result.token is None
    for job, chat in zip(jobs, chats, strict=True):
        assert tokens(results[job.id]) == sight.expected(*chat)
    monkeypatch.undo()
    assert sight.run(sight.job(*chats[3])) == [sight.expected(*chats[3])]


@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma3"])
def test_an_image_of_another_size_than_its_tokens_fails_its_request_alone(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    sight = vision_sights(kind)
    chat = (user(BOX, WORDS),)
    right: Any = sight.encode(*chat).media
    other: Any = sight.encode(user(LARGE, BALL, "Two.")).media
    wrong = replace(right, pixels=other.pixels, extras=other.extras)
    bad = sight.job(*chat, media=wrong)
    good, stream = sight.job(*chat), sight.job(user(WORDS))
    sight.add(stream, bad, good)
    results = sight.drain()
    assert results[bad.id][-1].error
    assert tokens(results[good.id]) == sight.expected(*chat)
    assert tokens(results[stream.id]) == sight.expected(user(WORDS))


@pytest.mark.parametrize("seeded", [False, True])
def test_a_failed_step_is_recomputed_with_its_images(sight: Sight, seeded: bool) -> None:
    chats = [(user(WORDS),), (user(BOX, BALL, WORDS),), (user("So? ", LARGE),), (user(BALL, "?"),)]
    sampling = Sampling(temperature=1.5, seed=5) if seeded else Sampling()

    def jobs() -> list[Job]:
        found = [sight.job(*chat, sampling=sampling) for chat in chats]
        return [*found, sight.job(*chats[3], sampling=sampling, fork_of=found[3].id)]

    undisturbed = sight.run(*jobs())
    if not seeded:
        assert undisturbed[:4] == [sight.expected(*chat) for chat in chats]
    for number in range(1, 30, 4):
        sight.engine._runner = FailingRunner(sight.engine._runner, {number})
        assert sight.run(*jobs()) == undisturbed, number
        if isinstance(sight.engine._runner, FailingRunner):  # all had ended before
            sight.engine._runner = sight.engine._runner._inner


def test_a_choice_that_waits_for_its_turn_is_recomputed_from_the_prompt(
    vision_sight_of: Callable[..., Sight],
) -> None:
    """Not from what the choice before it has said meanwhile, when the prompt is kept no longer."""
    sight = vision_sight_of("qwen3_vl", max_batch_size=1, prefix_cache_bytes=10**9)
    chat = (user(BOX, WORDS),)

    def jobs() -> list[Job]:
        first = sight.job(*chat, sampling=Sampling(temperature=1.5, seed=1))
        again = Sampling(temperature=1.5, seed=2)
        return [first, sight.job(*chat, sampling=again, fork_of=first.id)]

    undisturbed = sight.run(*jobs())
    assert undisturbed[0] != undisturbed[1]
    for steps in range(1, 8):
        sight.cached(*chat)
        pair = jobs()
        sight.add(*pair)
        results: list[StepResult] = []
        while len(results) < steps:
            results += sight.step()
        assert {result.job_id for result in results} == {pair[0].id}
        sight.on_thread(sight.engine.drop_caches)
        sight.engine._runner = FailingRunner(sight.engine._runner, {1})
        late = sight.drain()
        assert tokens(results + late[pair[0].id]) == undisturbed[0], steps
        assert tokens(late[pair[1].id]) == undisturbed[1], steps


def test_a_prompt_that_is_dropped_while_it_is_recomputed_is_not_taken_for_whole(
    vision_sight_of: Callable[..., Sight],
) -> None:
    """What is kept of it is what was computed."""
    sight = vision_sight_of("qwen3_vl", prefix_cache_bytes=10**9)
    for chat in ((user(WORDS * 2),), (user(BOX, WORDS * 2),)):
        expected = sight.expected(*chat)
        slices = len(sight.encode(*chat).ids) // SLICE
        for steps in range(slices + 2):
            sight.on_thread(sight.engine.drop_caches)
            job = sight.job(*chat)
            sight.add(job)
            while not sight.step():
                pass
            sight.engine._runner = FailingRunner(sight.engine._runner, {1})
            sight.step()
            for _ in range(steps):
                sight.step()
            sight.abort(job)
            assert not sight.engine.busy
            assert sight.run(sight.job(*chat)) == [expected], steps


def test_a_request_that_cannot_join_the_batch_fails_alone(
    sight: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = sight.engine._runner
    insert = runner._generator.insert
    chat = (user(BOX, WORDS),)
    bad = sight.job(*chat, max_tokens=3)
    fork = sight.job(*chat, max_tokens=4, fork_of=bad.id)

    def refusing(*args: Any, **options: Any) -> Any:
        if options["max_tokens"] == [3]:
            raise RuntimeError("injected")
        return insert(*args, **options)

    monkeypatch.setattr(runner._generator, "insert", refusing)
    good = sight.job(*chat)
    sight.add(bad, fork, good)
    results = sight.drain()
    assert results[bad.id][-1].error
    assert tokens(results[fork.id]) == sight.expected(*chat)[:4]
    assert tokens(results[good.id]) == sight.expected(*chat)


# --- turns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_stream_gets_a_token_between_any_two_images_and_slices(
    kind: str, vision_sights: Callable[[str], Sight], monkeypatch: pytest.MonkeyPatch
) -> None:
    sight = vision_sights(kind)
    looks = Looks(sight, monkeypatch)
    slices: list[int] = []
    prefill = VisionModel.prefill

    def counted(self: Any, ids: Any, embedded: Any, cache: Any, start: int, end: int) -> None:
        slices.append(end - start)
        prefill(self, ids, embedded, cache, start, end)

    monkeypatch.setattr(VisionModel, "prefill", counted)
    stream = sight.job(user(WORDS), max_tokens=200)
    sight.add(stream)
    while not sight.step():
        pass
    chat = (user(BOX, BALL, LARGE, WORDS),)
    shown = [sight.job(*chat), sight.job(user(LARGE, "Hm?"))]
    sight.add(*shown)
    seen: dict[int, list[StepResult]] = {job.id: [] for job in shown}
    looked = 0
    while not all(seen.values()):
        before = len(slices)
        results = sight.step()
        work = looks.take()
        looked += work
        assert work + len(slices) - before <= 1
        assert sum(result.job_id == stream.id for result in results) == 1
        for result in results:
            seen.get(result.job_id, []).append(result)
    assert looked >= 3
    assert max(slices) <= SLICE
    assert sum(slices) == sum(len(job.prompt) - 1 for job in shown)
    sight.abort(stream)
    late = sight.drain()
    assert tokens(seen[shown[0].id] + late.get(shown[0].id, [])) == sight.expected(*chat)


# --- the end --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batches", [True, False])
def test_closing_gives_memory_and_threads_back(
    vision_folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, batches: bool
) -> None:
    if not batches:
        monkeypatch.setattr(VisionModel, "batches", lambda self, architecture: False)
    folder = vision_folders("qwen3_vl")
    process, counts = psutil.Process(), []
    before = mx.get_active_memory()
    for _ in range(times(8)):
        sight = Sight(folder, prefix_cache_bytes=10**8)
        jobs = [sight.job(user(BOX, BALL, WORDS)), sight.job(user(WORDS))]
        sight.run(*jobs)
        sight.add(sight.job(user(LARGE, WORDS)))  # closed in the middle of it
        sight.step()
        assert mx.get_active_memory() > before
        sight.close()
        del sight, jobs
        gc.collect()
        until_sync(lambda: mx.get_active_memory() <= before, 5)
        counts.append(process.num_threads())
    assert counts[-1] <= counts[1], counts
