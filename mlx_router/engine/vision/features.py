"""What a vision tower made of images: image by image, and kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_router.engine.vision.inputs import arrays_in

_TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder", "vision")

Tower = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(Exception):
    """Ends a call of a model when it has reached its tower: the rest is not wanted yet."""


class Looking:
    """The images of one prompt on their way through the tower."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.parts: list[Arguments] = []
        self.features: list[Any] = []

    @property
    def done(self) -> bool:
        return len(self.features) == len(self.parts)


class FeatureCache:
    """Stands in front of the vision tower of a model, and keeps the features that were used last,
    ``max_bytes`` of them. Lives on the model's thread.

    An image is known by its pixels as the tower gets them, within a scope: how soon an answer
    begins tells whether its image was seen before. The images of one prompt are computed
    each by itself where the tower's input can be told apart: so they can be computed one a step,
    and a known one is not computed again beside a new one. ``embed`` is a call of the model that
    calls its tower.
    """

    def __init__(self, model: Any, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Any] = OrderedDict()  # the one used last comes last
        self._looking: Looking | None = None
        self._separable: bool | None = None
        self._compute: Tower | None = None
        tower = next((getattr(model, name) for name in _TOWERS if hasattr(model, name)), None)
        if tower is not None:
            self._intercept(tower)

    @property
    def nbytes(self) -> int:
        return sum(map(_nbytes, self._kept.values()))

    def look(self, scope: str, embed: Callable[[], Any]) -> Looking:
        """Find out what there is to be seen, and compute nothing. What is found is done at once
        if the model has no tower that is known here."""
        looking = Looking(scope)
        if self._compute is not None:
            self._looking = looking
            try:
                embed()
            except _Reached:
                pass
            finally:
                self._looking = None
        return looking

    def step(self, looking: Looking) -> None:
        """Compute the next image, or find it among those that are kept."""
        assert self._compute is not None
        args, kwargs = looking.parts[len(looking.features)]
        key = _digest(looking.scope, (args, kwargs))
        feature = self._kept.get(key)
        if feature is None:
            feature = self._compute(*args, **kwargs)
            mx.eval(arrays_in(feature))
            if _shapes(feature) is not None:  # else nobody knows how large it is
                self._kept[key] = feature
        else:
            self._kept.move_to_end(key)
        looking.features.append(feature)
        while len(self._kept) > 1 and self.nbytes > self._max_bytes:
            self._kept.popitem(last=False)

    def finish(self, looking: Looking, embed: Callable[[], Any]) -> Any:
        """What ``embed`` gives, with the features in the place of its tower's."""
        self._looking = looking if looking.parts else None
        try:
            return embed()
        finally:
            self._looking = None

    def clear(self) -> None:
        self._kept.clear()

    def _intercept(self, tower: Any) -> None:
        """Let calls of ``tower`` come here; whatever else it is, it stays."""
        kind = type(tower)
        self._compute = lambda *args, **kwargs: kind.__call__(tower, *args, **kwargs)

        def called(_: Any, *args: Any, **kwargs: Any) -> Any:
            return self._called(args, kwargs)

        tower.__class__ = type(kind.__name__, (kind,), {"__call__": called})

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._compute is not None
        looking, self._looking = self._looking, None  # a second call in one prompt is not foreseen
        if looking is None:
            return self._compute(*args, **kwargs)
        if looking.features:
            return looking.features[0] if len(looking.parts) == 1 else _joined(looking.features)
        looking.parts = self._parts(args, kwargs)
        raise _Reached

    def _parts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Arguments]:
        """The arguments of a call for each image by itself; or all, if that cannot be done."""
        assert self._compute is not None
        whole: list[Arguments] = [(args, kwargs)]
        spans = _spans(args, kwargs)
        if len(spans) < 2 or self._separable is False:
            return whole
        rows = spans[-1][1]
        parts: list[Arguments] = [
            tree_map(lambda x, i=i, a=a, b=b: _cut(x, rows, len(spans), i, a, b), (args, kwargs))
            for i, (a, b) in enumerate(spans)
        ]
        if self._separable is None:  # told by shapes alone: nothing is computed
            together = _shapes(self._compute(*args, **kwargs))
            apart = _joined([self._compute(*each, **more) for each, more in parts])
            self._separable = together is not None and together == _shapes(apart)
        return parts if self._separable else whole


def _spans(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, int]]:
    """Where each image's rows are in the first argument: one row each of a batch of images [N, H,
    W, C], or the patches [P, D] that a grid [N, 3] of times, heights and widths counts."""
    pixels = args[0] if args else None
    if not isinstance(pixels, mx.array):
        return []
    if pixels.ndim == 4:
        return [(i, i + 1) for i in range(pixels.shape[0])]
    others = arrays_in((args[1:], kwargs))
    grid = next((each for each in others if each.ndim == 2 and each.shape[1] == 3), None)
    if pixels.ndim != 2 or grid is None:
        return []
    ends = np.cumsum(np.prod(np.asarray(grid), axis=1)).tolist()
    if ends[-1] != pixels.shape[0]:
        return []
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _cut(value: Any, rows: int, images: int, image: int, start: int, end: int) -> Any:
    """The part of an argument that belongs to one image."""
    if not isinstance(value, mx.array) or not value.ndim:
        return value
    if value.shape[0] == rows:
        return value[start:end]
    return value[image : image + 1] if value.shape[0] == images else value


def _joined(found: Sequence[Any]) -> Any:
    """Features of images as the tower gives them for all images at once."""
    first = found[0]
    if isinstance(first, mx.array):
        return mx.concatenate(list(found))
    if isinstance(first, list | tuple):
        return type(first)(_joined(each) for each in zip(*found, strict=True))
    return first


def _shapes(features: Any) -> list[tuple[int, ...]] | None:
    """None: there is more in it than arrays in lists."""
    leaves = [value for _, value in tree_flatten(features) if value is not None]
    if not all(isinstance(value, mx.array) for value in leaves):
        return None
    return [value.shape for value in leaves]


def _nbytes(features: Any) -> int:
    return sum(each.nbytes for each in arrays_in(features))


def _digest(scope: str, arguments: Any) -> bytes:
    """Of the scope and the values of all arguments. Hashing lets other threads run."""
    seen = hashlib.blake2b(scope.encode("utf-8", "replace"), digest_size=20)
    seen.update(b"\0")
    for name, value in tree_flatten(arguments):
        seen.update(name.encode())
        if isinstance(value, mx.array):
            seen.update(f"{value.dtype}{value.shape}".encode())
            plain = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
            seen.update(np.ascontiguousarray(np.asarray(plain)).data)
        else:
            seen.update(repr(value).encode())
    return seen.digest()
