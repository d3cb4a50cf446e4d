"""YAML as plain values, with the lines they stand in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mlx_router.config.files import read_text
from mlx_router.errors import ConfigError

MAX_BYTES = 1_000_000


class Mapping(dict[str, Any]):
    """A mapping of the file: ``line`` is where it begins, ``lines`` where each key stands."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class _Loader(yaml.SafeLoader):
    """Plain values only: no tag of a file makes an object."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:  # a date that is none, a number that is none
            said = f"a value that cannot be read ({error})"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from None


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[Mapping]:
    mapping = Mapping(_line(node))
    yield mapping
    seen = set[str]()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} is there twice: keep one", key_node.start_mark
                )
            seen.add(key_node.value)
    loader.flatten_mapping(node)  # what an anchor brings in by "<<" comes first
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        mapping[key] = loader.construct_object(value_node, deep=True)
        mapping.lines[key] = _line(key_node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path) -> Mapping:
    """The file's content. Raises ConfigError, with line and column where the YAML is at fault."""
    text = read_text(path)
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: has {size:,} bytes; is it a config? Name another file")
    try:
        found = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = error.problem or error.context or "it cannot be understood"
        raise ConfigError(f"{path}: is not valid YAML{where}: {said}; correct it there") from None
    except yaml.YAMLError as error:  # a control character
        raise ConfigError(f"{path}: is not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; is it a config?") from None
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{path}: must hold keys and values, with a list `models`; check the file"
        )
    return found


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
