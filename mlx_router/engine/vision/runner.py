"""How sequences with images join the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from mlx_router.engine.base import Job
from mlx_router.engine.batch import BatchRunner
from mlx_router.engine.prefill import Prefill
from mlx_router.engine.prefix.cache import NOTHING, Prefix, PrefixCache, text_key
from mlx_router.engine.prefix.keeper import Keeper
from mlx_router.engine.prefix.layers import Key
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import make_sampler
from mlx_router.engine.serial import SerialRunner
from mlx_router.engine.vision.features import FeatureCache, Looking
from mlx_router.engine.vision.inputs import ImageInputs
from mlx_router.engine.vision.model import Embedded, Positions, VisionModel


class ImagePrefill(Prefill):
    """A context with images: an image, or a slice of tokens, at a time."""

    def __init__(self, model: VisionModel, sequence: LiveSequence, features: FeatureCache) -> None:
        super().__init__(model, sequence, model.make_cache)
        self._vision = model
        self._features = features
        self._inputs = image_inputs(sequence)
        self._only_text = False
        self._looking: Looking | None = None
        self._embedded: Embedded | None = None

    def begin(self, prefix: Prefix = NOTHING) -> None:
        super().begin(prefix)
        self._only_text = not prefix.lost_images and prefix.tokens >= self._inputs.images_end

    def advance(self, tokens: int) -> bool:
        if self._only_text:
            return super().advance(tokens)
        if self._looking is None:
            self._looking = self._features.look(self.sequences[0].job.cache_scope, self._embed)
        if not self._looking.done:
            self._features.step(self._looking)
            return False
        if self._embedded is None:
            self._embedded = self._features.finish(self._looking, self._embed)
            if not self._embedded.sliceable:  # it is computed as a whole or not at all
                self.begin()
                self._stops = []
            if self.left == 0:  # it was cut from a chat that has other images after it
                self._compute(self.done, self.done)  # sets the positions of what follows
        return super().advance(tokens if self._embedded.sliceable else self.left)

    def _compute(self, start: int, end: int) -> None:
        if self._embedded is None:
            super()._compute(start, end)
        else:
            self._vision.prefill(self._inputs.ids, self._embedded, self.cache, start, end)

    def _embed(self) -> Embedded:
        return self._vision.embed(self._inputs)


class VisionBatchRunner(BatchRunner):
    """Contexts with images are prefilled each by itself between the steps of the batch; then they
    decode in it."""

    def __init__(self, model: VisionModel, features: FeatureCache, **options: Any) -> None:
        super().__init__(model, **options)
        self._vision = model
        self._features = features

    def _prefill_of(self, sequence: LiveSequence) -> Prefill:
        if sequence.job.media is None:
            return Prefill(self._vision, sequence, self._vision.make_cache)
        return ImagePrefill(self._vision, sequence, self._features)

    def _can_join_at_once(self, prefill: Prefill, size: int) -> bool:
        return not isinstance(prefill, ImagePrefill) and super()._can_join_at_once(prefill, size)


class VisionKeeper(Keeper):
    """What is known of prompts with images: they stand in keys as numbers of their own."""

    def __init__(self, prefixes: PrefixCache) -> None:
        super().__init__(prefixes, prompt_key=_prompt_key)

    def find(self, sequence: LiveSequence) -> Prefix:
        found = super().find(sequence)
        if found.cache is not None and found.lost_images and sequence.job.media is None:
            for layer in found.cache:
                if isinstance(layer, Positions):
                    layer.deltas = mx.zeros_like(layer.deltas)
        return found

    def keep_begun(self, prefill: Prefill) -> None:
        """Not in the middle of the images: the cache has the positions of a prompt with all of
        them, which its key would not say."""
        media = prefill.sequences[0].job.media
        if not isinstance(media, ImageInputs) or prefill.done >= media.images_end:
            super().keep_begun(prefill)


class WholePrompt(Prefill):
    """A context that is computed by whoever decodes it."""

    def advance(self, tokens: int) -> bool:
        return True


class VisionSerialRunner(SerialRunner):
    """Each sequence to its end by mlx-vlm's own loop, for models that cannot batch."""

    def __init__(self, model: VisionModel, *, prefill_step_size: int) -> None:
        super().__init__(
            model,
            make_cache=list,  # the loop makes its own
            prefill_step_size=prefill_step_size,
            keeper=Keeper(PrefixCache(0)),
        )
        self._whole = model.whole

    def close(self) -> None:
        super().close()
        self._whole = None

    def _prefill_of(self, sequence: LiveSequence) -> Prefill:
        return WholePrompt(self._model, sequence, self._make_cache)

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


def _prompt_key(job: Job) -> Key:
    return job.media.key if isinstance(job.media, ImageInputs) else text_key(job.prompt)


def image_inputs(sequence: LiveSequence) -> ImageInputs:
    """What the codec made of the prompt, and what was generated since."""
    inputs = sequence.job.media
    assert isinstance(inputs, ImageInputs)
    return inputs.followed_by(sequence.tokens)
