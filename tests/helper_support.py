"""The tools of helper_tools, as a user runs them: their command line, in this process."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HELPERS = Path(__file__).resolve().parents[1] / "helper_tools"


def helper_module(name: str) -> ModuleType:
    """A module of helper_tools, which is no package."""
    if str(HELPERS) not in sys.path:
        sys.path.append(str(HELPERS))
    return importlib.import_module(name)


@dataclass(frozen=True)
class Said:
    """The exit code of a tool, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Tool:
    """``tool("list", "--json")`` runs one of the tools. No mistake of a user may raise."""

    def __init__(self, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        self._main = helper_module(name).main
        self._capfd = capfd

    def __call__(self, *words: str | Path) -> Said:
        self._capfd.readouterr()
        code = self._main([str(word) for word in words])
        said = self._capfd.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    def fails(self, code: int, *words: str | Path) -> str:
        """What it says on stderr where it ends with that exit code."""
        said = self(*words)
        assert said.code == code, said
        assert said.err
        return said.err
