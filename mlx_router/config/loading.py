"""Reads the config. Precedence: command line, environment, file, defaults."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from mlx_router.config.files import expanded, read_text
from mlx_router.config.problems import Location, problem_lines
from mlx_router.config.settings import Settings
from mlx_router.errors import ConfigError

DEFAULT_FILE = Path("config.json")

_JSON_TEXT_OR_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|(-?Infinity|NaN)')


def load_settings(
    path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force. Blocks while it reads the file.

    ``path`` None: the file that ``find_config`` finds, or defaults only. ``overrides`` are the
    command line's: dotted names (``server.port``) to values; None means not given. ``environ``
    None: this process's. Raises ConfigError, whose message has one line per problem.
    """
    environ = os.environ if environ is None else environ
    given = [
        (name, value, "command line")
        for name, value in (overrides or {}).items()
        if value is not None
    ]
    return _validated(find_config(path, environ), [*_from_environment(environ), *given])


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: ``path``, or MLX_ROUTER_CONFIG, or ./config.json if there is one.

    Raises ConfigError if a file was named and is not there.
    """
    if path is not None:
        named, origin = path, "--config"
    elif value := environ.get("MLX_ROUTER_CONFIG"):
        named, origin = Path(value), "MLX_ROUTER_CONFIG"
    else:
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    named = expanded(named)
    if not named.exists():
        raise ConfigError(f"{named}: there is no such file; check {origin}")
    return named


def read_config(path: Path) -> dict[str, Any]:
    """The file's content without comments (keys that begin with "_") and "$schema".

    Raises ConfigError, with line and column if the JSON is at fault.
    """
    text = read_text(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        section = dict(pairs)
        if len(section) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f'{path}: "{twice}" is there twice in one section; keep one')
        return section

    def refuse_constant(name: str) -> NoReturn:
        matches = _JSON_TEXT_OR_CONSTANT.finditer(text)
        position = next(match.start() for match in matches if match.group(1))
        raise json.JSONDecodeError(f"{name} is not a JSON number", text, position)

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}: is not valid JSON at {where}: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; see docs/configuration.md") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a JSON object: {{...}}; see docs/configuration.md")
    content.pop("$schema", None)
    stripped: dict[str, Any] = _without_comments(content)
    return stripped


def _without_comments(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_comments(v) for k, v in value.items() if not k.startswith("_")}
    if isinstance(value, list):
        return [_without_comments(item) for item in value]
    return value


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """(dotted name, value, variable); a variable that is empty counts as not set."""
    found: list[tuple[str, Any, str]] = []
    if folders := [part for part in environ.get("MLX_MODEL_DIR", "").split(os.pathsep) if part]:
        found.append(("defaults.model_directory", folders, "MLX_MODEL_DIR"))
    if ip := environ.get("MLX_ROUTER_IP"):
        found.append(("server.ip", ip, "MLX_ROUTER_IP"))
    if port := environ.get("MLX_ROUTER_PORT"):
        found.append(("server.port", number(port), "MLX_ROUTER_PORT"))
    if key := environ.get("MLX_ROUTER_API_KEY"):
        found.append(("server.api_keys", {"environment": key}, "MLX_ROUTER_API_KEY"))
    return found


def number(text: str) -> int | float | str:
    """The number that a flag or variable holds; the text itself if it holds none, so that
    validation refuses it in the words that it has for the file."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _validated(path: Path | None, layers: list[tuple[str, Any, str]]) -> Settings:
    content = read_config(path) if path is not None else {}
    origins: dict[Location, str] = {}
    for name, value, origin in layers:
        *parents, leaf = name.split(".")
        section: Any = content
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):  # else the file has nonsense there, which is reported
            section[leaf] = value
            origins[(*parents, leaf)] = origin
        if name == "defaults.model":
            content.pop("default_model", None)
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        file = str(path) if path is not None else "config"
        raise ConfigError("\n".join(problem_lines(error, file, origins))) from None
