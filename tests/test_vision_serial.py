"""Models that see and cannot batch, and what becomes a prompt with images.

What is right is what mlx-vlm's own loop answers to the same tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from mlx_router.domain import ChatPrompt, FinishReason, Message, Tool, ToolCall
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.vision.model import VisionModel
from mlx_router.errors import InvalidRequest
from tests.test_text_engine import FailingRunner
from tests.vision_models import IMAGE_TOKENS
from tests.vision_support import BALL, BOX, CHATS, FAMILIES, Sight, draw, said, user
from tests.waiting import until_sync

# --- one request at a time ------------------------------------------------------------------


@pytest.fixture(params=["qwen3_vl", "gemma3"])
def serial(
    request: pytest.FixtureRequest,
    vision_sight_of: Callable[..., Sight],
    monkeypatch: pytest.MonkeyPatch,
) -> Sight:
    """A model that is said not to batch: mlx-vlm's own loop serves it."""
    monkeypatch.setattr(VisionModel, "batches", lambda self, architecture: False)
    sight = vision_sight_of(request.param)
    assert not sight.loaded.batches
    assert sight.loaded.batch_trial.reason
    return sight


def test_a_model_that_cannot_batch_answers_as_mlx_vlm_does(serial: Sight) -> None:
    chats = list(CHATS.values())
    assert serial.run(*(serial.job(*chat) for chat in chats)) == [
        serial.expected(*chat) for chat in chats
    ]


def test_without_batches_seeds_stops_choices_and_aborts_are_as_with_them(serial: Sight) -> None:
    chat = CHATS["an image"]
    expected = serial.expected(*chat)
    hot = Sampling(temperature=1.5, seed=3)

    def choices() -> list[Job]:
        first = serial.job(*chat, sampling=hot)
        return [first, serial.job(*chat, sampling=replace(hot, seed=4), fork_of=first.id)]

    one, two = serial.run(*choices())
    assert one != two
    assert serial.run(*choices()) == [one, two]
    assert serial.run(serial.job(*chat, sampling=replace(hot, seed=4))) == [two]

    stop = serial.job(*chat, stop_ids=frozenset({expected[4]}))
    serial.add(stop)
    results = serial.drain()[stop.id]
    assert [result.token for result in results] == expected[: expected.index(expected[4]) + 1]
    assert results[-1].finish is FinishReason.STOP

    long, short = serial.job(*chat, max_tokens=500), serial.job(user(BALL))
    serial.add(long, short)
    serial.step()
    serial.abort(long)
    assert set(serial.drain()) == {short.id}

    with_logprobs = serial.job(*chat, logprobs=3)
    serial.add(with_logprobs)
    for result in serial.drain()[with_logprobs.id]:
        assert result.top_logprobs[0][0] == result.token
        assert result.logprob == result.top_logprobs[0][1] <= 0

    serial.engine._runner = FailingRunner(serial.engine._runner, {4})
    assert serial.run(serial.job(*chat), serial.job(user(BALL))) == [
        expected,
        serial.expected(user(BALL)),
    ]


# --- the codec ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_text_never_stands_for_an_image(kind: str, vision_sights: Callable[[str], Sight]) -> None:
    """Wherever a client may write text, in a chat with an image."""
    codec = vision_sights(kind).codec
    token = IMAGE_TOKENS[kind]
    half = len(token) // 2
    call = Message("assistant", None, tool_calls=(ToolCall("1", "f", f'{{"x": "{token}"}}'),))
    hidden = Message("assistant", None, tool_calls=(ToolCall("1", "f", '{"x": "\\u003c"}'),))
    prompts = {
        "messages.0": [
            ChatPrompt((user(BOX, f"See {token}"),)),
            ChatPrompt((user(BOX, token[:half], token[half:]),)),
            ChatPrompt((user(BOX, "<|placeholder|>"),)),
            ChatPrompt((Message("system", token), user(BOX))),
        ],
        "messages.1": [
            ChatPrompt((user(BOX), said(token), user("Yes?"))),
            ChatPrompt((user(BOX), call, user("Yes?"))),
            ChatPrompt((user(BOX), Message("assistant", "A", reasoning=token), user("Yes?"))),
        ],
        "tools": [
            ChatPrompt((user(BOX),), tools=(Tool("f", token),)),
            ChatPrompt((user(BOX),), tools=(Tool("f", parameters={"enum": [token]}),)),
        ],
    }
    for param, refused in prompts.items():
        for prompt in refused:
            with pytest.raises(InvalidRequest) as caught:
                codec.encode_chat(prompt)
            assert caught.value.param == param
            assert "stands for an image" in caught.value.message
    assert codec.encode_chat(ChatPrompt((user(f"See {token}"),))).media is None
    assert codec.encode_chat(ChatPrompt((user(BOX), hidden, user("Yes?")))).media is not None


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_image_of_any_shape_is_answered_or_refused(
    kind: str, vision_sights: Callable[[str], Sight]
) -> None:
    sight = vision_sights(kind)
    answered = 0
    for size in ((1, 1), (1, 150), (150, 1), (700, 2), (2, 700), (1, 900), (37, 23)):
        chat = (user(draw("rectangle", "red", size), "Hm?"),)
        try:
            sight.encode(*chat)
        except InvalidRequest:
            continue
        assert sight.run(sight.job(*chat)) == [sight.expected(*chat)], size
        answered += 1
    assert answered >= 3


@pytest.mark.alone
def test_prompts_are_encoded_on_many_threads_at_once(vision_sights: Callable[[str], Sight]) -> None:
    """Each thread's streams end with its call, and none of them stays behind."""
    codec = vision_sights("qwen3_vl").codec
    chats = list(CHATS.values())
    expected = [codec.encode_chat(ChatPrompt(chat)).ids for chat in chats]
    got: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        got[number] = [codec.encode_chat(ChatPrompt(chat)).ids for chat in chats]

    process, counts = psutil.Process(), []
    for _ in range(3):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got.pop(number) for number in range(4)] == [expected] * 4
        counts.append(process.num_threads())
    # The system's thread ends a moment after Python's.
    until_sync(lambda: process.num_threads() <= counts[0])
