"""What a model's processor makes of a prompt with images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_router.engine.prefix.layers import Key


@dataclass(frozen=True, slots=True, eq=False)
class ImageInputs:
    """The tensors of one prompt, all evaluated: they are made on one thread and used on another.

    ``ids`` [1, T], with as many image tokens as the images take; ``pixels`` in the form of the
    family; ``mask`` [1, T]; ``extras``: what else the family's processor says. ``key`` [T] is the
    same for the same tokens and images, see :func:`image_key`. ``images_end``: how many tokens
    there are to the end of the last image.
    """

    ids: mx.array
    pixels: Any
    mask: mx.array | None
    extras: dict[str, Any]
    key: Key
    images_end: int

    def followed_by(self, tokens: Sequence[int]) -> ImageInputs:
        """The inputs of the same prompt and what was generated after it."""
        if not tokens:
            return self
        more = mx.array([list(tokens)], dtype=self.ids.dtype)
        mask = self.mask
        if mask is not None:
            mask = mx.concatenate([mask, mx.ones(more.shape, dtype=mask.dtype)], axis=1)
        key = np.concatenate([self.key, np.asarray(tokens, dtype=np.int64)])
        ids = mx.concatenate([self.ids, more], axis=1)
        return ImageInputs(ids, self.pixels, mask, self.extras, key, self.images_end)


def arrays_in(values: Any) -> list[mx.array]:
    """The arrays in a tree of lists, tuples and dicts."""
    return [value for _, value in tree_flatten(values) if isinstance(value, mx.array)]


def image_key(
    ids: Sequence[int], image_token: int | None, digests: Sequence[str], counts: Sequence[int]
) -> tuple[Key, int]:
    """Token ids, with a negative number for each token of an image that no other image has there;
    and how many tokens there are to the end of the last image.

    ``counts``: how many tokens each image takes; empty if that cannot be told: then all images
    stand for each of these tokens together. Without ``image_token`` they stand for every token.
    """
    key = np.asarray(ids, dtype=np.int64)
    places = np.flatnonzero(key == image_token)
    if image_token is None or not len(places):
        return np.full(len(key), _number("".join(digests))) - key, len(key)
    if len(counts) == len(digests) and sum(counts) == len(places):
        numbers = np.repeat([_number(digest) for digest in digests], counts)
    else:
        numbers = np.full(len(places), _number("".join(digests)))
    key[places] = numbers
    return key, int(places[-1]) + 1


def _number(digest: str) -> int:
    """A negative number of 62 bits that stands for a digest."""
    return -1 - (int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8]) >> 2)
