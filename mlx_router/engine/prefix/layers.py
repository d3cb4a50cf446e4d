"""What can be done to the layers of a KV cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

Key = np.ndarray[Any, np.dtype[np.int64]]  # [tokens]: ids, and negative numbers for what is seen
Layers = Mapping[int, Any]  # some layers of a cache, by their place in it
Marks = Mapping[int, Layers]  # by a number of tokens: the layers as they were then


def cuttable(layer: Any) -> bool:
    """Whether what a layer was after fewer tokens can always be had by cutting its end. A sliding
    window has forgotten it, a recurrent state has it no more."""
    if hasattr(layer, "caches"):
        return all(cuttable(part) for part in layer.caches)
    windowed = hasattr(layer, "max_size") or hasattr(layer, "chunk_size")
    return not windowed and _trims(layer)


def still_cuttable(layer: Any) -> bool:
    """Whether that can be done now: a sliding window has forgotten nothing before it is full."""
    if hasattr(layer, "caches"):
        return all(still_cuttable(part) for part in layer.caches)
    return _trims(layer) and not getattr(layer, "start_position", 0)


def mark(cache: list[Any]) -> Layers:
    """The layers that cannot be cut back to what they are now. Shares their arrays, which must be
    evaluated, until they are written to."""
    return {i: copy.deepcopy(layer) for i, layer in enumerate(cache) if not cuttable(layer)}


def restore(cache: list[Any], marked: Layers, excess: int) -> list[Any]:
    """A copy of ``cache`` without its last ``excess`` tokens.
    ``marked``: its layers that cannot be cut, as they were then."""
    restored = []
    for i, layer in enumerate(cache):
        layer = copy.deepcopy(marked.get(i, layer) if excess else layer)
        if excess and i not in marked:
            layer.trim(excess)
        restored.append(layer)
    return restored


def size(layers: list[Any]) -> int:
    """Bytes."""
    return sum(layer.nbytes for layer in layers)


def evaluate(cache: list[Any]) -> None:
    """Compute what is in a cache. Unevaluated, a layer that was taken from a batch keeps the caches
    of all of it, and cannot leave the thread."""
    mx.eval([layer.state for layer in cache])


def _trims(layer: Any) -> bool:
    # mlx-lm's ConcatenateKVCache says that it can, and only moves its offset.
    return bool(layer.is_trimmable()) and type(layer).__name__ != "ConcatenateKVCache"
