"""A chat answer as one ``chat.completion`` object."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_router.api.translate import ChatCall
from mlx_router.api.wire import (
    SYSTEM_FINGERPRINT,
    answer_id,
    logprobs_list,
    timings_dict,
    usage_dict,
)
from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    GenerationEvent,
    Started,
    TokenLogprob,
    ToolCallDelta,
)
from mlx_router.errors import EngineFailed


@dataclass(slots=True)
class _Choice:
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Delta) -> None:
        self.content.append(event.content)
        self.reasoning.append(event.reasoning)
        self.logprobs.extend(event.logprobs)
        self.token_ids.extend(event.token_ids)
        for delta in event.tool_calls:
            self._add_call(delta)

    def _add_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.setdefault(delta.index, {"id": "", "name": "", "arguments": []})
        call["id"] = delta.id or call["id"]
        call["name"] = delta.name or call["name"]
        call["arguments"].append(delta.arguments)

    def message(self, *, show_reasoning: bool) -> dict[str, Any]:
        content = "".join(self.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.calls and not content else content,
            "refusal": None,
        }
        reasoning = "".join(self.reasoning)
        if reasoning and show_reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
                }
                for _, call in sorted(self.calls.items())
            ]
        return message


@dataclass(slots=True)
class ChatAnswer:
    """The events of one request, gathered."""

    call: ChatCall
    started: Started | None = None
    done: Completed | None = None
    choices: list[_Choice] = field(default_factory=list)

    async def gather(self, events: AsyncGenerator[GenerationEvent, None]) -> None:
        """Read all events, and close ``events`` in any case. Raises what they raise, and
        EngineFailed if they end early."""
        self.choices = [_Choice() for _ in range(self.call.request.n)]
        try:
            async for event in events:
                if isinstance(event, Delta):
                    self.choices[event.index].add(event)
                elif isinstance(event, Finished):
                    self.choices[event.index].finished = event
                elif isinstance(event, Started):
                    self.started = event
                else:
                    self.done = event
        finally:
            await events.aclose()
        if self.started is None or self.done is None:
            raise EngineFailed("The answer ended before it was complete.")

    @property
    def timed_out(self) -> bool:
        return any(c.finished is not None and c.finished.timed_out for c in self.choices)

    def body(self, shows_reasoning: Callable[[str], bool]) -> dict[str, Any]:
        """The chat.completion object; call it after :meth:`gather`. ``shows_reasoning`` says of a
        model whether its reasoning is returned."""
        assert self.started is not None
        assert self.done is not None
        show = shows_reasoning(self.started.model)
        choices = []
        for index, choice in enumerate(self.choices):
            entry: dict[str, Any] = {
                "index": index,
                "message": choice.message(show_reasoning=show),
                "logprobs": None,
                "finish_reason": choice.finished.reason if choice.finished else "stop",
            }
            if self.call.request.logprobs is not None:
                found = logprobs_list(choice.logprobs)
                entry["logprobs"] = {"content": found, "refusal": None}
            if self.call.token_ids:
                entry["token_ids"] = choice.token_ids
            choices.append(entry)
        body: dict[str, Any] = {
            "id": answer_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.started.model,
            "choices": choices,
            "usage": usage_dict(self.done.usage),
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "timings": timings_dict(self.done),
        }
        if self.call.token_ids:
            body["prompt_token_ids"] = list(self.started.prompt_token_ids)
        return body
