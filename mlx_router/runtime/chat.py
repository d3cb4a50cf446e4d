"""The library's view of a chat: messages as the OpenAI SDK writes them, whole answers back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from mlx_router.domain import (
    ChatPrompt,
    Completed,
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    ImagePart,
    Message,
    NamedTool,
    SamplingOptions,
    Started,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from mlx_router.errors import InvalidRequest

Messages = str | Sequence[Message | Mapping[str, Any]]


class ChatOptions(TypedDict, total=False):
    """What :meth:`MLXModelManager.chat` and its twins take; names and meanings are OpenAI's.

    ``tools`` are in OpenAI's shape or :class:`Tool`; ``thinking`` switches the reasoning of models
    that have a switch; ``timeout`` is in seconds.
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
    thinking: bool
    timeout: float


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A whole answer."""

    model: str
    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...]

    def __str__(self) -> str:
        return self.content


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
        messages=tuple(_message(message) for message in messages),
        tools=tuple(_tool(tool) for tool in given.pop("tools", ())),
        tool_choice=named,
        template_kwargs={} if thinking is None else {"enable_thinking": thinking},
    )
    sampling = {k: given.pop(k) for k in SamplingOptions.__dataclass_fields__ if k in given}
    unknown = set(given) - {"max_tokens", "seed", "logit_bias", "timeout"}
    if unknown:
        known = ", ".join(sorted(ChatOptions.__annotations__))
        raise InvalidRequest(f"Unknown option {min(unknown)!r}; there are {known}.")
    request = GenerationRequest(prompt, model=model, sampling=SamplingOptions(**sampling))
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(request, stop=stops, **given)


async def collect(events: AsyncIterator[GenerationEvent]) -> ChatResult:
    """Wait for the whole of an answer's first choice."""
    model, usage, reason = "", Usage(), FinishReason.STOP
    content: list[str] = []
    reasoning: list[str] = []
    token_ids: list[int] = []
    calls: list[ToolCall] = []
    async for event in events:
        if isinstance(event, Started):
            model = event.model
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
        content if content is None or isinstance(content, str) else tuple(map(_part, content)),
        name=value.get("name"),
        tool_calls=tuple(
            ToolCall(call["id"], call["function"]["name"], _json(call["function"]["arguments"]))
            for call in value.get("tool_calls") or ()
        ),
        tool_call_id=value.get("tool_call_id"),
        reasoning=value.get("reasoning_content"),
    )


def _part(part: Mapping[str, Any]) -> TextPart | ImagePart:
    if part.get("type") == "text":
        return TextPart(part["text"])
    if part.get("type") == "image_url":
        image = part["image_url"]
        return ImagePart(image if isinstance(image, str) else image["url"])
    raise InvalidRequest(
        f"A content part's type is text or image_url, not {part.get('type')!r}.", param="messages"
    )


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
