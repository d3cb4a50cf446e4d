"""The library's view of a chat: messages as the OpenAI SDK writes them, whole answers back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar, Unpack

from mlx_router.domain import (
    ChatPrompt,
    Completed,
    ContextOverflow,
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Message,
    NamedTool,
    ResponseFormat,
    SamplingOptions,
    Started,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from mlx_router.errors import InvalidRequest
from mlx_router.runtime.parts import read_part

T = TypeVar("T")
Messages = str | Sequence[Message | Mapping[str, Any]]


class ChatOptions(TypedDict, total=False):
    """What :meth:`MLXModelManager.chat` and its twins take; names and meanings are OpenAI's.

    ``tools`` are in OpenAI's shape or :class:`Tool`, and ``tool_choice`` may be the name of one.
    ``response_format`` is in OpenAI's shape, a :class:`ResponseFormat`, or a class of pydantic: the
    answer's content is JSON of that form. ``thinking`` switches the reasoning of models
    that have a switch; ``timeout`` is in seconds. ``context_overflow`` ``summarize`` has the
    older messages of a chat that is too long summarised; ``error``: ContextLengthExceeded.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int
    stop: str | Sequence[str]
    seed: int
    logit_bias: Mapping[int, float]
    tools: Sequence[Tool | Mapping[str, Any]]
    tool_choice: str
    parallel_tool_calls: bool
    response_format: ResponseFormat | Mapping[str, Any] | type
    thinking: bool
    timeout: float
    context_overflow: ContextOverflow


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A whole answer. ``summarized_messages``: how many a summary took the place of. ``notices``
    are sentences about the prompt, such as that only the first pages of a PDF were read."""

    model: str
    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...]
    summarized_messages: int = 0
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.content

    @property
    def message(self) -> Message:
        """The answer as the next message of the chat, to go on from."""
        return Message(
            "assistant",
            self.content or None,
            tool_calls=self.tool_calls,
            reasoning=self.reasoning or None,
        )


_ROLES = ("system", "developer", "user", "assistant", "tool")


def make_request(
    messages: Messages, model: str | None, **options: Unpack[ChatOptions]
) -> GenerationRequest:
    """The request for a chat. Raises InvalidRequest for what is not a message or an option."""
    given: dict[str, Any] = dict(options)
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    if not messages:
        raise InvalidRequest("There are no messages.", param="messages")
    stop = given.pop("stop", ())
    thinking = given.pop("thinking", None)
    choice = given.pop("tool_choice", "auto")
    named: ToolChoice = choice if choice in ("none", "auto", "required") else NamedTool(choice)
    prompt = ChatPrompt(
        messages=_read(_message, messages, "messages"),
        tools=_read(_tool, given.pop("tools", ()), "tools"),
        tool_choice=named,
        parallel_tool_calls=given.pop("parallel_tool_calls", True),
        response_format=_response_format(given.pop("response_format", ResponseFormat())),
        template_kwargs={} if thinking is None else {"enable_thinking": thinking},
    )
    sampling = {k: given.pop(k) for k in SamplingOptions.__dataclass_fields__ if k in given}
    unknown = set(given) - {"max_tokens", "seed", "logit_bias", "timeout", "context_overflow"}
    if unknown:
        known = ", ".join(sorted(ChatOptions.__annotations__))
        raise InvalidRequest(f"Unknown option {min(unknown)!r}; there are {known}.")
    request = GenerationRequest(prompt, model=model, sampling=SamplingOptions(**sampling))
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(request, stop=stops, **given)


def _response_format(wanted: ResponseFormat | Mapping[str, Any] | type) -> ResponseFormat:
    if isinstance(wanted, ResponseFormat):
        return wanted
    if isinstance(wanted, type) and hasattr(wanted, "model_json_schema"):
        schema = wanted.model_json_schema()
        return ResponseFormat("json_schema", wanted.__name__, schema, strict=True)
    if isinstance(wanted, Mapping):
        kind, found = wanted.get("type"), wanted.get("json_schema")
        if kind == "text" or kind == "json_object":
            return ResponseFormat(kind)
        if kind == "json_schema" and isinstance(found, Mapping) and "schema" in found:
            strict = bool(found.get("strict"))
            return ResponseFormat(kind, found.get("name"), found["schema"], strict)
    raise InvalidRequest(
        "response_format is {'type': 'json_object'}, {'type': 'json_schema', 'json_schema': "
        "{'name': ..., 'schema': ...}}, or a class of pydantic.",
        param="response_format",
    )


async def collect(events: AsyncIterator[GenerationEvent]) -> ChatResult:
    """Wait for the whole of an answer's first choice."""
    model, usage, reason = "", Usage(), FinishReason.STOP
    summarized = 0
    notices: tuple[str, ...] = ()
    content: list[str] = []
    reasoning: list[str] = []
    token_ids: list[int] = []
    calls: list[ToolCall] = []
    async for event in events:
        if isinstance(event, Started):
            model, summarized = event.model, event.summarized_messages
            notices = event.notices
        elif isinstance(event, Delta):
            content.append(event.content)
            reasoning.append(event.reasoning)
            token_ids += event.token_ids
            for piece in event.tool_calls:
                if piece.id is not None:
                    calls.append(ToolCall(piece.id, piece.name or "", ""))
                last = calls[piece.index]
                calls[piece.index] = replace(last, arguments=last.arguments + piece.arguments)
        elif isinstance(event, Finished):
            reason = event.reason
        elif isinstance(event, Completed):
            usage = event.usage
    return ChatResult(
        model=model,
        content="".join(content),
        reasoning="".join(reasoning),
        tool_calls=tuple(calls),
        finish_reason=reason,
        usage=usage,
        token_ids=tuple(token_ids),
        summarized_messages=summarized,
        notices=notices,
    )


def _message(value: Message | Mapping[str, Any]) -> Message:
    if isinstance(value, Message):
        return value
    role = value.get("role")
    if role not in _ROLES:
        raise InvalidRequest(
            f"A message's role is one of {', '.join(_ROLES)}, not {role!r}.", param="messages"
        )
    content = value.get("content")
    return Message(
        role,
        content if content is None or isinstance(content, str) else tuple(map(read_part, content)),
        name=value.get("name"),
        tool_calls=tuple(
            ToolCall(call["id"], call["function"]["name"], _json(call["function"]["arguments"]))
            for call in value.get("tool_calls") or ()
        ),
        tool_call_id=value.get("tool_call_id"),
        reasoning=value.get("reasoning_content"),
    )


def _read(read: Callable[[Any], T], values: Iterable[Any], param: str) -> tuple[T, ...]:
    found = []
    for index, value in enumerate(values):
        try:
            found.append(read(value))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else "is not of OpenAI's shape"
            raise InvalidRequest(f"{param}[{index}] {what}.", param=param) from None
    return tuple(found)


def _tool(value: Tool | Mapping[str, Any]) -> Tool:
    if isinstance(value, Tool):
        return value
    function = value.get("function", value)
    return Tool(
        function["name"],
        function.get("description"),
        function.get("parameters"),
        strict=bool(function.get("strict")),
    )


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
