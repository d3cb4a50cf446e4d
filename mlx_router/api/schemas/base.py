"""What the request models share: strictness, bounds, and the fields of every request for text.

Numbers are strict (a text is not a number) and bounded. Fields that a model does not have are
sorted by :mod:`mlx_router.api.fields`: refused by name, or reported as ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_INT = 2**63 - 1


class Wire(BaseModel):
    """Base of the request models: strict types; unknown keys are left to the caller to report."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="Send a last chunk with the usage.")
    include_obfuscation: bool | None = None


Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1, le=MAX_INT)]


class GenerationFields(Wire):
    """Which model writes, how it samples, and how its answer is sent."""

    model: str | None = Field(
        None, description="Id, alias or short name; absent: the default model."
    )
    max_tokens: Tokens | None = Field(
        None, description="Tokens of the answer; clamped to what fits, never refused."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0: greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(None, description="0: off.")
    min_p: Unit | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: str | list[str] | None = Field(None, description="A text, or up to four.")
    n: Annotated[int, Field(ge=1, le=8)] | None = Field(None, description="How many answers.")
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_INT)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id to bias."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    streaming_format: Literal["sse", "json_lines", "json_array"] | None = Field(
        None, description="Extension: how a streamed answer is written."
    )
    ignore_eos: bool | None = Field(
        None, description="Extension: go on to max_tokens, for measuring."
    )
    return_token_ids: bool | None = Field(
        None, description="Extension: prompt_token_ids, and token_ids of every choice."
    )
    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = Field(
        None, description="Extension: seconds for the whole answer."
    )
