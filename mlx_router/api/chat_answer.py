"""A chat answer as one ``chat.completion`` object."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mlx_router.api.gather import Gathered, GatheredChoice
from mlx_router.api.translate import ChatCall
from mlx_router.api.wire import (
    SYSTEM_FINGERPRINT,
    answer_id,
    logprobs_list,
    prompt_notes,
    timings_dict,
    usage_dict,
    without_reasoning,
)
from mlx_router.domain import Delta


class ChatAnswer(Gathered):
    """Gathers the events of one request. ``shows_reasoning`` says of a model whether its reasoning
    is returned."""

    def __init__(self, call: ChatCall, shows_reasoning: Callable[[str], bool]) -> None:
        super().__init__(call.request.n)
        self._call = call
        self._shows_reasoning = shows_reasoning

    def _shown(self, event: Delta) -> Delta:
        return event if self._shows_reasoning(self.started.model) else without_reasoning(event)

    def body(self) -> dict[str, Any]:
        """The chat.completion object; call it after :meth:`gather`."""
        choices = []
        for index, choice in enumerate(self.choices):
            entry: dict[str, Any] = {
                "index": index,
                "message": _message(choice),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            if self._call.request.logprobs is not None:
                found = logprobs_list(choice.logprobs)
                entry["logprobs"] = {"content": found, "refusal": None}
            if self._call.delivery.token_ids:
                entry["token_ids"] = choice.token_ids
            choices.append(entry)
        body: dict[str, Any] = {
            "id": answer_id("chatcmpl"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.started.model,
            "choices": choices,
            "usage": usage_dict(self.done.usage),
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "timings": timings_dict(self.done),
            **prompt_notes(self.started),
        }
        if self._call.delivery.token_ids:
            body["prompt_token_ids"] = list(self.started.prompt_token_ids)
        return body


def _message(choice: GatheredChoice) -> dict[str, Any]:
    content = "".join(choice.content)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.calls and not content else content,
        "refusal": None,
    }
    reasoning = "".join(choice.reasoning)
    if reasoning:
        message["reasoning_content"] = reasoning
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
            }
            for _, call in sorted(choice.calls.items())
        ]
    return message
