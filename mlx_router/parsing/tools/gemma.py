"""Gemma 3: calls as Python writes them, in a code block marked ``tool_code``."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from mlx_router.domain import Tool
from mlx_router.parsing.matcher import Scanner, patterns
from mlx_router.parsing.tools.base import ToolParser
from mlx_router.parsing.tools.pythonic import _name, _name_and_arguments

_END = patterns(("\n```",))
_LONGEST_BLOCK = 1_000_000


class Gemma(ToolParser):
    """A block is read to its end before it is parsed: Python may say anything up to there.

    Nothing is run. A block that holds anything but calls, in ``print()`` or not, is text. Arguments
    without a name take those of the schema, in order.
    """

    starts = ("```tool_code",)

    def begin(self, marker: str, shown: str) -> None:
        self.active = True
        self._shown = shown
        self._pieces: list[str] = []
        self._length = 0
        self._end = Scanner(_END)

    def feed(self, text: str, pos: int) -> int:
        limit = pos + _LONGEST_BLOCK - self._length
        certain, match, stop = self._end.scan(text[:limit], pos)
        self._pieces.append(certain)
        self._length += stop - pos
        if match >= 0:
            self._call("\n```")
        elif self._length >= _LONGEST_BLOCK:
            self._show(self._end.release())
        return stop

    def finish(self) -> None:
        held = self._end.release()
        if "\n```".startswith(held):
            self._call(held)  # all is there but the end of the block
        else:
            self._show(held)

    def _call(self, end: str) -> None:
        calls = self._parse("".join(self._pieces))
        if not calls:
            self._show(end)
        for name, arguments in calls:
            self.sink.call(name)
            self.sink.arguments(arguments)
        self.active = False

    def _show(self, end: str) -> None:
        self.sink.content(self._shown + "".join(self._pieces) + end)
        self.active = False

    def _parse(self, written: str) -> list[tuple[str, str]]:
        """Names, and arguments as JSON; empty if there is anything else."""
        try:
            found = [
                call
                for line in ast.parse(written.strip()).body
                for call in self._calls_in(line.value if isinstance(line, ast.Expr) else line)
            ]
            return [_name_and_arguments(call) for call in found]
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            return []

    def _calls_in(self, node: ast.AST) -> list[ast.Call]:
        if isinstance(node, ast.List):
            return [self._named(one) for one in node.elts]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            inside = node.args[0] if len(node.args) == 1 and not node.keywords else None
            if node.func.id == "print" and "print" not in self.tools and inside is not None:
                node = inside
        return [self._named(node)]

    def _named(self, node: ast.AST) -> ast.Call:
        if not isinstance(node, ast.Call):
            raise ValueError("not a call")
        names = _names_of(self.tools.get(_name(node.func)))
        if len(node.args) > len(names):
            raise ValueError("arguments without a name")
        given = [ast.keyword(name, one) for name, one in zip(names, node.args, strict=False)]
        return ast.Call(node.func, [], [*given, *node.keywords])


def _names_of(tool: Tool | None) -> list[str]:
    properties = (tool.parameters or {}).get("properties") if tool else None
    return list(properties) if isinstance(properties, Mapping) else []
