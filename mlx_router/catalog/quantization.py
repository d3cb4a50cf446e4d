"""How a model's weights are quantised, as its config tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# "biases" are those of groups of numbers; a layer's own is called bias.
_SCALES = (".scales", ".biases", ".qzeros", ".g_idx", "_scales")
_METHOD = re.compile(r"[\w.-]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quantization:
    """``bits`` per weight; ``label`` is for people ("4-bit g64", "mxfp4"); ``overrides`` has the
    bits of single layers, by their names."""

    bits: int
    label: str
    overrides: Mapping[str, int]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantization | None:
        """The quantisation that a config describes; None if it describes none."""
        inner = config.get("text_config")
        for section in (config, inner if isinstance(inner, dict) else {}):
            for key in ("quantization", "quantization_config"):
                if isinstance(settings := section.get(key), dict):
                    return cls._from(settings)
        return None

    @classmethod
    def _from(cls, settings: Mapping[str, Any]) -> Quantization | None:
        method = settings.get("mode", settings.get("quant_method", "affine"))
        bits, group = settings.get("bits"), settings.get("group_size")
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            return None
        stated = bits if isinstance(bits, int) and 1 <= bits <= 32 else None
        overrides = {
            name: value["bits"]
            for name, value in settings.items()
            if isinstance(value, dict) and value.get("bits") in range(1, 33)
        }
        if method == "affine":
            label = f"{stated or 4}-bit" + (f" g{group}" if isinstance(group, int) else "")
        elif stated and not method[-1].isdigit():
            label = f"{stated}-bit {method}"
        else:
            label = method  # mxfp4 and such say it all
        return cls(stated or (8 if "8" in method else 4), label, overrides)

    def parameters(self, name: str, dtype: str, elements: int) -> int:
        """How many parameters a tensor stands for: a packed one for what it holds, scales for
        nothing."""
        if name.endswith(_SCALES):
            return 0
        if dtype == "U32" or name.endswith(".qweight"):
            return elements * 32 // self.overrides.get(name.rpartition(".")[0], self.bits)
        if name.endswith("_blocks"):  # gpt-oss as published: two 4-bit numbers a byte
            return elements * 2
        return elements
