"""From the wire's chat request to the one request that the runtime knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import orjson

from mlx_router.api.fields import sort_fields
from mlx_router.api.generation import Call, delivery, generation_request
from mlx_router.api.schemas.chat import (
    MAX_MESSAGES,
    AllowedTools,
    AssistantToolCall,
    ChatCompletionRequest,
    ChatFields,
    MessageIn,
    Part,
    ResponseFormatIn,
    ToolIn,
)
from mlx_router.api.service import ANONYMOUS, Caller
from mlx_router.api.validation import nearest, parse, shorten
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    RESERVED_TEMPLATE_VARIABLES,
    ChatPrompt,
    ContentPart,
    GenerationRequest,
    ImagePart,
    Message,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_router.errors import InvalidRequest, UnsupportedParameter
from mlx_router.runtime.parts import DETAILS, shown_name

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

C = TypeVar("C", bound=ChatFields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall(Call):
    """A chat request, and how its answer is to be written."""

    request: GenerationRequest


def chat_call(data: dict[str, Any], settings: Settings, caller: Caller = ANONYMOUS) -> ChatCall:
    """Check and translate a request body. Raises InvalidRequest that names the field."""
    ignored = sort_fields(data, ChatCompletionRequest)
    wire = parse_chat(ChatCompletionRequest, data)
    prompt, warnings = chat_prompt(wire)
    how = delivery(wire, settings)
    request = generation_request(
        wire,
        prompt,
        settings,
        caller=caller,
        stream=how.stream,
        max_tokens=wire.max_completion_tokens or wire.max_tokens,
        logprobs=_logprobs(wire),
    )
    request = replace(request, context_overflow=wire.context_overflow)
    return ChatCall(request=request, delivery=how, ignored=ignored, warnings=warnings)


def parse_chat(model: type[C], data: dict[str, Any]) -> C:
    """``data`` as ``model``, a request with messages. Raises InvalidRequest."""
    messages = data.get("messages")
    if isinstance(messages, list) and len(messages) > MAX_MESSAGES:  # before any is looked at
        raise InvalidRequest(
            f"messages must have at most {MAX_MESSAGES} items (got {len(messages)}).",
            param="messages",
        )
    return parse(model, data)


def chat_prompt(wire: ChatFields) -> tuple[ChatPrompt, tuple[str, ...]]:
    """The prompt, and warnings about what was left out of it. Raises InvalidRequest."""
    tools, warnings = _tools(wire.tools or (), "tools")
    choice, tools = _tool_choice(wire, tools)
    prompt = ChatPrompt(
        messages=tuple(_message(m, f"messages.{i}") for i, m in enumerate(wire.messages)),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        response_format=_response_format(wire.response_format),
        reasoning_effort=wire.reasoning_effort,
        template_kwargs=_template_kwargs(wire),
    )
    return prompt, warnings


# --- messages -------------------------------------------------------------------------------


def _message(wire: MessageIn, at: str) -> Message:
    if wire.function_call is not None:
        raise UnsupportedParameter(
            f"{at}.function_call is OpenAI's old way: send 'tool_calls'.",
            param=f"{at}.function_call",
        )
    if wire.audio is not None:
        raise UnsupportedParameter(
            f"{at}.audio is refused: audio is not supported.", param=f"{at}.audio"
        )
    if wire.content is None and wire.role not in ("assistant", "tool"):
        raise InvalidRequest(
            f"{at}.content must be a string or a list of parts.", param=f"{at}.content"
        )
    if wire.tool_calls and wire.role != "assistant":
        raise InvalidRequest(
            f"{at}.tool_calls is for assistant messages only.", param=f"{at}.tool_calls"
        )
    content: str | tuple[ContentPart, ...] | None
    if isinstance(wire.content, list):
        content = tuple(_part(p, f"{at}.content.{i}") for i, p in enumerate(wire.content))
    else:
        content = wire.refusal if wire.content is None else wire.content
    return Message(
        role=wire.role,
        content=content,
        name=wire.name,
        tool_calls=tuple(_past_call(call) for call in wire.tool_calls or ()),
        tool_call_id=wire.tool_call_id,
        reasoning=wire.reasoning_content,
    )


def _part(part: Part, at: str) -> ContentPart:
    match part.type:
        case "text" | "input_text" | "output_text":
            return TextPart(_present(part.text, f"{at}.text"))
        case "refusal":
            return TextPart(_present(part.refusal, f"{at}.refusal"))
        case "image_url" | "input_image":
            image = _present(part.image_url, f"{at}.image_url")
            if isinstance(image, str):
                return ImagePart(image)
            return ImagePart(image.url, DETAILS[image.detail or "auto"], image.pages)
        case "file":
            file = _present(part.file, f"{at}.file")
            if file.file_id is not None:
                raise UnsupportedParameter(
                    f"{at}.file.file_id is refused: there is no file store; send file_data.",
                    param=f"{at}.file.file_id",
                )
            data = _present(file.file_data, f"{at}.file.file_data")
            detail = DETAILS[file.detail or "auto"]
            return ImagePart(data, detail, file.pages, shown_name(file.filename))
        case "input_audio":
            raise UnsupportedParameter(f"{at}: audio input is not supported.", param=at)
        case other:
            raise InvalidRequest(
                f"{at}.type must be 'text', 'image_url' or 'file' (got {shorten(other)}).",
                param=f"{at}.type",
            )


def _present(value: Any, at: str) -> Any:
    if value is None:
        raise InvalidRequest(f"{at} is required.", param=at)
    return value


def _past_call(call: AssistantToolCall) -> ToolCall:
    arguments = call.function.arguments
    if not isinstance(arguments, str):  # some clients send the object itself
        arguments = orjson.dumps(arguments or {}).decode()
    return ToolCall(call.id, call.function.name, arguments)


# --- tools and format -----------------------------------------------------------------------


def _tools(wire: Sequence[ToolIn], at: str) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The function tools, and a warning that names the types that are left out."""
    tools: list[Tool] = []
    left_out: list[str] = []
    for index, tool in enumerate(wire):
        if tool.type != "function":
            left_out.append(tool.type)
            continue
        function = _present(tool.function, f"{at}.{index}.function")
        tools.append(
            Tool(
                name=function.name,
                description=function.description,
                parameters=function.parameters,
                strict=bool(function.strict),
            )
        )
    names = ", ".join(dict.fromkeys(left_out))
    return tuple(tools), (f"tools of unknown type left out: {names}",) if left_out else ()


