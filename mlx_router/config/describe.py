"""What a setting may be, in words, read from the JSON Schema of the settings."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_router.config.settings import Settings

Schema = dict[str, Any]


@functools.cache
def root_schema() -> Schema:
    """The schema of the settings as pydantic makes it. Not to be changed by callers."""
    return Settings.model_json_schema()


def locate(location: Sequence[str | int]) -> tuple[tuple[str | int, ...], Schema]:
    """The schema at this place, and the part of ``location`` that exists.

    Pydantic ends a location with the name of a union's branch, which is no key of the file.
    """
    schema = root_schema()
    for depth, part in enumerate(location):
        found = next((child for child in _children(schema, part)), None)
        if found is None:
            return tuple(location[:depth]), schema
        schema = found
    return tuple(location), schema


def setting_names(schema: Schema) -> list[str]:
    """The keys that a section may have; empty where any name goes."""
    return [name for branch in _branches(schema) for name in branch.get("properties", {})]


def allowed(schema: Schema) -> str:
    """The values that a schema lets through, in words."""
    texts = [_allowed_by(branch) for branch in _branches(schema) if branch.get("type") != "null"]
    return " or ".join(dict.fromkeys(texts))


def dotted(location: Sequence[str | int]) -> str:
    """``models["org/name"].temp``: a location as people write it."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def _branches(schema: Schema) -> Iterator[Schema]:
    if "$ref" in schema:
        schema = root_schema()["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in schema:
        for branch in schema["anyOf"]:
            yield from _branches(branch)
    else:
        yield schema


def _children(schema: Schema, part: str | int) -> Iterator[Schema]:
    for branch in _branches(schema):
        child: Any
        if isinstance(part, int):
            child = branch.get("items")
        elif part in branch.get("properties", {}):
            child = branch["properties"][part]
        else:
            child = branch.get("additionalProperties")
        if isinstance(child, dict):
            yield child


def _allowed_by(schema: Schema) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(value) for value in schema["enum"])
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer":
            return "a whole number" + _bounds(schema)
        case "number":
            return "a number" + _bounds(schema)
        case "string":
            return "a text without spaces" if "pattern" in schema else "a text"
        case "array":
            return f"a list, each item {allowed(schema['items'])}"
        case "object" if isinstance(values := schema.get("additionalProperties"), dict):
            return f"an object, each value {allowed(values)}"
        case _:
            names = list(schema.get("properties", []))
            return (
                "an object of settings" if len(names) > 4 else "an object with " + ", ".join(names)
            )


def _bounds(schema: Schema) -> str:
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']}, at most {schema['maximum']}"
    return f" from {schema['minimum']} to {schema['maximum']}"
