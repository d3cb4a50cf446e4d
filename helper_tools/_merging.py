"""An entry merged into a config file, of which nothing else changes."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_router.config.files import replace_text, text_beside
from mlx_router.config.loading import load_settings
from mlx_router.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Merge:
    """What a file will hold. ``kept`` are settings of the entry that the file has with other
    values, by name: value in the file, value found."""

    path: Path
    before: str
    after: str
    kept: Mapping[str, tuple[Any, Any]]

    def diff(self) -> str:
        """The change as a unified diff; empty if there is none."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            f"{self.path.name} (now)",
            f"{self.path.name} (new)",
        )
        return "".join(lines)


def merge(path: Path, model: str, entry: Mapping[str, Any], *, replace: bool) -> Merge:
    """``entry`` merged into the entry of ``model`` in a file, which may not exist yet. What the
    file has already stays, unless ``replace``. Raises ConfigError if the file has a fault, now or
    with the entry; nothing is written."""
    if path.is_dir():
        raise ConfigError(f"--write: {path} is a folder; name a file, like config.json")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--write: the folder of {path} does not exist; make it first")
    path = path.resolve()
    before = ""
    if path.exists():
        load_settings(path, environ={})  # a fault that is there already is not ours
        before = path.read_text(encoding="utf-8-sig")
    content = json.loads(before) if before else {}
    models = content.setdefault("models", {})
    name = next((known for known in models if known.casefold() == model.casefold()), model)
    there = models.get(name, {})
    kept = {
        key: (there[key], value)
        for key, value in entry.items()
        if key in there and there[key] != value and not replace
    }
    models[name] = {**there, **{k: v for k, v in entry.items() if k not in there or replace}}
    if before and models[name] == there:
        return Merge(path, before, before, kept)
    after = json.dumps(content, indent=_indent(before), ensure_ascii=False) + "\n"
    _check(path, after)
    return Merge(path, before, after, kept)


def write(change: Merge) -> Path | None:
    """Put the new content in place at once, and return where the old one is kept; None if there
    was none. Raises ConfigError if the file has changed meanwhile, and OSError."""
    path, backup = change.path, None
    now = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    if now != change.before:
        raise ConfigError(f"{path} has changed meanwhile: give the command again")
    if path.exists():
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        backup = path.with_name(f"{path.name}.{stamp}.bak")
        shutil.copy2(path, backup)
    replace_text(path, change.after)
    return backup


def _indent(text: str) -> int | str:
    """As the file has it; two blanks if it has none."""
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found[1] if found else 2


def _check(path: Path, text: str) -> None:
    """Raises ConfigError for a content with which the router would not start."""
    temporary = text_beside(path, text)
    try:
        load_settings(temporary, environ={})
    except ConfigError as error:
        message = error.message.replace(str(temporary), str(path))
        raise ConfigError(f"{message}\nNothing was written.") from None
    finally:
        temporary.unlink()