def _tool_choice(wire: ChatFields, tools: tuple[Tool, ...]) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """The choice, and the tools that it leaves to choose from."""
    choice = wire.tool_choice
    if choice is None or choice == "auto":
        return "auto", tools
    if choice == "none":
        return "none", tools
    names = [tool.name for tool in tools]
    if isinstance(choice, str):
        if choice != "required":
            raise InvalidRequest(
                "tool_choice must be 'none', 'auto', 'required' or an object that names a function "
                f"(got {shorten(choice)}).",
                param="tool_choice",
            )
        if not tools:
            raise InvalidRequest(
                "tool_choice 'required' needs at least one function in tools.", param="tool_choice"
            )
        return "required", tools
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        return _allowed_tools(choice.allowed_tools, tools)
    if choice.type != "function" or choice.function is None:
        raise UnsupportedParameter(
            "tool_choice must be {'type': 'function', 'function': {'name': ...}} "
            f"(got type {shorten(choice.type)}).",
            param="tool_choice",
        )
    if choice.function.name not in names:
        raise InvalidRequest(
            f"tool_choice names {shorten(choice.function.name)}, which is not in tools."
            + nearest(choice.function.name, names),
            param="tool_choice.function.name",
        )
    return NamedTool(choice.function.name), tools


def _allowed_tools(
    allowed: AllowedTools, tools: tuple[Tool, ...]
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    wanted, _ = _tools(allowed.tools, "tool_choice.allowed_tools.tools")
    kept = tuple(tool for tool in tools if any(tool.name == other.name for other in wanted))
    if not kept:
        raise InvalidRequest(
            "tool_choice.allowed_tools.tools names none of the functions in tools.",
            param="tool_choice.allowed_tools.tools",
        )
    return allowed.mode, kept


def _response_format(wire: ResponseFormatIn | None) -> ResponseFormat:
    if wire is None:
        return ResponseFormat()
    if wire.type == "json_schema":
        at = "response_format.json_schema"
        wanted = _present(wire.json_schema, at)
        schema = _present(wanted.schema_, f"{at}.schema")
        return ResponseFormat("json_schema", wanted.name, schema, bool(wanted.strict))
    if wire.type == "json_object" and wire.schema_ is not None:
        return ResponseFormat("json_schema", None, wire.schema_)
    return ResponseFormat(wire.type)


def _template_kwargs(wire: ChatFields) -> dict[str, Any]:
    kwargs: dict[str, Any] = dict(wire.chat_template_kwargs or {})
    for name in kwargs:
        if name in RESERVED_TEMPLATE_VARIABLES or not _IDENTIFIER.fullmatch(name):
            raise InvalidRequest(
                f"chat_template_kwargs must not set {shorten(name)}.", param="chat_template_kwargs"
            )
    if wire.enable_thinking is not None:
        kwargs["enable_thinking"] = wire.enable_thinking
    elif wire.reasoning_effort == "none":
        kwargs.setdefault("enable_thinking", False)
    return kwargs


def _logprobs(wire: ChatCompletionRequest) -> int | None:
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (wire.top_logprobs or 0) if wire.logprobs else None
