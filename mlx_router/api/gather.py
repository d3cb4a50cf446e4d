"""The events of a request, gathered into a whole answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    Started,
    TokenLogprob,
)
from mlx_router.errors import EngineFailed


@dataclass(slots=True)
class GatheredChoice:
    """All of one choice. ``calls`` are tool calls by their index."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def finish_reason(self) -> FinishReason:
        return self.finished.reason if self.finished is not None else FinishReason.STOP

    def add(self, event: Delta) -> None:
        self.content.append(event.content)
        self.reasoning.append(event.reasoning)
        self.logprobs.extend(event.logprobs)
        self.token_ids.extend(event.token_ids)
        for delta in event.tool_calls:
            call = self.calls.setdefault(delta.index, {"id": "", "name": "", "arguments": []})
            call["id"] = delta.id or call["id"]
            call["name"] = delta.name or call["name"]
            call["arguments"].append(delta.arguments)


class Gathered:
    """An answer of ``choices`` choices; :meth:`gather` fills it."""

    def __init__(self, choices: int) -> None:
        self.choices = [GatheredChoice() for _ in range(choices)]
        self.starts: list[Started] = []
        self._done: Completed | None = None

    async def gather(self, events: AsyncGenerator[GenerationEvent, None]) -> None:
        """Read all events, and close ``events`` in any case. Raises what they raise, and
        EngineFailed if they end early."""
        try:
            async for event in events:
                if isinstance(event, Delta):
                    self.choices[event.index].add(self._shown(event))
                elif isinstance(event, Finished):
                    self.choices[event.index].finished = event
                elif isinstance(event, Started):
                    self.starts.append(event)
                elif isinstance(event, Completed):
                    self._done = event
        finally:
            await events.aclose()
        if not self.starts or self._done is None:
            raise EngineFailed("The answer ended before it was complete.")

    def _shown(self, event: Delta) -> Delta:
        """What the client may see of it."""
        return event

    @property
    def started(self) -> Started:
        """What is true of the whole answer; after :meth:`gather` only."""
        return self.starts[-1]

    @property
    def done(self) -> Completed:
        """After :meth:`gather` only."""
        assert self._done is not None
        return self._done

    @property
    def timed_out(self) -> bool:
        return any(c.finished is not None and c.finished.timed_out for c in self.choices)
