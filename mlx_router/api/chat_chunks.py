"""A chat answer as ``chat.completion.chunk`` objects, for SSE or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_router.api.chunks import Chunks
from mlx_router.api.translate import ChatCall
from mlx_router.api.wire import (
    answer_id,
    dumps,
    logprobs_list,
    prompt_notes,
    timings_dict,
    without_reasoning,
)
from mlx_router.domain import AnswerEvent, Delta, Finished, Started, ToolCallDelta


class ChatChunks(Chunks):
    """Encodes the events of one request.

    ``shows_reasoning`` says of a model whether its reasoning is returned.
    """

    def __init__(self, call: ChatCall, shows_reasoning: Callable[[str], bool]) -> None:
        super().__init__(call.delivery, "chat.completion.chunk", answer_id("chatcmpl"))
        self._shows_reasoning = shows_reasoning
        self._reasoning = True
        self._choices = call.request.n
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._delta_heads: list[bytes] = []
        self._text_heads: list[bytes] = []

    def encode(self, event: AnswerEvent) -> bytes:
        """The bytes of one event; empty if it has nothing for the client."""
        if isinstance(event, Delta):
            if not self._reasoning:
                event = without_reasoning(event)
            if event.reasoning or event.tool_calls or event.logprobs or self._how.token_ids:
                return self._rich(event)
            if not event.content:
                return b""
            return self._text_heads[event.index] + dumps(event.content) + self._text_tail
        if isinstance(event, Finished):
            rest = b'{},"logprobs":null,"finish_reason":' + dumps(event.reason) + b"}]"
            return self._delta_heads[event.index] + rest + self._tail
        if isinstance(event, Started):
            return self._start(event)
        return self._end(event, timings=timings_dict(event))

    def _start(self, started: Started) -> bytes:
        """Prepare the templates; the role chunk of every choice."""
        self._reasoning = self._shows_reasoning(started.model)
        self._begin(started.model)
        self._delta_heads = [
            self._choice_head(index) + b'"delta":' for index in range(self._choices)
        ]
        self._text_heads = [head + b'{"content":' for head in self._delta_heads]
        role = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        roles = [head + role + self._tail for head in self._delta_heads]
        first: dict[str, Any] = {}  # what the first chunk has beside the role
        if self._how.token_ids:
            first["prompt_token_ids"] = list(started.prompt_token_ids)
        first.update(prompt_notes(started))
        if first:
            roles[0] = self._delta_heads[0] + role + b"," + dumps(first)[1:-1] + self._tail
        return b"".join(roles)

    def _rich(self, event: Delta) -> bytes:
        """A chunk with more than text."""
        delta: dict[str, Any] = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.content:
            delta["content"] = event.content
        if event.tool_calls:
            delta["tool_calls"] = _tool_calls(event.tool_calls)
        shown: dict[str, Any] = {"logprobs": None, "finish_reason": None}
        if event.logprobs:
            shown["logprobs"] = {"content": logprobs_list(event.logprobs), "refusal": None}
        if self._how.token_ids:
            shown["token_ids"] = list(event.token_ids)
        if not delta and not event.logprobs and not shown.get("token_ids"):
            return b""
        head = self._delta_heads[event.index]
        return head + dumps(delta) + b"," + dumps(shown)[1:] + b"]" + self._tail


def _tool_calls(deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
    calls = []
    for delta in deltas:
        function: dict[str, Any] = {"arguments": delta.arguments}
        call: dict[str, Any] = {"index": delta.index, "function": function}
        if delta.id is not None:
            call.update(id=delta.id, type="function")
        if delta.name is not None:
            function["name"] = delta.name
        calls.append(call)
    return calls
