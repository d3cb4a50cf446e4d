"""A model of mlx-vlm in the shape that mlx-lm's generators drive: token ids in, logits out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_router.domain import ModelCard
from mlx_router.engine.vision.inputs import ImageInputs
from mlx_router.engine.vlm import import_vlm
from mlx_router.errors import INSTALL_VISION, ModelLoadFailed

# What these compute depends on the image at every step, not through the KV cache alone.
_CROSS_ATTENTION = frozenset(("florence2", "mllama", "nemotron_parse", "falcon_perception"))


def load_vision_model(
    card: ModelCard, adapter_path: Path | None = None, *, trust_remote_code: bool = False
) -> VisionModel:
    """Raises ModelLoadFailed if mlx-vlm is not installed, and whatever mlx-vlm raises."""
    try:
        import_vlm(json.loads((card.path / "config.json").read_text()))
        from mlx_vlm.utils import load_model
    except ModuleNotFoundError as error:
        if error.name not in ("mlx_vlm", "PIL"):
            raise
        raise ModelLoadFailed(
            f"{card.id} is a vision model, and these need mlx-vlm and Pillow. Install them: "
            f"{INSTALL_VISION}."
        ) from None
    model = load_model(card.path, trust_remote_code=trust_remote_code)
    if adapter_path is not None:
        from mlx_vlm.trainer.utils import apply_lora_layers

        model = apply_lora_layers(model, str(adapter_path))
        mx.eval(model.parameters())
    model.eval()
    return VisionModel(model)


class Positions:
    """How far the positions of a row's next tokens are from their number in the sequence: with
    multimodal rotary embeddings an image takes more tokens than positions.

    ``deltas`` is [B, 1]. Stands among the layers of a KV cache, and is batched with them. Cutting
    the cache back leaves it as it is: whoever does so knows better (see ``Prefix.lost_images``).
    """

    def __init__(self, deltas: mx.array | None = None) -> None:
        self.deltas = mx.zeros((1, 1), dtype=mx.int32) if deltas is None else deltas

    @property
    def state(self) -> mx.array:
        return self.deltas

    @property
    def nbytes(self) -> int:
        return int(self.deltas.nbytes)

    @classmethod
    def merge(cls, rows: Sequence[Positions]) -> Positions:
        return cls(mx.concatenate([row.deltas for row in rows]))

    def extend(self, other: Positions) -> None:
        self.deltas = mx.concatenate([self.deltas, other.deltas])

    def filter(self, keep: Any) -> None:
        self.deltas = self.deltas[keep]

    def extract(self, row: int) -> Positions:
        return Positions(self.deltas[row : row + 1])

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        return count

    def prepare(self, **padding: Any) -> None:
        pass

    def finalize(self) -> None:
        pass


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A prompt as a language model is given it: ``embeddings`` [1, T, D], images in their places;
    ``positions`` [..., T] and ``deltas`` (see :class:`Positions`) of multimodal rotary embeddings;
    ``more``: what else the family wants. ``sliceable``: else it finds the positions out by itself,
    and only if it gets the whole prompt at once."""

    embeddings: mx.array
    more: dict[str, Any]
    positions: mx.array | None
    deltas: mx.array | None
    sliceable: bool


class VisionModel(nn.Module):  # type: ignore[misc]  # mlx has no types
    """``whole`` is mlx-vlm's model, ``whole.language_model`` what decodes."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    @property
    def language(self) -> Any:
        return self.whole.language_model

    @property
    def has_positions(self) -> bool:
        """Whether it has multimodal rotary embeddings, whose state belongs to a sequence."""
        return hasattr(self.language, "_rope_deltas")

    @property
    def layers(self) -> Any:
        return self.language.layers

    def make_cache(self) -> list[Any]:
        from mlx_vlm.models.cache import make_prompt_cache

        cache: list[Any] = make_prompt_cache(self.language)
        return [*cache, Positions()] if self.has_positions else cache

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        """Logits [B, T, V] of token ids [B, T]."""
        if hasattr(self.language, "_position_ids"):
            self.language._position_ids = None  # of another prompt
        if not self.has_positions:
            output = self.language(ids, cache=cache)
        else:
            *layers, positions = cache
            output = self.language(ids, cache=layers, rope_deltas=positions.deltas)
        logits: mx.array = output.logits
        return logits

    def embed(self, inputs: ImageInputs) -> Embedded:
        """What the language model is given for a prompt with images, all of it."""
        language = self.language
        state = [name for name in ("_position_ids", "_rope_deltas") if hasattr(language, name)]
        for name in state:
            setattr(language, name, None)  # it was another prompt's
        features = self.whole.get_input_embeddings(
            inputs.ids, inputs.pixels, mask=inputs.mask, **inputs.extras
        )
        more = {key: value for key, value in features.to_dict().items() if value is not None}
        positions, deltas = more.pop("position_ids", None), more.pop("rope_deltas", None)
        # Some families give them, others leave them in the model.
        positions = getattr(language, "_position_ids", None) if positions is None else positions
        deltas = getattr(language, "_rope_deltas", None) if deltas is None else deltas
        return Embedded(
            embeddings=more.pop("inputs_embeds"),
            more={**inputs.extras, **more},
            positions=positions,
            deltas=deltas,
            sliceable=not state or (self.has_positions and positions is not None),
        )

    def prefill(
        self, ids: mx.array, embedded: Embedded, cache: list[Any], start: int, end: int
    ) -> None:
        """Compute tokens ``start`` to ``end`` of a prompt [1, T] into ``cache``, which holds those
        before. What belongs to images a family cuts to this window by itself, but not all cut the
        positions."""
        more = dict(embedded.more)
        if embedded.positions is not None:
            if hasattr(self.language, "_position_ids"):
                self.language._position_ids = embedded.positions
            more["position_ids"] = embedded.positions[..., start:end]
        if embedded.deltas is not None:
            more["rope_deltas"] = embedded.deltas
        if end > start:
            self.language(
                ids[:, start:end],
                inputs_embeds=embedded.embeddings[:, start:end],
                cache=cache[:-1] if self.has_positions else cache,
                n_to_process=end - start,
                **more,
            )
        if self.has_positions:
            deltas = self.language._rope_deltas if embedded.deltas is None else embedded.deltas
            if deltas is not None:
                cache[-1].deltas = deltas.reshape(1, 1).astype(mx.int32)
        mx.eval([layer.state for layer in cache])

    def batches(self, model_type: str) -> bool:
        """Whether a prompt with an image can be computed in slices, and decoded from its KV cache
        alone. False: mlx-vlm's own loop serves one request at a time."""
        if model_type in _CROSS_ATTENTION:
            return False
        for part in (self.whole, self.language):
            if getattr(part, "no_chunked_prefill", False):
                return False
            policy = getattr(part, "chunked_prefill_policy", None)
            if policy is not None and not policy():
                return False
            # Some let tokens of an image see those behind them, which slices would cut off.
            config = getattr(part, "config", None)
            if getattr(config, "use_bidirectional_attention", None) == "vision":
                return False
        return True
