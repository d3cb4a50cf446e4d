"""The layers of a KV cache as bytes, and back.

A leaf is a layer, or a part of a CacheList. Of a leaf that can be cut, any range of tokens can be
packed (its *rows*); of every other leaf only all of it, as it was after some number of tokens (its
*state*).
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_router.engine.prefix.layers import cuttable

_HEADER = 4096  # bytes, roughly


class CannotPack(ValueError):
    """A cache that is of no known kind, or does not hold what it should."""


@cache
def _classes() -> dict[str, Any]:
    """All that is ever made from a file."""
    from mlx_lm.models import cache as known  # takes seconds the first time

    return {
        each.__name__: each
        for each in (
            known.KVCache,
            known.ConcatenateKVCache,
            known.QuantizedKVCache,
            known.RotatingKVCache,
            known.ChunkedKVCache,
            known.ArraysCache,
            known.CacheList,
        )
    }


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All leaves that cannot be cut, after some number of tokens. An array stands in ``leaves`` as
    its number."""

    leaves: list[Any]
    arrays: list[mx.array]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A cache as it is now, whatever happens to it afterwards. ``rows`` are the arrays
    [..., >= its tokens, D] of all leaves that can be cut; ``states``: by number of tokens; none if
    every leaf can be cut."""

    layout: list[Any]
    rows: list[mx.array]
    states: dict[int, State]

    @property
    def nbytes(self) -> int:
        arrays = [*self.rows, *(array for state in self.states.values() for array in state.arrays)]
        return sum(array.nbytes for array in arrays)

    def size(self, first: int, end: int, state: State | None) -> int:
        """Of what :meth:`pack` makes, in bytes, roughly."""
        rows = sum(array.nbytes // array.shape[-2] for array in self.rows) * (end - first)
        arrays = state.arrays if state is not None else []
        return rows + sum(array.nbytes for array in arrays) + _HEADER

    def pack(self, file: io.FileIO, first: int, end: int, digest: str, state: State | None) -> None:
        """Write the rows of the tokens from ``first`` to before ``end``, and ``state``, to a
        safetensors file. Computes on this thread."""
        arrays = {}
        if end > first:
            for number, array in enumerate(self.rows):
                arrays[f"rows.{number}"] = mx.contiguous(array[..., first:end, :])
        metadata = {"digest": digest, "layout": json.dumps(self.layout)}
        if state is not None:
            arrays |= {f"state.{number}": array for number, array in enumerate(state.arrays)}
            metadata["state"] = json.dumps(state.leaves)
        mx.eval(arrays)
        mx.save_safetensors(file, arrays, metadata)


def take(layers: list[Any], tokens: int, marks: Mapping[int, Mapping[int, Any]]) -> Snapshot:
    """A snapshot of ``layers``, which hold ``tokens`` tokens. ``marks``: numbers of tokens, and
    for each the layers that cannot be cut, by their index, as they were then. Takes microseconds;
    arrays are shared. Raises CannotPack."""
    layout, rows = [_layout(layer) for layer in layers], list[mx.array]()
    for leaf in _leaves(layers):
        if not cuttable(leaf):
            continue
        arrays = _rows(leaf)
        if any(array.shape[-2] < tokens for array in arrays) or (arrays and leaf.offset != tokens):
            raise CannotPack(f"a {type(leaf).__name__} does not hold {tokens} tokens")
        rows += [_share(array) for array in arrays]
    stateful = [number for number, layer in enumerate(layers) if not cuttable(layer)]
    states = {}
    if stateful:
        # Not the layers of another count: they hold what comes after it too.
        whole = {number: layers[number] for number in stateful}
        for count, then in {**marks, tokens: whole}.items():
            if 0 < count <= tokens and all(number in then for number in stateful):
                states[count] = _state([then[number] for number in stateful])
    return Snapshot(layout, rows, states)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a file holds: evaluated arrays."""

    layout: list[Any]
    rows: list[mx.array]
    leaves: list[Any] | None
    arrays: list[mx.array]


