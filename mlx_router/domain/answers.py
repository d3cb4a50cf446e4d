"""What comes of a request: a series of :data:`GenerationEvent`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mlx_router.domain.models import Pressure


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its bytes (``raw``) and natural-log probability, and the likeliest alternatives in
    the same form. A token may be a part of a character: only joined bytes are UTF-8 text."""

    token_id: int
    raw: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()

    @property
    def text(self) -> str:
        return self.raw.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: the first piece has id and name, the others more arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: ``queued`` until the engine took it (a load included), ``prefill`` until the first
    token, ``decode`` from first to last token."""

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Preparing:
    """The request waits, and for what: ``downloading org/name 34 % of 4.2 GB``. Any number of them
    may come, a few seconds apart, before Started; none after it."""

    text: str


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted: which model answers, and under which limits.

    ``clamped`` says in words why ``max_tokens`` is less than was asked for; None if it is not.
    ``summarized_messages``: how many messages a summary took the place of, since the chat was too
    long; ``summary_tokens`` were generated for it, which the usage does not count. ``notices``
    are sentences for the client, such as that only the first pages of a PDF were read.
    """

    model: str
    prompt_tokens: int
    max_tokens: int
    pressure: Pressure = Pressure.NORMAL
    clamped: str | None = None
    prompt_token_ids: tuple[int, ...] = ()
    summarized_messages: int = 0
    summary_tokens: int = 0
    notices: tuple[str, ...] = ()


@dataclass(slots=True)  # one is made per token, and freezing would cost six times as much
class Delta:
    """New text of choice ``index``. ``token_ids`` are the tokens that it was decoded from: first
    ``reasoning_tokens`` of reasoning and its markers, then the others. ``logprobs`` are theirs.
    ``more``: the next event is there already, so whoever writes may write them together."""

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    reasoning_tokens: int = 0
    more: bool = field(default=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """Choice ``index`` is complete. ``timed_out``: it was ended by the timeout (reason length)."""

    index: int
    reason: FinishReason
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of a request: all choices are complete."""

    usage: Usage
    timings: Timings = field(default_factory=Timings)


AnswerEvent = Started | Delta | Finished | Completed
GenerationEvent = Preparing | AnswerEvent
