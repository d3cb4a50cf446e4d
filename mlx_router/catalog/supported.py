"""Which architectures the installed mlx-lm and mlx-vlm know, found without importing either.

Importing mlx-lm takes seconds and starts MLX. Its list of architectures is its list of modules,
after a table of renames that is read from its source.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

# Modules of mlx_lm/models and mlx_vlm/models that are not architectures.
_HELPERS = {
    *("__init__", "activations", "attention", "base", "bitlinear_layers", "cache", "fast_ops"),
    *("gated_delta", "interpolate", "kernels", "linear", "mla", "mlp", "pipeline", "pooling"),
    *("rope_utils", "sparse_attention", "ssm", "switch_layers"),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A package of architectures. ``renames`` maps a config's model_type to a module."""

    modules: frozenset[str] = frozenset()
    renames: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        return bool(self.modules)

    def supports(self, config: Mapping[str, Any]) -> bool:
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            return False
        name = self.renames.get(model_type, model_type)
        return name in self.modules or name.replace("-", "_") in self.modules


@dataclass(frozen=True, slots=True)
class Supported:
    """The architectures that can be served: as text models, and with images."""

    text: Library
    vision: Library


@lru_cache(maxsize=1)
def installed() -> Supported:
    """What is installed here; looked up once."""
    return Supported(text=_library("mlx_lm"), vision=_library("mlx_vlm"))


def _library(package: str) -> Library:
    # For a top-level package this finds the folder and runs nothing in it.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Library()
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        modules = frozenset(
            entry.stem
            for entry in (folder / "models").iterdir()
            if entry.suffix == ".py" or (entry / "__init__.py").is_file()
        )
        source = (folder / "utils.py").read_text(encoding="utf-8")
    except OSError:
        return Library()
    return Library(modules - _HELPERS, _renames(source))


def _renames(source: str) -> dict[str, str]:
    """The literal ``MODEL_REMAPPING = {...}`` in a module's source; empty if it is not there."""
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "MODEL_REMAPPING"
        ):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return {}
            return {str(old): str(new) for old, new in value.items()}
    return {}
