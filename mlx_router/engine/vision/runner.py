"""How sequences with images join the others."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from mlx_router.engine.base import Job, StepResult
from mlx_router.engine.batch import BatchRunner
from mlx_router.engine.prefix import Key, Prefix
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler
from mlx_router.engine.serial import SerialRunner
from mlx_router.engine.vision.features import FeatureCache, Looking
from mlx_router.engine.vision.inputs import ImageInputs
from mlx_router.engine.vision.model import Embedded, Positions, VisionModel

log = logging.getLogger(__name__)


class ImagePrefill:
    """A context with images on its way into a KV cache, an image or a slice of tokens at a time.

    ``sequences`` share it: the choices of one request. ``start``: tokens that ``cache`` holds
    already.
    """

    def __init__(
        self,
        sequence: LiveSequence,
        model: VisionModel,
        features: FeatureCache,
        cache: list[Any],
        start: int,
        slice_tokens: int,
    ) -> None:
        self.sequences = [sequence]
        self.cache = cache
        self._inputs = image_inputs(sequence)
        self._scope = sequence.job.cache_scope
        self._model = model
        self._features = features
        self._slice = slice_tokens
        self._done = start
        self._looking: Looking | None = None
        self._embedded: Embedded | None = None

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return self._inputs.ids.shape[1] - 1 - self._done

    def advance(self) -> bool:
        """Compute a little more; True if all but the last token is in the cache."""
        if self._looking is None:
            self._looking = self._features.look(self._scope, self._embed)
        if not self._looking.done:
            self._features.step(self._looking)
            return False
        if self._embedded is None:
            self._embedded = self._features.finish(self._looking, self._embed)
            if not self._embedded.sliceable:
                self.cache, self._done = self._model.make_cache(), 0
                for sequence in self.sequences:
                    sequence.cached = 0
        count = min(self._slice, self.left) if self._embedded.sliceable else self.left
        end = self._done + count
        self._model.prefill(self._inputs.ids, self._embedded, self.cache, self._done, end)
        self._done = end
        return self.left == 0

    def _embed(self) -> Embedded:
        return self._model.embed(self._inputs)


class VisionBatchRunner(BatchRunner):
    """Contexts with images are prefilled each by itself between the steps of the batch; then they
    decode in it."""

    def __init__(
        self,
        model: VisionModel,
        features: FeatureCache,
        *,
        prefill_step_size: int,
        max_batch_size: int,
        **options: Any,
    ) -> None:
        super().__init__(
            model, prefill_step_size=prefill_step_size, max_batch_size=max_batch_size, **options
        )
        self._model = model
        self._features = features
        self._slice = prefill_step_size
        self._room = max_batch_size
        self._prefills: deque[ImagePrefill] = deque()
        self._shortest_is_next = False

    def insert(self, sequence: LiveSequence) -> None:
        job = sequence.job
        if job.media is None:
            super().insert(sequence)
            return
        for prefill in self._prefills:
            leader = prefill.sequences[0]
            if leader.job.id == job.fork_of and not (leader.tokens or sequence.tokens):
                prefill.sequences.append(sequence)
                return
        inputs = image_inputs(sequence)
        found = self._prefix(sequence)
        if found is not None and not found.lost_images and found.tokens >= inputs.images_end:
            self._go_on(sequence, found.cache, found.tokens)  # what is left is text
            return
        cache, start = (found.cache, found.tokens) if found else (self._model.make_cache(), 0)
        self._prefills.append(
            ImagePrefill(sequence, self._model, self._features, cache, start, self._slice)
        )

    def remove(self, job_id: int) -> None:
        for prefill in self._prefills:
            prefill.sequences = [each for each in prefill.sequences if each.job.id != job_id]
        self._prefills = deque(prefill for prefill in self._prefills if prefill.sequences)
        super().remove(job_id)

    def step(self) -> list[StepResult]:
        # What is prefilled and cannot be decoded yet, since the batch is full, only holds memory.
        waiting = sum(
            each.job.media is not None and not each.tokens for each in self._live.values()
        )
        has_room = waiting < self._room
        failed = self._advance(self._next_prefill()) if self._prefills and has_room else []
        return failed + super().step()

    def close(self) -> None:
        self._prefills.clear()
        super().close()

    def _next_prefill(self) -> ImagePrefill:
        """In turns the oldest, and the one with the least to do: one picture does not wait for the
        sixty pages that came before it, and these are not put off for ever."""
        self._shortest_is_next = not self._shortest_is_next
        if self._shortest_is_next:
            return min(self._prefills, key=lambda prefill: prefill.left)
        return self._prefills[0]

    def _advance(self, prefill: ImagePrefill) -> list[StepResult]:
        """A fault here touches nobody else: the cache is the sequence's own."""
        try:
            if prefill.advance():
                self._prefills.remove(prefill)
                self._join(prefill)
        except Exception:
            log.exception("an image could not be computed")
            message = "The model failed on the images of this request; the log has the reason."
            failed = [StepResult(each.job.id, None, error=message) for each in prefill.sequences]
            for result in failed:
                self.remove(result.job_id)
            return failed
        return []

    def _join(self, prefill: ImagePrefill) -> None:
        first, *others = prefill.sequences
        for sequence in others:
            sequence.cached = len(sequence.job.prompt) - 1
            self._go_on(sequence, copy.deepcopy(prefill.cache), len(sequence.job.prompt) - 1)
        self._go_on(first, prefill.cache, len(first.context) - 1)

    def _prompt_key(self, job: Job) -> Key:
        return job.media.key if isinstance(job.media, ImageInputs) else super()._prompt_key(job)

    def _prefix(self, sequence: LiveSequence) -> Prefix | None:
        found = super()._prefix(sequence)
        if found is not None and found.lost_images and sequence.job.media is None:
            for layer in found.cache:
                if isinstance(layer, Positions):
                    layer.deltas = mx.zeros_like(layer.deltas)
        return found


class VisionSerialRunner(SerialRunner):
    """Each sequence to its end by mlx-vlm's own loop, for models that cannot batch."""

    def __init__(self, model: VisionModel, *, prefill_step_size: int) -> None:
        super().__init__(model, prefill_step_size=prefill_step_size)
        self._whole = model.whole

    def close(self) -> None:
        super().close()
        self._whole = None

    def _generate(self, sequence: LiveSequence) -> Iterator[tuple[int, mx.array]]:
        from mlx_vlm.generate import ar

        # This thread's default stream: a stream of its own would leave a thread behind every load.
        ar.generation_stream = mx.default_device()
        job = sequence.job
        inputs = image_inputs(sequence) if job.media is not None else None
        ids = mx.array([sequence.context]) if inputs is None else inputs.ids
        tokens: Iterator[tuple[int, mx.array]] = ar.generate_step(
            ids,
            self._whole,
            None if inputs is None else inputs.pixels,
            mx.ones_like(ids) if inputs is None else inputs.mask,
            max_tokens=sequence.remaining,
            temperature=0.0,
            sampler=make_sampler(job.sampling, position=len(sequence.tokens)),
            logits_processors=sequence.processors(),
            prefill_step_size=self._prefill_step_size,
            **({} if inputs is None else inputs.extras),
        )
        return tokens


def image_inputs(sequence: LiveSequence) -> ImageInputs:
    """What the codec made of the prompt, and what was generated since."""
    inputs = sequence.job.media
    assert isinstance(inputs, ImageInputs)
    return inputs.followed_by(sequence.tokens)
