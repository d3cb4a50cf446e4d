"""The Jinja environment of chat templates: what transformers' offers, immutable and metered.

A template may loop, call macros and build text as it likes, within its :class:`Budget`. What
could cost more than that in one stroke is estimated first; what runs code is refused by Jinja's
sandbox; and what no prompt needs, but costs out of all proportion, is not there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mlx_router.prompt import amplifiers
from mlx_router.prompt.budget import Budget
from mlx_router.prompt.metering import meter

# Names of attributes: those of dicts come before their items.
_OF_DICTS = frozenset(dir(dict))
_OF_LOOPS = frozenset(("first", "index", "index0", "last"))


class GenerationTag(Extension):
    """``{% generation %} … {% endgeneration %}``: marks the assistant's words, for training."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_as_it_is")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return str(caller())


class _Namespace(Namespace):
    """Jinja's, without names that start with an underscore, and without a text of its own."""

    # `self` may be the name of an attribute, as in Jinja's own.
    def __init__(*args: Any, **kwargs: Any) -> None:
        first, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(first, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        # Namespaces can hold each other: printing them could take for ever.
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


class _NewDict:
    """``dict(…)``, and nothing else of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders; each thread does so with its own budget (see :meth:`allow`)."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        self._local = threading.local()
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _NewDict()
        self.globals["namespace"] = _Namespace
        self.filters["tojson"] = self._tojson
        for name in amplifiers.LEFT_OUT:
            del self.filters[name]
        for name, function in list(self.filters.items()):
            self.filters[name] = amplifiers.metered_filter(name, function, lambda: self.budget)

    @property
    def budget(self) -> Budget:
        """This thread's budget."""
        budget: Budget = self._local.budget
        return budget

    def allow(self, budget: Budget) -> None:
        """What this thread does from now on is on ``budget``."""
        self._local.budget = budget

    def metered(self, source: str) -> nodes.Template:
        """The template's syntax tree, with the meter built in. Raises TemplateSyntaxError."""
        return meter(self.parse(source), self)

    # --- called by the compiled template ----------------------------------------------------

    def tick(self) -> None:
        """Once for each round of a loop."""
        self.budget.spend()

    def made(self, value: Any) -> Any:
        """A list, a dict or a slice that the template made: allowed if it is not too large."""
        budget = self.budget
        budget.make(budget.weigh(value))
        return value

    def sliced(self, value: Any) -> Any:
        # Its items are there already: only their number is new.
        self.budget.make(len(value) if isinstance(value, str | list | tuple) else 1)
        return value

    @pass_eval_context
    def joined(self, context: EvalContext, *pieces: Any) -> str:
        """``a ~ b``"""
        budget = self.budget
        budget.make(budget.weigh_all(pieces))
        return markup_join(pieces) if context.autoescape else str_join(pieces)

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of a macro or a block."""
        pieces = list(pieces)
        self.budget.make(sum(map(len, pieces)))
        return "".join(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # What Jinja finds as well, in many times the time; templates ask for little else.
        if type(obj) is dict and attribute in obj and attribute not in _OF_DICTS:
            return obj[attribute]
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        if target == self.tick:
            return self.tick()
        budget = self.budget
        budget.spend()
        owner = getattr(target, "__self__", None)
        if isinstance(owner, str | bytes):
            args = amplifiers.check_method(budget, owner, target.__name__, args)
        result = super().call(context, target, *args, **kwargs)
        if isinstance(result, str | list | tuple | dict):
            budget.make(budget.weigh(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        amplifiers.check_operator(self.budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in amplifiers.REFUSED_METHODS and super().is_safe_attribute(
            obj, attr, value
        )

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        if attribute.startswith("__"):  # no slip: refused even where the value would not be used
            raise SecurityError(f"access to {attribute!r} is not allowed")
        return super().unsafe_undefined(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        safe, template = wrapped, value.__self__

        def format(*args: Any, **kwargs: Any) -> str:
            amplifiers.check_format(self.budget, template, (*args, *kwargs.values()))
            return safe(*args, **kwargs)

        return format

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as it is: Jinja's own filter would escape it for HTML."""
        budget = self.budget
        budget.make(budget.weigh(value))
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None and separators is None:
            return encoder.encode(value)
        pieces: list[str] = []
        for piece in encoder.iterencode(value):
            budget.make(len(piece))
            pieces.append(piece)
        return "".join(pieces)
