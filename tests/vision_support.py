"""Models that see, stepped by hand, and what they are shown.

What is right is what mlx-vlm's own loop answers to the same tensors.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image, ImageDraw

from mlx_router.domain import (
    ChatPrompt,
    FinishReason,
    Message,
    ModelCard,
    ModelKind,
    Picture,
    TextPart,
)
from mlx_router.engine.base import Encoded, Job, Sampling, StepResult
from mlx_router.engine.text import TextEngineOptions
from mlx_router.engine.vision.codec import VisionCodec
from mlx_router.engine.vision.engine import VisionEngine
from mlx_router.media.picture import picture
from tests.test_correctness import OnOneThread
from tests.test_text_engine import FailingRunner

SLICE = 8  # tokens: a prompt takes several, and an image lies across them
TOKENS = 10

# Of each kind of cache and positions: rotary in three dimensions, sliding windows, plain.
DIFFERENT = ("qwen3_vl", "gemma3")
# One of those that share their code: qwen2_vl has the language model of qwen2_5_vl, smolvlm all of
# idefics3.
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3")

Part = str | Picture


def draw(
    shape: str, colour: str, size: tuple[int, int] = (96, 64), ground: str = "white"
) -> Picture:
    image = Image.new("RGB", size, ground)
    box = (size[0] // 5, size[1] // 5, size[0] * 3 // 5, size[1] * 4 // 5)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return picture(*size, image.tobytes())


BOX = draw("rectangle", "red")
BALL = draw("ellipse", "yellow", ground="blue")  # as large as BOX: it takes as many tokens
LARGE = draw("ellipse", "green", (128, 96), ground="black")
WORDS = "Look well at what is drawn here and say what it is."


def user(*parts: Part) -> Message:
    return Message("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts))


def said(text: str) -> Message:
    return Message("assistant", text)


QUESTION = "What is drawn here, and where is it? Say it in a few words."
SYSTEM = Message("system", "You look at pictures with great care. You are as brief as can be.")
CHATS: dict[str, tuple[Message, ...]] = {
    "an image": (SYSTEM, user(BOX, QUESTION)),
    "the next turn": (SYSTEM, user(BOX, QUESTION), said("A box."), user("Which colour is it?")),
    "another image": (SYSTEM, user(BALL, QUESTION)),
    "the next turn about it": (
        *(SYSTEM, user(BALL, QUESTION), said("A box."), user("Which colour is it?")),
    ),
    "no image": (SYSTEM, user(QUESTION)),
    "two images": (SYSTEM, user(BOX, QUESTION), said("A box."), user(BALL, "And this?")),
    "other two images": (SYSTEM, user(BOX, QUESTION), said("A box."), user(LARGE, "And this?")),
    "swapped": (SYSTEM, user(BALL, QUESTION), said("A box."), user(BOX, "And this?")),
    "the second image gone": (SYSTEM, user(BOX, QUESTION), said("A box."), user("And this?")),
    "the first image gone": (SYSTEM, user(QUESTION), said("A box."), user(BALL, "And this?")),
    "side by side": (SYSTEM, user(BOX, BALL, QUESTION)),
    "side by side with another": (SYSTEM, user(BOX, LARGE, QUESTION)),
    "one twice": (SYSTEM, user(BOX, BOX, QUESTION)),
    "text, then an image": (SYSTEM, user(QUESTION), said("Nothing."), user(LARGE, "Now?")),
}


class Sight:
    """A model on a thread of its own, stepped by hand, and mlx-vlm's own beside it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        options = {"prefill_step_size": SLICE, "prefix_cache_bytes": 0} | options
        card = ModelCard(
            id=folder.name, path=folder, kind=ModelKind.VISION, architecture=folder.name
        )
        self.kind = folder.name
        self.codec = VisionCodec(card)
        self.engine = VisionEngine(card, TextEngineOptions(**options))
        self.on_thread = OnOneThread()
        self.loaded = self.on_thread(self.engine.load)
        self._folder = folder
        self._reference: Any = None
        self._expected: dict[tuple[Message, ...], list[int]] = {}
        self._encoded: dict[tuple[Message, ...], Encoded] = {}
        self._ids = iter(range(1, 10**6))

    def encode(self, *chat: Message) -> Encoded:
        if chat not in self._encoded:
            self._encoded[chat] = self.codec.encode_chat(ChatPrompt(chat))
        return self._encoded[chat]

    def job(self, *chat: Message, max_tokens: int = TOKENS, **more: Any) -> Job:
        encoded = self.encode(*chat)
        values: dict[str, Any] = {"sampling": Sampling(), "media": encoded.media} | more
        return Job(id=next(self._ids), prompt=encoded.ids, max_tokens=max_tokens, **values)

    def expected(self, *chat: Message) -> list[int]:
        """What mlx-vlm answers."""
        if chat not in self._expected:
            encoded = self.encode(*chat)  # not on the model's thread: its streams would end
            self._expected[chat] = self.on_thread(lambda: self._generate(encoded))
        return self._expected[chat]

    def _generate(self, encoded: Encoded) -> list[int]:
        from mlx_vlm.generate import generate_step
        from mlx_vlm.utils import load_model

        if self._reference is None:
            self._reference = load_model(self._folder)
        media: Any = encoded.media
        ids = mx.array([encoded.ids])
        steps = generate_step(
            ids,
            self._reference,
            media.pixels if media else None,
            media.mask if media else mx.ones_like(ids),
            max_tokens=TOKENS,
            temperature=0.0,
            **(media.extras if media else {}),
        )
        return [int(token) for _, (token, _) in zip(range(TOKENS), steps, strict=False)]

    def add(self, *jobs: Job) -> None:
        for job in jobs:  # no step comes in between
            self.on_thread(partial(self.engine.add, job))

    def step(self) -> list[StepResult]:
        results: list[StepResult] = self.on_thread(self.engine.step)
        return results

    def abort(self, job: Job) -> None:
        self.on_thread(lambda: self.engine.abort(job.id))

    def run(self, *jobs: Job, after_step: Callable[[], None] | None = None) -> list[list[int]]:
        """The tokens of these jobs, and of no other; each must come to its end."""
        self.add(*jobs)
        results = self.drain(after_step)
        assert set(results) == {job.id for job in jobs}
        return [tokens(results[job.id]) for job in jobs]

    def drain(self, after_step: Callable[[], None] | None = None) -> dict[int, list[StepResult]]:
        results: dict[int, list[StepResult]] = {}
        for _ in range(2000):
            if not self.engine.busy:
                self.check_nothing_is_left()
                return results
            for result in self.step():
                results.setdefault(result.job_id, []).append(result)
            if after_step is not None:
                self.on_thread(after_step)
        raise AssertionError("it does not end")

    def cached(self, *chat: Message, scope: str = "") -> int:
        """How many tokens of a prompt were reused; its answer must be right."""
        job = self.job(*chat, cache_scope=scope)
        self.add(job)
        results = self.drain()[job.id]
        assert tokens(results) == self.expected(*chat)
        return results[0].cached_tokens

    def check_nothing_is_left(self) -> None:
        runner: Any = self.engine._runner
        assert not self.engine._live
        if isinstance(runner, FailingRunner):
            runner = runner._inner
        if hasattr(runner, "_prefills"):
            assert not runner._prefills
            assert not runner._live
            assert not runner._uids
            assert not runner._generator._unprocessed_sequences
        else:
            assert not runner._queue
            assert runner._tokens is None

    def memory(self) -> int:
        """Bytes of arrays, with nothing kept for later prompts; a batch keeps its last step's
        logits, so that is the same one each time."""
        self.run(self.job(user("."), max_tokens=1))

        def measure() -> int:
            self.engine.drop_caches()
            gc.collect()
            return int(mx.get_active_memory())

        found: int = self.on_thread(measure)
        return found

    def prefixes(self, max_bytes: int = 10**9) -> None:
        """From now on prompts are kept."""
        self.engine._prefixes._max_bytes = max_bytes

    def reset(self) -> None:
        self.prefixes(0)
        self.on_thread(self.engine.drop_caches)

    def close(self) -> None:
        self._reference = None
        self._encoded.clear()
        self.on_thread(self.engine.close)
        self.on_thread.close()


def tokens(results: Sequence[StepResult]) -> list[int]:
    for result in results:
        assert result.error is None
        assert result.token is not None
    assert results[-1].finish is FinishReason.LENGTH
    return [result.token for result in results if result.token is not None]


class Looks:
    """Counts the calls of a tower."""

    def __init__(self, sight: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        features: Any = sight.engine._features
        compute = features._compute

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return compute(*args, **kwargs)

        monkeypatch.setattr(features, "_compute", counted)

    def take(self) -> int:
        found, self.count = self.count, 0
        return found
