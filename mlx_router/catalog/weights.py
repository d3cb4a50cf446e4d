"""A model's weights as their files describe them: only the safetensors headers are read.

A file is an 8-byte little-endian header length, a JSON header that gives each tensor's type, shape
and place, and the data. So size and completeness are known without touching the data.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mlx_router.catalog.estimate import text_config
from mlx_router.catalog.folder import Missing, ModelFolder, Problem, regular_only, unreadable
from mlx_router.catalog.quantization import Quantization

MAX_HEADER_BYTES = 100_000_000
_MAX_INDEX_BYTES = 50_000_000
_MAX_RANK = 16
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "U8": 1}
_LABELS = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
}

_FP8 = ("F8_E4M3", "F8_E5M2")
# Architectures of which the library makes bfloat16 of FP8 weights as it loads them.
_WIDENED = frozenset(
    {
        *("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "joyai_llm_flash", "kimi_k2", "kimi_k25"),
        *("mimo_v2_flash", "minimax", "minimax_m2", "ministral3", "mistral4"),
    }
)


@dataclass(frozen=True, slots=True)
class Weights:
    """``size_bytes`` is what they take in memory; ``element_bytes`` the size of one number of the
    type that the model computes in, and so of its KV cache."""

    size_bytes: int
    parameters: int
    quantization: str | None
    element_bytes: int


def inspect_weights(folder: ModelFolder, config: Mapping[str, Any], *, any_name: bool) -> Weights:
    """Check that the weights are complete and count them; raises Problem.

    mlx-lm loads ``model*.safetensors``; with ``any_name`` all others count too, as mlx-vlm has it.
    """
    quantization = Quantization.of(config)
    tally = _Tally(quantization)
    names = _weight_files(folder, any_name=any_name)
    for name in names:
        _read_header(folder, name, tally)
    _check_index(folder, names)
    return Weights(
        size_bytes=tally.size_bytes + (tally.elements(_FP8) if _widens(config) else 0),
        parameters=tally.parameters,
        quantization=quantization.label
        if quantization
        else _LABELS.get(tally.main_type(_LABELS) or ""),
        element_bytes=_ELEMENT_BYTES[tally.main_type(("F32", "F16", "BF16")) or "BF16"],
    )


def _widens(config: Mapping[str, Any]) -> bool:
    """Whether FP8 weights take two bytes a number in memory."""
    types = {str(section.get("model_type")) for section in (config, text_config(config))}
    stated = config.get("quantization_config")
    # Scales that are powers of two, of blocks of 32 by 32, are MLX's own: these stay packed.
    packed = (
        isinstance(stated, dict)
        and stated.get("scale_fmt") == "ue8m0"
        and stated.get("weight_block_size") == [32, 32]
    )
    return bool(types & _WIDENED) and not packed


class _Tally:
    """Adds up the tensors of a model's files."""

    def __init__(self, quantization: Quantization | None) -> None:
        self.size_bytes = 0
        self.parameters = 0
        self._quantization = quantization
        self._types: dict[str, int] = {}

    def add(self, header: Mapping[str, Any]) -> int:
        """Add a file's tensors; returns where the last one ends. Raises what broken input makes
        of it: ValueError, TypeError, LookupError or AttributeError."""
        # A large model has thousands of tensors: as little as possible for each of them.
        quantization, types = self._quantization, self._types
        parameters = end = 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if len(shape) > _MAX_RANK or not 0 <= first <= last:
                raise ValueError(name)
            elements = math.prod(shape)
            if elements * _ELEMENT_BYTES.get(dtype, 0) not in (0, last - first):
                raise ValueError(name)
            if type(elements) is not int or type(last) is not int:  # JSON has 1.5 and true as well
                raise TypeError(name)
            end = max(end, last)
            types[dtype] = types.get(dtype, 0) + elements
            if quantization is None:
                parameters += elements
            else:
                parameters += quantization.parameters(name, dtype, elements)
        self.size_bytes += end
        self.parameters += parameters
        return end

    def elements(self, types: Iterable[str]) -> int:
        """How many numbers have one of these types."""
        return sum(self._types.get(dtype, 0) for dtype in types)

    def main_type(self, candidates: Iterable[str]) -> str | None:
        """Which of these types most of the numbers have; None if none has any of them."""
        counted = [(self._types[dtype], dtype) for dtype in candidates if dtype in self._types]
        return max(counted)[1] if counted else None


