"""A chat answer as ``chat.completion.chunk`` objects, for SSE or JSON lines.

Everything of a chunk but its text is the same for the whole stream, so it is made once; a token
costs one JSON encoding of its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from mlx_router.api.errors import error_body
from mlx_router.api.stream import JSON_LINES, SSE
from mlx_router.api.translate import ChatCall
from mlx_router.api.wire import (
    SYSTEM_FINGERPRINT,
    answer_id,
    dumps,
    logprobs_list,
    timings_dict,
    usage_dict,
)
from mlx_router.domain import Completed, Delta, Finished, GenerationEvent, Started, ToolCallDelta
from mlx_router.errors import RouterError


class ChatChunks:
    """Encodes the events of one request; see :class:`~mlx_router.api.stream.Encoder`.

    ``shows_reasoning`` says of a model whether its reasoning is returned.
    """

    def __init__(self, call: ChatCall, shows_reasoning: Callable[[str], bool]) -> None:
        self.framing = JSON_LINES if call.streaming_format == "json_lines" else SSE
        self._shows_reasoning = shows_reasoning
        self._reasoning = True
        self._call = call
        self._id = answer_id()
        self._created = int(time.time())
        self._tail = (b',"usage":null}' if call.include_usage else b"}") + self.framing.after
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._delta_heads: list[bytes] = []
        self._text_heads: list[bytes] = []
        self._head = b""

    def encode(self, event: GenerationEvent) -> bytes:
        """The bytes of one event; empty if it has nothing for the client."""
        if isinstance(event, Delta):
            if event.reasoning or event.tool_calls or event.logprobs or self._call.token_ids:
                return self._rich(event)
            if not event.content:
                return b""
            return self._text_heads[event.index] + dumps(event.content) + self._text_tail
        if isinstance(event, Finished):
            rest = b'{},"logprobs":null,"finish_reason":' + dumps(event.reason) + b"}]"
            return self._delta_heads[event.index] + rest + self._tail
        if isinstance(event, Started):
            return self._start(event)
        return self._usage(event) + self.framing.done

    def error(self, error: RouterError) -> bytes:
        """An error in the middle of the stream, and its end."""
        return self.framing.before + error_body(error) + self.framing.after + self.framing.done

    def _start(self, started: Started) -> bytes:
        """Prepare the templates; the role chunk of every choice."""
        self._reasoning = self._shows_reasoning(started.model)
        same = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": started.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
        self._head = self.framing.before + dumps(same)[:-1]
        choices = range(self._call.request.n)
        self._delta_heads = [
            self._head + b',"choices":[{"index":%d,"delta":' % index for index in choices
        ]
        self._text_heads = [head + b'{"content":' for head in self._delta_heads]
        role = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        roles = [head + role + self._tail for head in self._delta_heads]
        if self._call.token_ids:
            ids = b'],"prompt_token_ids":' + dumps(list(started.prompt_token_ids))
            roles[0] = self._delta_heads[0] + role[:-1] + ids + self._tail
        return b"".join(roles)

    def _rich(self, event: Delta) -> bytes:
        """A chunk with more than text."""
        delta: dict[str, Any] = {}
        if event.reasoning and self._reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.content:
            delta["content"] = event.content
        if event.tool_calls:
            delta["tool_calls"] = _tool_calls(event.tool_calls)
        shown: dict[str, Any] = {"logprobs": None, "finish_reason": None}
        if event.logprobs:
            shown["logprobs"] = {"content": logprobs_list(event.logprobs), "refusal": None}
        if self._call.token_ids:
            shown["token_ids"] = list(event.token_ids)
        if not delta and not event.logprobs and not shown.get("token_ids"):
            return b""
        head = self._delta_heads[event.index]
        return head + dumps(delta) + b"," + dumps(shown)[1:] + b"]" + self._tail

    def _usage(self, done: Completed) -> bytes:
        if not self._call.include_usage:
            return b""
        last = {"choices": [], "usage": usage_dict(done.usage), "timings": timings_dict(done)}
        return self._head + b"," + dumps(last)[1:] + self.framing.after


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
