"""Pydantic's findings, told to a client: the field, the value, the limit.

Only the first wrong field is reported, as OpenAI does: one sentence a program can show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from mlx_router.errors import InvalidRequest

_WANTED_TYPE = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
_SHOWN = 60
_ABSENT = object()

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: object) -> M:
    """``data`` as ``model``; raises InvalidRequest that names the first field at fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False), data) from None


def invalid_request(errors: Sequence[Mapping[str, Any]], data: object) -> InvalidRequest:
    """The first of pydantic's ``errors`` about ``data`` as an InvalidRequest with its param."""
    places = [_locate(error, data) for error in errors]
    # Of the branches of a union, the one that got deepest into the data tells most.
    path, value = max(places[: _same_field(places)], key=lambda place: len(place[0]))
    mine = [e for e, (p, _) in zip(errors, places, strict=True) if p == path]
    name = ".".join(path) or "the body"
    types = [_WANTED_TYPE[e["type"]] for e in mine if e["type"] in _WANTED_TYPE]
    bounds = [e for e in mine if e["type"] not in _WANTED_TYPE]
    rule = _rule(bounds[0]) if bounds else f"must be {' or '.join(dict.fromkeys(types))}"
    got = "" if value is _ABSENT else f" (got {shorten(value)})"
    return InvalidRequest(f"{name} {rule}{got}.", param=name if path else None)


def shorten(value: object, limit: int = _SHOWN) -> str:
    """The value as JSON, cut to ``limit`` characters."""
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, list | dict) and len(value) > 16:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)} items"
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: str, known: Sequence[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    close = get_close_matches(word[:64], known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _same_field(places: Sequence[tuple[tuple[str, ...], object]]) -> int:
    """How many of the leading places are about the same top-level field as the first."""
    first = places[0][0][:1]
    for count, (path, _) in enumerate(places):
        if path[:1] != first:
            return count
    return len(places)


def _locate(error: Mapping[str, Any], data: object) -> tuple[tuple[str, ...], object]:
    """Path and value of an error. Pydantic's ``loc`` also holds names of union branches, which
    are no place in the data: those are left out."""
    path: list[str] = []
    value: Any = data
    loc = error["loc"]
    for depth, key in enumerate(loc):
        in_dict = isinstance(value, dict) and key in value
        if in_dict or (isinstance(value, list) and isinstance(key, int) and key < len(value)):
            value = value[key]
        elif depth == len(loc) - 1 and error["type"] == "missing":
            value = _ABSENT
        else:
            continue
        path.append(str(key)[:_SHOWN])
    return tuple(path), value


def _rule(error: Mapping[str, Any]) -> str:
    """What the value must be, from pydantic's error type and its limits."""
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "is required"
        case "greater_than_equal":
            return f"must be at least {_number(limits['ge'])}"
        case "greater_than":
            return f"must be more than {_number(limits['gt'])}"
        case "less_than_equal":
            return f"must be at most {_number(limits['le'])}"
        case "less_than":
            return f"must be less than {_number(limits['lt'])}"
        case "literal_error":
            return f"must be {limits['expected']}"
        case "string_too_short":
            return "must not be empty"
        case "too_short":
            return f"must have at least {limits['min_length']} item(s)"
        case "string_too_long" | "too_long":
            what = "characters" if error["type"] == "string_too_long" else "items"
            return f"must have at most {limits['max_length']} {what}"
        case "string_pattern_mismatch":
            return f"must match the pattern {limits['pattern']}"
        case "extra_forbidden":
            return "is not a field of this request"
        case "finite_number" | "int_parsing_size":
            return "must be a finite number that fits in 64 bits"
        case _:
            return f"is not valid: {error['msg']}"


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e15 else str(value)
