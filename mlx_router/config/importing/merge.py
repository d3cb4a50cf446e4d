"""An imported config joined with the one that is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlx_router.config.describe import dotted


def merged(there: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``there`` with what ``new`` adds; where both say something, ``there`` keeps its word. Also
    returned: a line for each such place."""
    kept: list[str] = []
    return _merged(there, new, (), kept), kept


def _merged(
    there: Mapping[str, Any], new: Mapping[str, Any], place: tuple[str, ...], kept: list[str]
) -> dict[str, Any]:
    result = dict(there)
    # Case makes no difference in names of models.
    own = {name.casefold(): name for name in there} if place == ("models",) else {}
    for name, value in new.items():
        key = own.get(name.casefold(), name)
        before = result.get(key)
        if before is None:
            result[key] = value
        elif isinstance(before, dict) and isinstance(value, dict):
            result[key] = _merged(before, value, (*place, key), kept)
        elif before != value:
            shown = json.dumps(before, ensure_ascii=False)
            kept.append(f"{dotted((*place, key))} stays {shown}")
    return result
