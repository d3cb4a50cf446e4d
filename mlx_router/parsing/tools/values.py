"""Arguments that a family writes as plain text, turned into JSON by their schema."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from mlx_router.domain import Tool

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def types_of(tool: Tool | None, argument: str) -> frozenset[str]:
    """The JSON types that a tool's argument may have; empty if its schema does not say."""
    properties = (tool.parameters or {}).get("properties") if tool else None
    schema = properties.get(argument) if isinstance(properties, Mapping) else None
    return _types(schema, 0)


def _types(schema: object, depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > 4:
        return frozenset()
    stated = schema.get("type")
    if isinstance(stated, str):
        return frozenset((stated,))
    if isinstance(stated, list):
        return frozenset(one for one in stated if isinstance(one, str))
    options = schema.get("enum")
    if isinstance(options, list):
        return frozenset(_type_name(option) for option in options)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(choices := schema.get(key), list):
            return frozenset[str]().union(*(_types(choice, depth + 1) for choice in choices))
    return frozenset()


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = (name for name, types in _JSON_TYPES.items() if isinstance(value, types))
    return next(names, "string")


def as_json(text: str, types: frozenset[str]) -> str:
    """``text`` as JSON of one of ``types``; as a JSON string where it is none of them.

    Of an argument without a type, objects and lists are taken as such, and the rest as a string.
    """
    if types != {"string"}:
        value = _read(text.strip())
        wanted = types or frozenset(("object", "array"))
        if value is not _UNREADABLE and _fits(value, wanted):
            if "integer" in wanted and isinstance(value, float) and value.is_integer():
                value = int(value)
            return json.dumps(value, ensure_ascii=False)
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)


_UNREADABLE = object()
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def _read(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = json.loads(text, strict=False)
        json.dumps(value, allow_nan=False)  # NaN and 1e999 can be read, and are no JSON
    except (ValueError, RecursionError):
        pass
    else:
        return value
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNREADABLE
    return value


def _fits(value: object, wanted: frozenset[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in wanted
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return True
    return any(isinstance(value, _JSON_TYPES.get(name, ())) for name in wanted)
