"""Top-level fields that the request model does not have: each is sorted, none is lost silently.

OpenAI fields without a meaning here are accepted; those that would change the answer are refused
by name; all others are accepted too, since front ends send extras, but reported in a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_router.api.schemas.base import Wire
from mlx_router.api.validation import shorten
from mlx_router.errors import UnsupportedParameter

# They change bookkeeping, billing or caching at OpenAI, never the text of an answer.
HARMLESS = frozenset(
    {
        "metadata",
        "store",
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
    }
)

REFUSED = {
    "audio": "audio output is not supported",
    "prediction": "predicted outputs are not supported",
    "web_search_options": "web search is not supported",
    "moderation": "moderation is not supported",
    "functions": "it is OpenAI's old way: send 'tools'",
    "function_call": "it is OpenAI's old way: send 'tool_choice'",
}


def sort_fields(
    data: Mapping[str, Any], model: type[Wire], refused: Mapping[str, str] = REFUSED
) -> tuple[str, ...]:
    """The fields that are ignored by a route that reads ``model``; raises UnsupportedParameter for
    one that must not be, as ``refused`` (field to reason) says."""
    others = [name for name in data if name not in model.model_fields and name not in HARMLESS]
    ignored = []
    for name in others:
        value = data[name]
        if name in refused:
            if value not in (None, "", [], {}):
                raise UnsupportedParameter(f"{name} is refused: {refused[name]}.", param=name)
        elif name == "modalities":
            if value not in (None, ["text"]):
                raise UnsupportedParameter(
                    f"modalities must be ['text'], as only text is made (got {shorten(value)}).",
                    param=name,
                )
        elif name == "context_overflow":
            if value not in (None, "error"):
                raise UnsupportedParameter(
                    f"context_overflow must be 'error' (got {shorten(value)}).", param=name
                )
        elif value is not None:
            ignored.append(name)
    return tuple(ignored)
