"""Tool-call families by name: mlx-lm's, where it has one. A new one: a file and a line here."""

from __future__ import annotations

from mlx_router.parsing.tools.bare_json import BareJson
from mlx_router.parsing.tools.base import ToolParser
from mlx_router.parsing.tools.hermes import Hermes
from mlx_router.parsing.tools.llama3_json import Llama3Json
from mlx_router.parsing.tools.mistral import Mistral
from mlx_router.parsing.tools.pythonic import Pythonic
from mlx_router.parsing.tools.qwen3_coder import Qwen3Coder

_FAMILIES: dict[str, type[ToolParser]] = {
    "hermes": Hermes,
    "json": BareJson,
    "llama3_json": Llama3Json,
    "mistral": Mistral,
    "pythonic": Pythonic,
    "qwen3_coder": Qwen3Coder,
}


def get_parser(name: str) -> type[ToolParser] | None:
    """The family's parser; None for one that is not known (its calls are then shown as text)."""
    return _FAMILIES.get(name)


def known_formats() -> tuple[str, ...]:
    return tuple(_FAMILIES)


__all__ = ["ToolParser", "get_parser", "known_formats"]