def _read_header(folder: ModelFolder, name: str, tally: _Tally) -> Mapping[str, Any]:
    """Read what a safetensors file says of its tensors, and count them; raises Problem if the file
    is not whole."""
    try:
        with open(folder.path / name, "rb", opener=regular_only) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > MAX_HEADER_BYTES:
                raise _not_weights(name, start)
            text = file.read(length)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(text) < length:
        raise Missing(f"{name} is truncated: it ends within its header")
    try:
        header: Mapping[str, Any] = orjson.loads(text)
        end = tally.add(header)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Problem(f"{name} is not a safetensors file (its header is broken)") from error
    if size < 8 + length + end:
        raise Missing(f"{name} is truncated: {size:,} of {8 + length + end:,} bytes")
    if size > 8 + length + end:
        raise Problem(f"{name} is damaged: {size - 8 - length - end:,} bytes too many at its end")
    return header


def _not_weights(name: str, start: bytes) -> Problem:
    """What a file is whose first eight bytes are no length of a header."""
    if not start:
        return Missing(f"{name} is empty")
    if start.lstrip().startswith(b"<"):
        return Problem(f"{name} is a web page, not weights: download it again")
    if start == b"version ":
        return Problem(f"{name} is a Git LFS pointer, not weights: run git lfs pull")
    if len(start) < 8:
        return Missing(f"{name} is truncated: {len(start)} bytes")
    return Problem(f"{name} is not a safetensors file (its header would be too large)")


def _weight_files(folder: ModelFolder, *, any_name: bool) -> list[str]:
    """The files to load; raises Problem if there are none or one of a numbered set is missing."""
    present = folder.named(suffix=".safetensors")
    names = [name for name in present if name.startswith("model")]
    if any_name:
        names = [n for n in present if not n.startswith(("adapter", "consolidated"))]
    for name in sorted(folder.dangling):
        if name.endswith(".safetensors"):
            raise Missing(f"{name} is missing (a link to nothing)")
    if all("/" in name for name in names):  # those of folders in it are beside the model's own
        raise _no_weights(folder, [name for name in present if "/" not in name])
    for name in names:
        if match := _SHARD.search(name):
            stem, count = name[: match.start()], int(match[2])
            for number in range(1, count + 1):
                expected = f"{stem}-{number:05d}-of-{match[2]}.safetensors"
                if expected not in folder.files:
                    raise Missing(f"{expected} is missing")
    return names


def _no_weights(folder: ModelFolder, present: list[str]) -> Problem:
    if indexed := sorted(set(_weight_map(folder).values())):
        return Missing(f"{indexed[0]} is missing")
    if gguf := folder.named(suffix=".gguf"):
        return Problem(f"{gguf[0]} is a GGUF file: MLX needs safetensors weights")
    for suffix in (".bin", ".pt", ".pth", ".npz"):
        if old := folder.named(suffix=suffix):
            return Problem(f"{old[0]} is not safetensors: convert the model with mlx_lm.convert")
    if present:
        return Problem(f"{present[0]} would not be loaded: weights are named model*.safetensors")
    return Missing("model.safetensors is missing")


def _weight_map(folder: ModelFolder) -> dict[str, str]:
    """The index's table of tensor and file; empty if there is no index."""
    if _INDEX not in folder.files:
        return {}
    try:
        table: dict[str, str] = orjson.loads(folder.read(_INDEX, _MAX_INDEX_BYTES))["weight_map"]
        if all(isinstance(file, str) and "/" not in file for file in set(table.values())):
            return table
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    raise Problem(f"{_INDEX} is broken: its weight_map does not name files")


def _check_index(folder: ModelFolder, names: Iterable[str]) -> None:
    """Raise Problem if a tensor that the index names is in none of the files.

    The library ignores the index, so a stale one that names absent files does no harm while all
    its tensors are there.
    """
    weight_map = _weight_map(folder)
    absent = set(weight_map.values()) - folder.files.keys()
    if not absent:
        return
    present = set[str]().union(*(_read_header(folder, n, _Tally(None)) for n in names))
    for tensor, file in weight_map.items():
        if file in absent and tensor not in present:
            raise Missing(f"{file} is missing")
