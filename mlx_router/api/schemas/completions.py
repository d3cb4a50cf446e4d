"""The request of POST /v1/completions; see :mod:`mlx_router.api.schemas.base`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from mlx_router.api.schemas.base import GenerationFields

MAX_PROMPTS = 128
MAX_TOKEN_ID = 2**31 - 1

_TEXT = {"type": "string"}
IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
}
_PROMPT = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_PROMPTS},
        {**IDS_SCHEMA, "minItems": 1},
        {"type": "array", "items": IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


class CompletionRequest(GenerationFields):
    """A text to be continued, as OpenAI documents it, with a few extensions."""

    # Checked by hand: pydantic would look at a hundred thousand ids once for every kind of prompt.
    prompt: Annotated[Any, WithJsonSchema(_PROMPT)] = Field(
        description="A text, several, token ids, or several lists of them."
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="Alternatives per token."
    )
    echo: bool | None = Field(None, description="The prompt before the answer.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None, description="1, or the same as n."
    )
