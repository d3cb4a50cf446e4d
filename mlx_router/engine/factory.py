"""Engines and codecs for models on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Engine

# MLX is imported in the methods: a server answers before that is there.
if TYPE_CHECKING:
    from mlx_router.engine.codec import MLXCodec
    from mlx_router.engine.text import TextEngineOptions


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the config says of one model. ``chat_template``: a built-in one in place of its own."""

    text: TextEngineOptions
    chat_template: str | None = None


class MLXFactory:
    """Implements :class:`mlx_router.engine.base.EngineFactory`; making an engine is cheap, all work
    happens in its ``load``."""

    def __init__(self, options: Callable[[ModelCard], ModelOptions]) -> None:
        self._options = options

    def engine(self, card: ModelCard) -> Engine:
        if card.kind is ModelKind.EMBEDDING:
            from mlx_router.engine.embedding import EmbeddingEngine

            return EmbeddingEngine(card)
        if card.kind is ModelKind.VISION:
            from mlx_router.engine.vision.engine import VisionEngine

            return VisionEngine(card, self._options(card).text)
        from mlx_router.engine.text import TextEngine

        return TextEngine(card, self._options(card).text)

    def codec(self, card: ModelCard) -> MLXCodec:
        from mlx_router.engine.codec import MLXCodec

        options = self._options(card)
        make: type[MLXCodec] = MLXCodec
        if card.kind is ModelKind.VISION:
            from mlx_router.engine.vision.codec import VisionCodec

            make = VisionCodec
        return make(
            card,
            template=options.chat_template,
            trust_remote_code=options.text.trust_remote_code,
        )
