"""Requests to constraints: compiled on a CPU thread, kept for the next request like it."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from mlx_router.domain import ChatPrompt
from mlx_router.engine.grammar.ending import Ending, JsonText, Unsatisfiable
from mlx_router.engine.grammar.lark import (
    ANY_OBJECT,
    JSON_OPTIONS,
    Dialect,
    Form,
    argument_schema,
    write_form,
)
from mlx_router.engine.grammar.objection import objection
from mlx_router.engine.grammar.tokens import TokenTable
from mlx_router.errors import InvalidRequest, UnsupportedParameter

log = logging.getLogger(__name__)

# A grammar grows while it is used, up to 20 MB with so many states.
_MOST_KEPT = 32
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
# Compiling takes quadratic time in the number of properties: 5 s for 5,000.
_LONGEST_SCHEMA = 128 * 1024
_ANSWER_SCHEMA = "response_format.json_schema.schema"
LONGEST_ENDING = 2048  # tokens; a tenth of a millisecond each, in a step of the engine


@dataclass(frozen=True, slots=True)
class Compiled:
    """A form, ready to use. ``matcher`` is never moved on: it is copied. ``shortest``: tokens that
    the shortest answer takes; None where that is not known, or free text ends the answer."""

    form: Form
    matcher: LLMatcher
    ending: Ending
    shortest: int | None


class Compiler:
    """Compiles forms for one model. ``tokenizer``: the Hugging Face one; ``family``: how the model
    writes calls; ``template``: the source of its chat template. Safe to use from several threads;
    blocks."""

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: Iterable[int],
        *,
        family: str | None,
        template: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._family = family
        self._template = template
        self._table: TokenTable | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Compiled | None] = OrderedDict()

    @property
    def table(self) -> TokenTable:
        """The vocabulary, read when the first request needs it. Raises UnsupportedParameter."""
        with self._lock:
            if self._table is None:
                try:
                    self._table = TokenTable(self._tokenizer, self._eos_ids)
                except ValueError:
                    raise UnsupportedParameter(
                        "The tokenizer of this model is of a kind that cannot be constrained: "
                        "response_format, forced and strict tools are not available for it.",
                        param="response_format",
                    ) from None
            return self._table

    def compile(self, prompt: ChatPrompt) -> Compiled | None:
        """What the answer to ``prompt``, which restricts it, must look like; None: whatever it is,
        it could not be enforced without harm (see :func:`write_form`). Raises InvalidRequest
        that names the schema which cannot be enforced, and why."""
        schemas = {tool.name: argument_schema(tool) for tool in prompt.tools}
        key = _key(prompt, schemas)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        compiled = self._compile(prompt, schemas)
        with self._lock:
            self._kept[key] = compiled
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def forget(self, compiled: Compiled) -> None:
        """Do not use it again."""
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept is compiled]:
                del self._kept[key]

    def _compile(
        self, prompt: ChatPrompt, schemas: Mapping[str, Mapping[str, Any]]
    ) -> Compiled | None:
        table = self.table
        dialect = Dialect(self._family, self._template, table.specials)
        failure = ""
        # The second way to look for problems takes as long as compiling does, so it comes last.
        for problem in (objection, self._problem):
            schemas = _enforceable(prompt, schemas, problem)
            form = write_form(prompt, dialect, schemas)
            if form is None:
                log.info("strict tools are not enforced for the family %s", self._family)
                return None
            compiled = self._attempt(form)
            if isinstance(compiled, Compiled):
                return compiled
            failure = compiled
        raise InvalidRequest(
            f"What this request asks for cannot be enforced: {failure}.",
            param="response_format" if prompt.response_format.type != "text" else "tools",
        )

    def _attempt(self, form: Form) -> Compiled | str:
        """The form, ready to use; or why it cannot be."""
        try:
            return self._build(form)
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt | SystemExit):
                raise
            # A panic in llguidance is no Exception; its text says nothing to a client.
            log.error("compiling a grammar failed: %s", error)
            return "it is beyond what the grammar engine can do"

    def _build(self, form: Form) -> Compiled | str:
        matcher = LLMatcher(
            self.table.inner,
            LLMatcher.grammar_from_lark(form.lark),
            log_level=0,
            limits=_LIMITS,
        )
        if matcher.is_error():
            return _reason(matcher.get_error())
        # The first step is the slowest one: it is done here, and not in a step of the engine.
        self.table.allowed(matcher)
        path = None
        ending = Ending(self.table, form.closing, form.text_end)
        if form.ends:
            try:
                path = ending.way(matcher, JsonText(form.text_end.encode()), LONGEST_ENDING)
            except Unsatisfiable as error:
                log.info("a grammar without an end: %s", error)
                return "nothing finite satisfies it, or it is too complex"
        return Compiled(form, matcher, ending, len(path) if path else None)

    def _problem(self, schema: Mapping[str, Any]) -> str | None:
        """Why llguidance cannot enforce ``schema``."""
        text = json.dumps({**schema, "x-guidance": JSON_OPTIONS})
        grammar = LLMatcher.grammar_from_json_schema(text)
        error = LLMatcher.validate_grammar(grammar, self.table.inner, limits=_LIMITS)
        return _reason(error) if error and not error.startswith("WARNING") else None


def _key(prompt: ChatPrompt, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """All that a form depends on. Raises InvalidRequest for schemas that are too long."""
    wanted = prompt.response_format
    parts = [(_parameter(i), schemas[tool.name]) for i, tool in enumerate(prompt.tools)]
    if wanted.schema is not None:
        parts.append((_ANSWER_SCHEMA, wanted.schema))
    tools = [(tool.name, tool.strict) for tool in prompt.tools]
    texts = [repr((tools, prompt.tool_choice, prompt.parallel_tool_calls, wanted.type))]
    total = 0
    for at, schema in parts:
        try:
            texts.append(json.dumps(schema))
        except (ValueError, RecursionError, TypeError):
            raise _refusal(at, "it is no JSON, or nested too deeply") from None
        total += len(texts[-1])
        if total > _LONGEST_SCHEMA:
            raise _refusal(at, f"schemas longer than {_LONGEST_SCHEMA} characters in all")
    return "\n".join(texts)


def _enforceable(
    prompt: ChatPrompt,
    schemas: Mapping[str, Mapping[str, Any]],
    problem: Callable[[Mapping[str, Any]], str | None],
) -> dict[str, Mapping[str, Any]]:
    """The schemas, with any object in place of those that have a ``problem`` and need not be
    enforced: the arguments of tools that are not strict."""
    wanted = prompt.response_format.schema
    if wanted is not None and (found := problem(wanted)):
        raise _refusal(_ANSWER_SCHEMA, found)
    enforceable = dict(schemas)
    for index, tool in enumerate(prompt.tools):
        schema = schemas[tool.name]
        found = problem(schema)
        if found is None and schema.get("type") != "object":
            found = "arguments are of the type object"
        if found is None:
            continue
        if tool.strict:
            raise _refusal(_parameter(index), found)
        log.info("the arguments of a tool are not enforced: %s", found)
        enforceable[tool.name] = ANY_OBJECT
    return enforceable


def _parameter(index: int) -> str:
    return f"tools.{index}.function.parameters"


def _refusal(at: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{at} cannot be enforced: {reason}.", param=at)


def _reason(error: str) -> str:
    """llguidance's words on one line."""
    text = " ".join(error.split())[:300].rstrip(".")
    if text.startswith("oneOf"):
        return "oneOf is supported only where its alternatives exclude each other; use anyOf"
    return text.replace("Unimplemented keys:", "unsupported keywords:")
