"""The request of POST /v1/chat/completions.

Numbers are strict (a text is not a number) and bounded. Fields that are not here are sorted by
:mod:`mlx_router.api.fields`: refused by name, or reported as ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_MESSAGES = 10_000
MAX_INT = 2**63 - 1


class Wire(BaseModel):
    """Base of the request models: strict types; unknown keys are left to the caller to report."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )


class ImageUrl(Wire):
    url: str = Field(description="A data URI (images, PDF) or an http(s) URL.")
    detail: Literal["auto", "low", "high"] | None = "auto"


class FileData(Wire):
    file_data: str | None = Field(None, description="A data URI, for example of a PDF.")
    file_id: str | None = Field(None, description="Not supported: there is no file store.")
    filename: str | None = None


class Part(Wire):
    """A part of a message: ``text``, ``image_url`` or ``file`` (a PDF as data URI)."""

    type: str = Field(description="text, image_url or file.")
    text: str | None = None
    image_url: ImageUrl | str | None = Field(
        None, description="An object with url and detail, or just the URL."
    )
    file: FileData | None = None
    refusal: str | None = None


class CalledFunction(Wire):
    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] | None = Field("", description="JSON text.")


class AssistantToolCall(Wire):
    id: str = Field("", max_length=512)
    type: Literal["function"] = "function"
    function: CalledFunction


class MessageIn(Wire):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = Field(
        None, description="Text, or a list of parts; may be null for assistant and tool."
    )
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = Field(None, description="Assistant only.")
    tool_call_id: str | None = Field(None, description="Tool only: the call that it answers.")
    reasoning_content: str | None = Field(
        None, description="The reasoning of an earlier answer, for models that want it back."
    )
    function_call: Any | None = Field(None, exclude=True, json_schema_extra={"deprecated": True})


class FunctionTool(Wire):
    name: str = Field(min_length=1, max_length=256, pattern=r"^\S+$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = Field(None, description="Arguments must follow the schema exactly.")


class ToolIn(Wire):
    """A tool. Types other than ``function`` are left out, which a warning header reports."""

    type: str = "function"
    function: FunctionTool | None = None


class FunctionName(Wire):
    name: str


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[ToolIn]


class ToolChoiceObject(Wire):
    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchemaFormat(Wire):
    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormatIn(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="Extension: the schema itself, beside json_object."
    )


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="Send a last chunk with the usage.")
    include_obfuscation: bool | None = None


Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1, le=MAX_INT)]
Scalar = str | bool | int | float | None


class ChatCompletionRequest(Wire):
    """A chat request, as OpenAI documents it, with a few extensions."""

    model: str | None = Field(
        None, description="Id, alias or short name; absent: the default model."
    )
    messages: list[MessageIn] = Field(min_length=1, max_length=MAX_MESSAGES)

    max_tokens: Tokens | None = Field(
        None, description="Tokens of the answer; clamped to what fits, never refused."
    )
    max_completion_tokens: Tokens | None = Field(None, description="Wins over max_tokens.")
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
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id to bias."
    )

    tools: list[ToolIn] | None = Field(None, max_length=1024)
    tool_choice: str | ToolChoiceObject | None = Field(
        None, description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatIn | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    streaming_format: Literal["sse", "json_lines", "json_array"] | None = Field(
        None, description="Extension: how a streamed answer is written."
    )
    chat_template_kwargs: dict[str, Scalar] | None = Field(
        None, description="Extension: variables for the model's chat template."
    )
    enable_thinking: bool | None = Field(
        None, description="Extension: short for chat_template_kwargs.enable_thinking."
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
