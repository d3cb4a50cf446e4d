"""A model's own image processor, as mlx-vlm has it, one image at a time."""

from __future__ import annotations

import importlib.util
import json
import logging
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_router.domain import ModelCard
from mlx_router.engine.vlm import import_vlm
from mlx_router.errors import RouterError

log = logging.getLogger(__name__)


class OneByOne:
    """Stands in for an image processor, and gives it the images of a prompt one by one.

    Some of what it does with an image holds Python's lock: with all images at once all streams
    would wait for seconds. It does so where what comes out can be put together (patches and their
    grid, as in the Qwen families); else the images go through together.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        several = isinstance(images, list | tuple) and len(images) > 1
        if not several or any(isinstance(image, list | tuple) for image in images):
            return self._inner(images, *args, **kwargs)
        patches, grids = [], []
        for image in images:
            found = self._inner([image], *args, **kwargs)
            pixels, grid = found.get("pixel_values"), found.get("image_grid_thw")
            if set(found) != {"pixel_values", "image_grid_thw"} or np.ndim(pixels) != 2:
                return self._inner(images, *args, **kwargs)
            patches.append(mx.array(pixels))
            grids.append(np.asarray(grid))
        joined = mx.concatenate(patches)
        mx.eval(joined)
        return {"pixel_values": joined, "image_grid_thw": np.concatenate(grids)}


def load_processor(
    card: ModelCard, config: dict[str, Any], *, trust_remote_code: bool
) -> tuple[Any, str | None]:
    """The processor, or why there is none, in a sentence for whoever sends an image."""
    try:
        import_vlm(config)
        from mlx_vlm.models.base import BaseImageProcessor
        from mlx_vlm.utils import load_image_processor, load_processor

        processor = load_processor(
            card.path, add_detokenizer=False, trust_remote_code=trust_remote_code
        )
        own = load_image_processor(card.path, trust_remote_code=trust_remote_code)
        if own is not None:
            processor.image_processor = own
    except RouterError:
        raise
    except Exception as error:
        log.warning("%s cannot be shown images", card.id, exc_info=True)
        return None, _why_not(card, error)
    if not hasattr(processor, "image_processor"):
        return None, (
            f"{card.id} cannot be shown images: its files describe no image processor. Download "
            "the model again."
        )
    if not isinstance(processor.image_processor, BaseImageProcessor):  # which mlx-vlm looks for
        processor.image_processor = OneByOne(processor.image_processor)
    return processor, None


def _why_not(card: ModelCard, error: Exception) -> str:
    """Why ``error`` kept the processor from being loaded, and what to do."""
    if "torch" in str(error).lower() and importlib.util.find_spec("torchvision") is None:
        return (
            f"The image processor of {card.id} needs PyTorch, which is not installed. Install "
            "it with: uv pip install torch torchvision. Then start the server again."
        )
    if not _describes_images(card):
        return (
            f"{card.id} cannot be shown images: preprocessor_config.json is missing. Download the "
            "model again."
        )
    return (
        f"The image processor of {card.id} could not be loaded ({type(error).__name__}). Download "
        "the model again, or look at the log."
    )


def _describes_images(card: ModelCard) -> bool:
    """Whether the files of a model say how its images are prepared."""
    if (card.path / "preprocessor_config.json").is_file():
        return True
    try:
        return "image_processor" in json.loads((card.path / "processor_config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
