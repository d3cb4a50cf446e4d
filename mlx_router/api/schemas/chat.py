"""The request of POST /v1/chat/completions; see :mod:`mlx_router.api.schemas.base`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mlx_router.api.schemas.base import GenerationFields, Tokens, Wire

MAX_MESSAGES = 10_000


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


Scalar = str | bool | int | float | None


class ChatFields(Wire):
    """What the text that a model reads is made of."""

    messages: list[MessageIn] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[ToolIn] | None = Field(None, max_length=1024)
    tool_choice: str | ToolChoiceObject | None = Field(
        None, description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatIn | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: dict[str, Scalar] | None = Field(
        None, description="Extension: variables for the model's chat template."
    )
    enable_thinking: bool | None = Field(
        None, description="Extension: short for chat_template_kwargs.enable_thinking."
    )


class ChatCompletionRequest(GenerationFields, ChatFields):
    """A chat request, as OpenAI documents it, with a few extensions."""

    max_completion_tokens: Tokens | None = Field(None, description="Wins over max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
