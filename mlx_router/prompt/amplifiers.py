"""Where a few characters of a template make a great deal: estimates before, weights after.

``'a' * 10**9``, ``'a'.center(10**9)``, ``'%1000000000d' % 1`` and their like each take one
instruction, which no clock can interrupt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from mlx_router.prompt.budget import Budget, TooExpensive

# Filters that format for web pages; they cost more than linear time, and no prompt needs them.
LEFT_OUT = ("pprint", "urlize", "wordwrap", "xmlattr")
REFUSED_METHODS = frozenset(("encode", "maketrans", "to_bytes", "translate"))

_MAX_BITS = 10_000
_MAX_WIDTH = 100_000
# A width of five digits, or one that comes from an argument.
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_BRACES = re.compile(r":[^{}]*(?:\{|\d{5})")


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Raises TooExpensive if ``left operator right`` would be too large."""
    budget.spend()
    if operator == "+":
        if isinstance(left, str | list | tuple):
            budget.make(budget.weigh(left) + budget.weigh(right))
    elif operator == "%":
        if isinstance(left, str | bytes):
            values = right if isinstance(right, tuple) else (right,)
            _check_percent(budget, str(left), values)
    elif isinstance(left, int) and isinstance(right, int):
        bits = right if operator == "**" else 1
        if left.bit_length() * bits > _MAX_BITS or right.bit_length() > _MAX_BITS:
            raise TooExpensive("it makes too large a number")
    elif operator == "*":
        count, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and isinstance(value, str | list | tuple):
            budget.make(budget.weigh(value) * max(count, 0))


def check_format(budget: Budget, template: str, values: tuple[Any, ...]) -> None:
    """For ``template.format(…)``."""
    if _WIDE_BRACES.search(template):
        raise TooExpensive("it formats to too great a width")
    budget.make(len(template) + template.count("{") * budget.weigh_all(values))


def check_method(
    budget: Budget, text: str | bytes, name: str, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Raises TooExpensive if the method of ``text`` would make too much; returns its arguments,
    of which an iterator is a list now."""
    if name in ("center", "ljust", "rjust", "zfill"):
        budget.make(_number(args, 0))
    elif name == "expandtabs":
        budget.make(len(text) * (1 + _number(args, 0)))
    elif name == "replace" and len(args) >= 2:
        _check_replace(budget, text, *args[:2])
    elif name == "join" and args:
        return (_joinable(budget, args[0], text), *args[1:])
    return args


def metered_filter(
    name: str, function: Callable[..., Any], budget_of: Callable[[], Budget]
) -> Callable[..., Any]:
    """The filter, with its cost estimated before and its result weighed after."""
    guard = _FILTERS.get(name)
    # Jinja passes some of them its context, its environment or the like before the value.
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = budget_of()
        budget.spend()
        if guard is not None:
            value = guard(budget, *args[skipped:], **kwargs)
            args = (*args[:skipped], value, *args[skipped + 1 :])
        result = function(*args, **kwargs)
        if isinstance(result, str | list | tuple | dict):
            budget.make(budget.weigh(result))
        return result

    return metered


# --- filters: each gets the budget and the filter's arguments, and returns the value ---------


def _center(budget: Budget, value: Any, width: Any = 80) -> Any:
    budget.make(_number((width,), 0))
    return value


def _indent(budget: Budget, value: Any, width: Any = 4, *_: Any, **__: Any) -> Any:
    text = str(value)
    size = len(width) if isinstance(width, str) else _number((width,), 0)
    budget.make(len(text) + (text.count("\n") + 1) * size)
    return value


def _join(budget: Budget, value: Any, d: Any = "", *_: Any, **__: Any) -> Any:
    return _joinable(budget, value, d)


def _replace(budget: Budget, value: Any, old: Any, new: Any, *_: Any, **__: Any) -> Any:
    _check_replace(budget, str(value), str(old), str(new))
    return value


def _columns(budget: Budget, value: Any, count: Any, *_: Any, **__: Any) -> Any:
    budget.make(_number((count,), 0))
    return value


def _round(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> Any:
    if _number((precision,), 0) > 1000:
        raise TooExpensive("it rounds to too many digits")
    return value


def _format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    _check_percent(budget, str(value), (*args, *kwargs.values()))
    return value


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TooExpensive("it sums up what is no number")
    return value


def _tojson(
    budget: Budget, value: Any, ensure_ascii: Any = False, indent: Any = None, *_: Any, **__: Any
) -> Any:
    if isinstance(indent, int) and indent > 100:
        raise TooExpensive("it indents too far")
    return value


_FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _columns,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _columns,
    "sum": _sum,
    "tojson": _tojson,
}


def _number(args: tuple[Any, ...], index: int) -> int:
    value = args[index] if index < len(args) else 0
    if not isinstance(value, int):
        return 0
    if value > _MAX_WIDTH:
        raise TooExpensive("it asks for too great a width")
    return abs(value)


def _joinable(budget: Budget, values: Any, separator: Any) -> Any:
    listed = values if isinstance(values, Sequence) else list(values)
    between = len(separator) if isinstance(separator, str | bytes) else 0
    budget.make(len(listed) * (1 + between))
    if not isinstance(listed, str):
        budget.make(budget.weigh_all(listed))
    return listed


def _check_replace(budget: Budget, text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        budget.make(len(text) + text.count(old) * len(new))


def _check_percent(budget: Budget, template: str, values: tuple[Any, ...]) -> None:
    if _WIDE_PERCENT.search(template):
        raise TooExpensive("it formats to too great a width")
    budget.make(len(template) + template.count("%") * budget.weigh_all(values))
