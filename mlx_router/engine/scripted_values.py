"""A value that satisfies a JSON schema, always the same one. For the scripted engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_FORMATS = {
    "date": "2024-01-31",
    "date-time": "2024-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "email": "someone@example.com",
    "idn-email": "someone@example.com",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "iri": "https://example.com/",
    "url": "https://example.com/",
    "uri-reference": "/path",
    "json-pointer": "/a",
    "regex": ".*",
}
_MAX_VALUES = 5_000
_MAX_DEPTH = 60
_MAX_LENGTH = 10_000


def example(schema: object) -> Any:
    """A value for ``schema``: const, default or the first of enum and anyOf where there is one,
    else the least that its bounds allow; optional properties at the top only.

    ``pattern``, ``not`` and conditions are not minded, and a schema that asks for
    thousands of values, or for endless ones, gets fewer.
    """
    return _Maker(schema).make(schema, 0, 0)


class _Maker:
    def __init__(self, root: object) -> None:
        self._root = root
        self._left = _MAX_VALUES

    def make(self, schema: object, depth: int, nth: int) -> Any:
        """``nth`` tells apart the items of an array that must differ."""
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            return None
        rules = self._resolved(schema)
        if "const" in rules:
            return rules["const"]
        if isinstance(options := rules.get("enum"), list) and options:
            return options[nth % len(options)]
        if "default" in rules and not nth:
            return rules["default"]
        match _type(rules):
            case "object":
                return self._object(rules, depth)
            case "array":
                return self._array(rules, depth)
            case "integer":
                return _number(rules, nth, whole=True)
            case "number":
                return _number(rules, nth, whole=False)
            case "boolean":
                return nth % 2 == 0
            case "null":
                return None
        return _string(rules, nth)

    def _resolved(self, schema: object) -> dict[str, Any]:
        """The schema with its references followed, and the first of its alternatives chosen."""
        rules: dict[str, Any] = {}
        waiting = [schema]
        for _ in range(_MAX_DEPTH):  # a reference may lead back to itself
            if not waiting:
                break
            one = waiting.pop(0)
            if not isinstance(one, Mapping):
                continue
            for key, value in one.items():
                if key == "$ref":
                    waiting.append(self._target(value))
                elif key in ("anyOf", "oneOf") and isinstance(value, list):
                    waiting += value[:1]
                elif key == "allOf" and isinstance(value, list):
                    waiting += value
                elif key == "properties":
                    known = rules.get(key, {})
                    rules[key] = {**known, **value} if isinstance(value, Mapping) else known
                elif key in ("required", "prefixItems"):
                    known = rules.get(key, [])
                    rules[key] = [*known, *value] if isinstance(value, list) else known
                else:
                    rules.setdefault(key, value)
        return rules

    def _target(self, reference: object) -> object:
        target: object = self._root
        for step in str(reference).removeprefix("#").strip("/").split("/"):
            if not step:
                continue
            step = step.replace("~1", "/").replace("~0", "~")
            target = target.get(step) if isinstance(target, Mapping) else None
        return target

    def _object(self, rules: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = rules.get("properties", {})
        wanted = [str(name) for name in rules.get("required", ())]
        if depth == 0:
            wanted += [name for name in properties if name not in wanted]
        value = {name: self.make(properties.get(name, {}), depth + 1, 0) for name in wanted}
        more = rules.get("additionalProperties", {})
        for number in range(_count(rules, "minProperties", 0)):
            if len(value) >= _count(rules, "minProperties", 0):
                break
            value.setdefault(f"key{number + 1}", self.make(more, depth + 1, number))
        return value

    def _array(self, rules: Mapping[str, Any], depth: int) -> list[Any]:
        first = rules.get("prefixItems", [])
        # One item shows what the items are; far down, where schemas go round, none must.
        usual = max(len(first), 1 if "items" in rules and depth < 4 else 0)
        most = _count(rules, "maxItems", _MAX_VALUES)
        count = max(_count(rules, "minItems", 0), min(usual, most))
        differ = bool(rules.get("uniqueItems"))
        return [
            self.make(
                first[index] if index < len(first) else rules.get("items", {}),
                depth + 1,
                index if differ else 0,
            )
            for index in range(count)
        ]


def _type(rules: Mapping[str, Any]) -> str:
    stated = rules.get("type")
    if isinstance(stated, list):
        stated = stated[0] if stated else None
    if isinstance(stated, str):
        return stated
    if "properties" in rules or "required" in rules:
        return "object"
    if "items" in rules or "prefixItems" in rules:
        return "array"
    return "number" if "minimum" in rules or "maximum" in rules else "string"


def _count(rules: Mapping[str, Any], key: str, otherwise: int) -> int:
    value = rules.get(key)
    return min(value, _MAX_VALUES) if isinstance(value, int) and value >= 0 else otherwise


def _bound(rules: Mapping[str, Any], key: str) -> float | None:
    value = rules.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _number(rules: Mapping[str, Any], nth: int, *, whole: bool) -> int | float:
    """1 if that is allowed, else a number near a bound; the ``nth`` from there on."""
    least, most = _bound(rules, "minimum"), _bound(rules, "maximum")
    over, under = _bound(rules, "exclusiveMinimum"), _bound(rules, "exclusiveMaximum")
    multiple = abs(_bound(rules, "multipleOf") or 1)

    def allowed(number: float) -> bool:
        return (
            (least is None or number >= least)
            and (most is None or number <= most)
            and (over is None or number > over)
            and (under is None or number < under)
            and (not whole or number == int(number))
            and ("multipleOf" not in rules or number % multiple == 0)
        )

    bounds = [bound for bound in (least, over, most, under) if bound is not None]
    near = [(bound // multiple + away) * multiple for bound in bounds for away in (0, 1, -1)]
    between = [sum(bounds) / len(bounds)] if bounds else []
    first = next(filter(allowed, (1, *near, *bounds, *between, multiple, 0)), 1)
    number = first + nth * multiple
    return int(number) if number == int(number) else number


def _string(rules: Mapping[str, Any], nth: int) -> str:
    if (text := _FORMATS.get(str(rules.get("format")))) is not None:
        return text
    text = "text" if not nth else f"text {nth + 1}"
    text = text.ljust(min(_count(rules, "minLength", 0), _MAX_LENGTH), ".")
    return text[: _count(rules, "maxLength", len(text))]
