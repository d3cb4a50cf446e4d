"""The engine for models that see: mlx-vlm's model in the text engine's hands."""

from __future__ import annotations

import logging
from typing import Any

from mlx_router.domain import ModelCard
from mlx_router.engine import device
from mlx_router.engine.base import BatchTrial
from mlx_router.engine.runner import Runner
from mlx_router.engine.text import TextEngine, TextEngineOptions
from mlx_router.engine.vision.features import FeatureCache
from mlx_router.engine.vision.model import load_vision_model
from mlx_router.errors import ModelLoadFailed

log = logging.getLogger(__name__)


class VisionEngine(TextEngine):
    """A :class:`TextEngine` whose prompts may hold images. Its prompts without images are computed
    as those of any other model."""

    def __init__(
        self,
        card: ModelCard,
        options: TextEngineOptions | None = None,
        *,
        feature_cache_bytes: int = 256_000_000,
    ) -> None:
        super().__init__(card, options)
        self._feature_cache_bytes = feature_cache_bytes
        self._features: FeatureCache | None = None

    def memory_bytes(self) -> int:
        return super().memory_bytes() + (self._features.nbytes if self._features else 0)

    def drop_caches(self) -> None:
        if self._features is not None:
            self._features.clear()
        super().drop_caches()

    def close(self) -> None:
        self._features = None
        super().close()

    def _load_model(self) -> Any:
        model = load_vision_model(
            self._card,
            self._options.adapter_path,
            trust_remote_code=self._options.trust_remote_code,
        )
        self._features = FeatureCache(model.whole, self._feature_cache_bytes)
        return model

    def _equip(self, vocab_size: int) -> None:
        for name, option in (
            ("kv_bits", self._options.kv_bits),
            ("draft_model", self._options.draft),
        ):
            if option is not None:
                raise ModelLoadFailed(
                    f"{self._card.id} is a vision model, and these cannot use {name}. Leave it out "
                    "of its config."
                )
        if self._options.prompt_lookup:
            log.info("prompt_lookup is of no use to %s: it is a vision model", self._card.id)
        self._make_cache = self._model.make_cache

    def _try_batching(self, vocab_size: int) -> BatchTrial:
        if not self._model.batches(self._card.architecture):
            reason = "what it computes of an image cannot be told apart from what follows"
            return BatchTrial(False, reason, device.versions())
        return super()._try_batching(vocab_size)

    def _make_runner(self, batches: bool) -> Runner:
        # Imported here, on the engine's thread: they import mlx-lm, which takes seconds.
        from mlx_router.engine.vision.runner import (
            VisionBatchRunner,
            VisionKeeper,
            VisionSerialRunner,
        )

        step_size = self._options.prefill_step_size
        if not batches:
            return VisionSerialRunner(self._model, prefill_step_size=step_size)
        assert self._features is not None
        return VisionBatchRunner(
            self._model,
            self._features,
            prefill_step_size=step_size,
            max_batch_size=self._options.max_batch_size,
            wired_limit=self._options.wired_limit,
            keeper=VisionKeeper(self._prefixes),
        )
