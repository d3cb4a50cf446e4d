"""The request of POST /v1/chat/completions; see :mod:`mlx_router.api.schemas.base`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from mlx_router.api.schemas.base import WHOLE, GenerationFields, Refused, Tokens, Wire

MAX_MESSAGES = 10_000

# Texts whose values are checked where they are read, for messages that say more than pydantic's.
_PART_TYPES = ["text", "image_url", "file", "refusal", "input_text", "output_text", "input_image"]
PartType = Annotated[str, WithJsonSchema({"type": "string", "enum": _PART_TYPES})]
ChoiceMode = Annotated[
    str, WithJsonSchema({"type": "string", "enum": ["none", "auto", "required"]})
]
ChoiceType = Annotated[
    str, WithJsonSchema({"type": "string", "enum": ["function", "allowed_tools"]})
]


Pages = Annotated[str, Field(max_length=1000)]


Detail = Literal["auto", "low", "high", "original"]


class ImageUrl(Wire):
    url: str = Field(description="A data URI or an http(s) URL, of an image or a PDF.")
    detail: Detail | None = Field(
        "auto", description="How large the model sees it; original is taken for high."
    )
    pages: Pages | None = Field(
        None, description="Extension: which pages of a PDF, as in 2-4,7; absent: the first ones."
    )


class FileData(Wire):
    file_data: str | None = Field(
        None, description="A PDF or an image: a data URI, or its bytes in base64."
    )
    file_id: Refused = Field(None, description="Refused: there is no file store.")
    filename: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="What the answer calls it, if there is something to say about it."
    )
    detail: Detail | None = Field(
        "auto", description="Extension: how large the model sees it; original is taken for high."
    )
    pages: Pages | None = Field(
        None, description="Extension: which pages, as in 2-4,7; absent: the first ones."
    )


class Part(Wire):
    """A part of a message: ``text``, ``image_url`` (an image or a PDF) or ``file`` (the same)."""

    type: PartType = Field(description="What the part is: it needs the field of that name.")
    text: str | None = Field(None, description="Of a text.")
    image_url: ImageUrl | str | None = Field(
        None, description="An object with url and detail, or just the URL."
    )
    file: FileData | None = Field(None, description="A PDF or an image.")
    refusal: str | None = Field(None, description="Of an earlier answer; read as its text.")
    prompt_cache_breakpoint: Any | None = Field(
        None, description="Without effect: whatever prompts have in common is reused anyway."
    )


class CalledFunction(Wire):
    name: str = Field(min_length=1, max_length=256, description="Of the function.")
    arguments: str | dict[str, Any] | None = Field("", description="JSON text.")


class AssistantToolCall(Wire):
    id: str = Field("", max_length=512, description="What tool_call_id refers to.")
    type: Literal["function"] = Field("function", description="There is no other.")
    function: CalledFunction = Field(description="What was called.")


class MessageIn(Wire):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who speaks; a developer is the system."
    )
    content: str | list[Part] | None = Field(
        None, description="Text, or a list of parts; may be null for assistant and tool."
    )
    name: str | None = Field(None, description="Given to the model's template.")
    tool_calls: list[AssistantToolCall] | None = Field(None, description="Assistant only.")
    tool_call_id: str | None = Field(None, description="Tool only: the call that it answers.")
    reasoning_content: str | None = Field(
        None,
        description="Extension: the reasoning of an earlier answer, for models that want it back.",
    )
    refusal: str | None = Field(
        None, description="Assistant only: read as the content, where there is none."
    )
    audio: Refused = Field(None, description="Refused: no audio is made, so none is kept.")
    function_call: Refused = Field(
        None,
        description="Refused: it is OpenAI's old way; send tool_calls.",
        json_schema_extra={"deprecated": True},
    )


class FunctionTool(Wire):
    name: str = Field(min_length=1, max_length=256, pattern=r"^\S+$", description="Without spaces.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = Field(None, description="Arguments must follow the schema exactly.")


class ToolIn(Wire):
    """A tool. Types other than ``function`` are left out, which a warning header reports."""

    type: str = Field(
        "function", description="Tools of other types are left out, and a warning header says so."
    )
    function: FunctionTool | None = Field(None, description="What can be called.")


class FunctionName(Wire):
    name: str = Field(description="Of a function in tools.")


class AllowedTools(Wire):
    mode: Literal["auto", "required"] = Field(description="As tool_choice has them.")
    tools: list[ToolIn] = Field(description="Those of tools that may be called.")


class ToolChoiceObject(Wire):
    type: ChoiceType = Field(description="What is chosen: it needs the field of that name.")
    function: FunctionName | None = Field(None, description="The one to call.")
    allowed_tools: AllowedTools | None = Field(None, description="Fewer than tools has.")


class JsonSchemaFormat(Wire):
    name: str | None = Field(None, max_length=256, description="Of the schema.")
    description: str | None = Field(
        None, description="Without effect: the model is held to the schema, but not told of it."
    )
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="The JSON schema that the answer must follow."
    )
    strict: bool | None = Field(None, description="The answer must follow the schema exactly.")


class ResponseFormatIn(Wire):
    type: Literal["text", "json_object", "json_schema"] = Field(
        description="Free text, any JSON object, or JSON that follows json_schema."
    )
    json_schema: JsonSchemaFormat | None = Field(None, description="For the type json_schema.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="Extension: the schema itself, beside json_object."
    )


Scalar = str | bool | int | float | None


class ChatFields(Wire):
    """What the text that a model reads is made of."""

    messages: list[MessageIn] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far."
    )
    tools: list[ToolIn] | None = Field(
        None, max_length=1024, description="Functions that the model may call."
    )
    tool_choice: ChoiceMode | ToolChoiceObject | None = Field(
        None, description="Whether tools may or must be called, or which; auto unless you say so."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: at most one call in an answer."
    )
    response_format: ResponseFormatIn | None = Field(
        None, description="What the answer must look like."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        Field(None, description="Given to the model's template; none also turns thinking off.")
    )
    chat_template_kwargs: dict[str, Scalar] | None = Field(
        None,
        max_length=32,
        description="Extension: variables of the model's chat template; others are refused.",
        json_schema_extra={"propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}},
    )
    enable_thinking: bool | None = Field(
        None, description="Extension: short for chat_template_kwargs.enable_thinking."
    )


class ChatCompletionRequest(GenerationFields, ChatFields):
    """A chat request, as OpenAI documents it, with a few extensions."""

    max_completion_tokens: Tokens | None = Field(None, description="Wins over max_tokens.")
    logprobs: bool | None = Field(None, description="The log-probability of every token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="So many alternatives to every token, too; needs logprobs."
    )
    context_overflow: Literal["error", "summarize"] | None = Field(
        None,
        description="Extension: what becomes of a chat longer than the context: a 400, or a "
        "summary of its older messages; absent: as configured.",
    )
