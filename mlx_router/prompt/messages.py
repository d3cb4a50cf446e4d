"""A chat as templates want it: dicts in the shape that transformers documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlx_router.domain import ChatPrompt, Message, TextPart, Tool, ToolCall
from mlx_router.errors import InvalidRequest

Content = str | list[dict[str, str]]


def template_messages(prompt: ChatPrompt, *, keep_parts: bool = False) -> list[dict[str, Any]]:
    """The messages of ``prompt`` for a chat template.

    Content is a string, of parts joined; only with ``keep_parts`` (for models that see) it is a
    list of ``text`` and ``image`` parts, where the message has an image. A developer's message is
    the system's, and several system messages at the start are one: many templates allow no more.
    Arguments of tool calls are objects where they are valid JSON. Raises InvalidRequest for an
    image without ``keep_parts``.
    """
    names: dict[str, str] = {}  # of the functions called, by call id
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        written = _message(message, names, keep_parts=keep_parts)
        first = messages[0] if len(messages) == 1 else None
        if first and first["role"] == written["role"] == "system":
            first["content"] = _joined(first["content"], written["content"])
        else:
            messages.append(written)
    return messages


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools in OpenAI's shape. For tool_choice none, give a template no tools at all."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": dict(tool.parameters or {"type": "object", "properties": {}}),
            },
        }
        for tool in tools
    ]


def _joined(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), _text("\n\n"), *_as_parts(second)]


def _as_parts(content: Content) -> list[dict[str, str]]:
    return [_text(content)] if isinstance(content, str) else content


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _message(message: Message, names: dict[str, str], *, keep_parts: bool) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    written: dict[str, Any] = {"role": role, "content": _content(message, keep_parts=keep_parts)}
    if message.name:
        written["name"] = message.name
    if message.reasoning is not None:
        # gpt-oss's template reads `thinking`, the others `reasoning_content`.
        written["reasoning_content"] = written["thinking"] = message.reasoning
    if message.tool_calls:
        names.update((call.id, call.name) for call in message.tool_calls)
        written["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
        if name := names.get(message.tool_call_id):
            written.setdefault("name", name)
    return written


def _content(message: Message, *, keep_parts: bool) -> Content:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    if all(isinstance(part, TextPart) for part in content):
        return message.text
    if keep_parts:
        return [
            _text(part.text) if isinstance(part, TextPart) else {"type": "image"}
            for part in content
        ]
    raise InvalidRequest(
        "This model has no vision: it cannot take images. Send text only, or choose a model "
        "of kind vision from /v1/models.",
        param="messages",
    )


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": _arguments(call.arguments)},
    }


def _arguments(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