def unpack(file: Path, digest: str) -> Part:
    """What :meth:`Snapshot.pack` wrote. Computes on this thread. Raises ValueError."""
    try:
        loaded: Any = mx.load(str(file), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        mx.eval(arrays)
        if metadata["digest"] != digest:
            raise ValueError("it holds other tokens than its name says")
        layout = json.loads(metadata["layout"])
        leaves = json.loads(metadata["state"]) if "state" in metadata else None
        rows = [arrays[f"rows.{i}"] for i in range(sum(name[0] == "r" for name in arrays))]
        state = [arrays[f"state.{i}"] for i in range(sum(name[0] == "s" for name in arrays))]
    except (RuntimeError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from error
    return Part(layout, rows, leaves, state)


def join(parts: list[Part], counts: list[int]) -> list[Any]:
    """The layers of a cache from its files, each with the rows of ``counts`` tokens; the last one
    has the state if there is one. Arrays are evaluated, on this thread. Raises ValueError."""
    first, last = parts[0], parts[-1]
    with_rows = [(part, count) for part, count in zip(parts, counts, strict=True) if count]
    if any(part.layout != first.layout for part in parts):
        raise ValueError("its files are of different models")
    expected = sum(_row_arrays(spec) for spec in first.layout)
    for part, count in with_rows:
        if len(part.rows) != expected:
            raise ValueError(f"{len(part.rows)} arrays instead of {expected}")
        for mine, other in zip(part.rows, with_rows[0][0].rows, strict=True):
            if mine.ndim < 2 or mine.shape[-2] != count or _kind(mine) != _kind(other):
                raise ValueError(f"an array is {mine.dtype} {mine.shape}")
    rows = []
    for number in range(expected):
        pieces = [part.rows[number] for part, _ in with_rows]
        rows.append(mx.concatenate(pieces, axis=-2) if len(pieces) > 1 else pieces[0])
        mx.eval(rows[-1])
        for part, _ in with_rows:
            part.rows[number] = mx.array(0)  # else all of it would be there twice
    builder = _Builder(sum(counts), iter(rows), iter(last.leaves or []), last.arrays)
    try:
        return [builder.layer(spec) for spec in first.layout]
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"the layout is not one of a cache: {error}") from error


def _leaves(layers: list[Any]) -> Iterator[Any]:
    for layer in layers:
        if hasattr(layer, "caches"):
            yield from _leaves(list(layer.caches))
        else:
            yield layer


def _layout(layer: Any) -> dict[str, Any]:
    """What is the same in all files of a model."""
    name = type(layer).__name__
    if _classes().get(name) is not type(layer):
        raise CannotPack(f"a layer is a {name}")
    if name == "CacheList":
        return {"class": name, "parts": [_layout(part) for part in layer.caches]}
    if not cuttable(layer):
        return {"class": name}
    layout = {"class": name, "rows": len(_rows(layer))}
    if name == "QuantizedKVCache":
        layout |= {"group_size": layer.group_size, "bits": layer.bits}
    return layout


def _row_arrays(layout: dict[str, Any]) -> int:
    """How many arrays of rows a layer has."""
    if "parts" in layout:
        return sum(_row_arrays(part) for part in layout["parts"])
    return int(layout.get("rows", 0))


def _rows(leaf: Any) -> list[mx.array]:
    if leaf.keys is None:  # a layer that nothing was put into
        return []
    if type(leaf).__name__ == "QuantizedKVCache":
        return [*leaf.keys, *leaf.values]
    return [leaf.keys, leaf.values]


def _share(array: mx.array) -> mx.array:
    """The same data. Assigning to a part of an array changes the object, but never the data that
    another object has too."""
    return copy.copy(array)


def _kind(array: mx.array) -> tuple[Any, ...]:
    return (array.dtype, *array.shape[:-2], array.shape[-1])


def _state(layers: list[Any]) -> State:
    state = State([], [])

    def encode(value: Any) -> Any:
        if isinstance(value, mx.array):
            state.arrays.append(_share(value))
            return {"array": len(state.arrays) - 1}
        if isinstance(value, (list, tuple)):
            return [encode(each) for each in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise CannotPack(f"a state holds a {type(value).__name__}")

    for leaf in _leaves(layers):
        if not cuttable(leaf):
            state.leaves.append(encode(leaf.state))
    return state


@dataclass(frozen=True, slots=True, eq=False)
class _Builder:
    tokens: int
    rows: Iterator[mx.array]
    leaves: Iterator[Any]
    arrays: list[mx.array]

    def layer(self, layout: dict[str, Any]) -> Any:
        name = layout["class"]
        kind = _classes()[name]
        if name == "CacheList":
            return kind(*(self.layer(part) for part in layout["parts"]))
        if "rows" not in layout:
            return kind.from_state(self._decode(next(self.leaves)))
        rows = [next(self.rows) for _ in range(layout["rows"])]
        if name == "QuantizedKVCache":
            layer = kind(group_size=layout["group_size"], bits=layout["bits"])
        else:
            layer = kind()
        if rows:
            half = len(rows) // 2
            quantized = name == "QuantizedKVCache"
            layer.keys = tuple(rows[:half]) if quantized else rows[0]
            layer.values = tuple(rows[half:]) if quantized else rows[1]
            layer.offset = self.tokens
        return layer

    def _decode(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.arrays[value["array"]]
        if isinstance(value, list):
            return [self._decode(each) for each in value]
        return value
