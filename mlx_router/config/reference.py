"""What is made from the settings: the JSON Schema, the sample config.json, the tables of the docs.

``python -m mlx_router.config.reference`` writes all three anew in a checkout; a test compares.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mlx_router.config.describe import Schema, allowed, locate, root_schema
from mlx_router.config.settings import Settings

PACKAGE = Path(__file__).resolve().parent
SCHEMA_FILE = PACKAGE / "config.schema.json"
BEGIN = "<!-- settings: made by `python -m mlx_router.config.reference`, not by hand -->"
END = "<!-- end of settings -->"

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXAMPLE_MODEL = {
    "mlx-community/Qwen3-4B-Instruct-2507-4bit": {
        "max_tokens": 8192,
        "temp": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "aliases": ["small"],
        "preload": False,
        "pinned": False,
        "memory_pressure_max_tokens": {
            "normal": 8192,
            "moderate": 4096,
            "high": 2048,
            "critical": 1024,
        },
    }
}
_TABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("`defaults`", ("defaults",)),
    ("`server`", ("server",)),
    ("`media`", ("media",)),
    ("`prefix_cache`", ("prefix_cache",)),
    ('`groups`: `{"name": {...}}`', ("groups", "NAME")),
    ('`models`: `{"org/name": {...}}`', ("models", "NAME")),
    ("`memory_pressure_max_tokens` of a model", ("models", "NAME", "memory_pressure_max_tokens")),
)


def json_schema() -> Schema:
    """The JSON Schema of config.json: comments and "$schema" are allowed, defaults are shown."""
    schema = copy.deepcopy(root_schema())
    for name, section in (*schema["$defs"].items(), ("Settings", schema)):
        section["title"] = name
        for setting in section["properties"].values():
            setting.pop("title", None)
    values = Settings().model_dump(mode="json")
    for place, owner in (("defaults", "DefaultSettings"), ("server", "ServerSettings")):
        for name, value in values[place].items():
            schema["$defs"][owner]["properties"][name]["default"] = value
    _allow_comments(schema)
    schema["title"] = "MLX Router config"
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return {"$schema": _DIALECT, **schema}


def _allow_comments(node: Any) -> None:
    if isinstance(node, dict):
        for child in node.values():
            _allow_comments(child)
        if node.get("type") == "object":
            node["patternProperties"] = {"^_": {}}
    elif isinstance(node, list):
        for child in node:
            _allow_comments(child)


def sample_config() -> dict[str, Any]:
    """A config with every default written out, and an example of a model in a comment."""
    values = Settings().model_dump(mode="json")
    return {
        "$schema": "./mlx_router/config/config.schema.json",
        "_comment": "Keys that begin with _ are comments. All settings: docs/configuration.md",
        "defaults": values["defaults"],
        "server": values["server"],
        "media": values["media"],
        "prefix_cache": values["prefix_cache"],
        "models": {"_example": _EXAMPLE_MODEL},
    }


def as_json(value: Any) -> str:
    """JSON as the files of this project have it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def markdown_tables() -> str:
    """The tables of docs/configuration.md: setting, default, what is allowed, meaning."""
    values = Settings().model_dump(mode="json")
    parts = []
    for title, place in _TABLES:
        lines = [
            f"### {title}",
            "",
            "| setting | default | allowed | meaning |",
            "|---|---|---|---|",
        ]
        for name in setting_rows(place):
            schema = locate((*place, name))[1]
            default = values.get(place[0], {}).get(name, schema.get("default"))
            shown = "" if default is None else f"`{json.dumps(default)}`"
            lines.append(f"| `{name}` | {shown} | {allowed(schema)} | {schema['description']} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def setting_rows(place: tuple[str, ...]) -> list[str]:
    """The settings of a section in the order of their declaration."""
    schema = locate(place)[1]
    branches = [schema, *schema.get("anyOf", [])]
    reference = next(branch["$ref"] for branch in branches if "$ref" in branch)
    return list(root_schema()["$defs"][reference.rsplit("/", 1)[-1]]["properties"])


def with_tables(document: str) -> str:
    """The document with fresh tables between its markers. Raises ValueError without markers."""
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"no {BEGIN} ... {END} in the document; put the two lines back")
    return f"{before}{BEGIN}\n\n{markdown_tables()}\n\n{END}{after}"


def write_all(checkout: Path) -> None:
    """Write the schema, config.json and the tables of docs/configuration.md in a checkout."""
    document = checkout / "docs" / "configuration.md"
    document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA_FILE.write_text(as_json(json_schema()), encoding="utf-8")
    (checkout / "config.json").write_text(as_json(sample_config()), encoding="utf-8")


if __name__ == "__main__":
    write_all(PACKAGE.parents[1])
