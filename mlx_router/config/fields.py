"""The kinds of values that settings have, with their bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mlx_router.config.files import expanded

MASK = "***"  # what `config show` writes in place of a key


def _as_list(value: Any) -> Any:
    """One text stands for a list of one; paths are accepted as texts."""
    items = [value] if isinstance(value, str | Path) else value
    if isinstance(items, list | tuple):
        return [str(item) if isinstance(item, Path) else item for item in items]
    return items


def _named_keys(value: Any) -> Any:
    """A plain list of keys gets the names key-1, key-2, ..."""
    if isinstance(value, list | tuple):
        return {f"key-{number}": key for number, key in enumerate(value, start=1)}
    return value


def _not_masked(keys: dict[str, str]) -> dict[str, str]:
    """What everybody can guess from the documentation must not open the server."""
    if masked := [name for name, key in keys.items() if key == MASK]:
        raise ValueError(
            f"{MASK} is no key: `mlx-router config show` writes it in place of one; write the key "
            f"itself for {', '.join(masked)}, or remove the entry"
        )
    return keys


def _enable_or_disable(value: Any) -> Any:
    return {True: "enable", False: "disable"}[value] if isinstance(value, bool) else value


Text = Annotated[str, Field(min_length=1)]
TextOrList = Annotated[
    list[Text], BeforeValidator(_as_list, json_schema_input_type=Text | list[Text])
]
ApiKey = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=512)]
ApiKeys = Annotated[
    dict[str, ApiKey],
    BeforeValidator(_named_keys, json_schema_input_type=dict[str, ApiKey] | list[ApiKey]),
    AfterValidator(_not_masked),
]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Gigabytes = Annotated[float, Field(gt=0, le=100_000)]
Percent = Annotated[float, Field(ge=0, le=100)]
ChatTemplate = Literal["llama3", "qwen", "deepseek", "phi4", "chatml", "gpt-oss", "generic"]
OnOff = Annotated[
    Literal["enable", "disable"],
    BeforeValidator(_enable_or_disable, json_schema_input_type=Literal["enable", "disable"] | bool),
]


class Section(BaseModel):
    """A part of the config: frozen, unknown keys refused, no text taken for a number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def expand(path: str) -> Path:
    """A path of the config, absolute, with ~ and environment variables expanded. Raises
    ConfigError for the ~ of a user that there is not."""
    return expanded(os.path.expandvars(path)).absolute()
