"""Turns pydantic's findings into lines that say where, what, and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mlx_router.config.describe import allowed, dotted, locate, setting_names

Location = tuple[str | int, ...]

LONGEST_VALUE = 60
SECRET = "api_keys"  # noqa: S105  the name of the setting whose values are never shown
PLACES: tuple[Location, ...] = (
    (),
    ("defaults",),
    ("server",),
    ("groups", "NAME"),
    ("models", "NAME"),
)


def problem_lines(error: ValidationError, file: str, origins: Mapping[Location, str]) -> list[str]:
    """One line per problem. ``origins`` says which settings are not from the file, but from
    the environment or the command line."""
    lines: dict[tuple[Location, str], str] = {}
    for detail in error.errors(include_url=False):
        location: Location = tuple(detail["loc"])
        if detail["type"] == "extra_forbidden":
            said = _unknown(location)
        else:
            location, schema = locate(location)
            if detail["type"] == "missing":
                said = f"is missing; add {allowed(schema)}"
            elif detail["type"] == "value_error":
                said = str(detail["ctx"]["error"])
            else:
                said = f"{_shown(location, detail['input'])} is not allowed; use {allowed(schema)}"
        origin = next(
            (name for where, name in origins.items() if location[: len(where)] == where), file
        )
        key = (location, "" if detail["type"] != "value_error" else said)
        lines.setdefault(key, f"{origin}: {dotted(location) or 'the config'}: {said}")
    return list(lines.values())


def _shown(location: Location, value: Any) -> str:
    if SECRET in location:
        return "this value"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _unknown(location: Location) -> str:
    *parents, key = location
    name = str(key).lower()
    siblings = setting_names(locate(parents)[1])
    elsewhere = {
        leaf: dotted((*place, leaf))
        for place in reversed(PLACES)
        for leaf in setting_names(locate(place)[1])
    }
    if name in siblings:
        found = name
    elif name in elsewhere:
        found = elsewhere[name]
    elif near := _nearest(name, siblings):
        found = near
    elif near := _nearest(name, list(elsewhere)):
        found = elsewhere[near]
    else:
        return "is no setting; `mlx-router config schema` lists all of them"
    return f"is no setting; did you mean {found}?"


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The likeliest of the names: one that the name begins with, or one of similar spelling."""
    longer = (known for known in names if len(known) > 3 and name.startswith(known))
    return next(longer, None) or next(
        iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), None
    )
