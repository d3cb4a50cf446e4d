"""The nouns of MLX Router: frozen values that travel between its packages.

Standard library only. A request comes in as one :class:`GenerationRequest`, whatever API it was
written for; an answer goes out as a series of :data:`GenerationEvent`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

USUAL_TOKENS = 8192  # of a conversation: what memory is reckoned for, unless the context is shorter
GIB = 2**30  # bytes in a GB, as memory is counted here: in settings, logs, tables and answers

# --- models ---------------------------------------------------------------------------------


class ModelKind(StrEnum):
    """What a model is for."""

    TEXT = "text"
    VISION = "vision"
    EMBEDDING = "embedding"
    RERANKER = "reranker"


class ModelState(StrEnum):
    """Where a model is in its life."""

    UNLOADED = "unloaded"
    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNUSABLE = "unusable"


class Pressure(StrEnum):
    """How short memory is."""

    NORMAL = "normal"
    MODERATE = "moderate"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class MLXMemory:
    """What MLX holds, in bytes: ``active`` is in use, ``cache`` is kept for reuse and can be
    dropped, ``peak`` is the most that was ever active. ``in_ram``: it is the machine's memory, not
    a graphics card's own."""

    active: int = 0
    cache: int = 0
    peak: int = 0
    in_ram: bool = True


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model from its files, without importing or running anything.

    Sizes are bytes. ``required_bytes`` is what the model takes while it computes a conversation of
    :attr:`usual_tokens`: weights, ``cache_bytes`` of KV cache, and what a step needs besides.
    ``fingerprint`` changes with the model's config and weights; empty for one without files.
    ``problem`` says in one sentence why the model cannot be used, naming the file; None if it can.
    """

    id: str
    path: Path
    kind: ModelKind
    architecture: str
    size_bytes: int = 0
    weight_bytes: int = 0
    parameters: int = 0
    quantization: str | None = None
    context_length: int = 4096
    kv_bytes_per_token: int = 0
    cache_bytes: int = 0
    required_bytes: int = 0
    supports_tools: bool = False
    supports_reasoning: bool = False
    created: int = 0
    fingerprint: str = ""
    problem: str | None = None

    @property
    def short_name(self) -> str:
        """The part after the slash: ``mlx-community/Qwen3-4B`` is also known as ``Qwen3-4B``."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def usual_tokens(self) -> int:
        """The length of the conversation that memory is reckoned for."""
        return min(self.context_length, USUAL_TOKENS)

    @property
    def supports_vision(self) -> bool:
        return self.kind is ModelKind.VISION


# --- requests -------------------------------------------------------------------------------

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image as the client named it: a data URI or an http(s) URL."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


ContentPart = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model. ``arguments`` is JSON text, as OpenAI sends it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str | tuple[ContentPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The text of the message, parts joined; images left out."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class NamedTool:
    """tool_choice that names one function."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer must look like. ``schema`` is set for ``json_schema`` only."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: Mapping[str, Any] | None = None
    strict: bool = False


# Variables of chat templates that are ours to set: a client that set them could forge the
# conversation.
RESERVED_TEMPLATE_VARIABLES = frozenset(
    {
        *("messages", "tools", "documents", "conversation", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "raise_exception"),
        *("return_dict", "return_tensors"),
        *("bos_token", "eos_token", "unk_token", "pad_token"),
    }
)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    reasoning_effort: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def restricts_answer(self) -> bool:
        """Whether the answer must have a form: a response format, a forced or a strict tool."""
        if self.response_format.type != "text":
            return True
        if not self.tools or self.tool_choice == "none":
            return False
        return self.tool_choice != "auto" or any(tool.strict for tool in self.tools)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Raw text, or token ids, to be continued without a chat template."""

    text: str | None = None
    token_ids: tuple[int, ...] = ()


Prompt = ChatPrompt | TextPrompt

ContextOverflow = Literal["error", "summarize"]  # what becomes of a chat longer than the context


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What a client, a config entry or a model file says about sampling; None: not said."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def over(self, other: SamplingOptions) -> SamplingOptions:
        """These options, and where they are silent the other's."""
        pairs = {
            name: mine if (mine := getattr(self, name)) is not None else getattr(other, name)
            for name in self.__dataclass_fields__
        }
        return SamplingOptions(**pairs)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request for text, from any API or from the library.

    ``timeout`` is in seconds for the whole answer; ``logprobs`` the number of alternatives per
    token (0: the chosen one only), None for no logprobs. ``chunk_tokens`` is how many tokens an
    event may gather before it is sent (it is sent after 50 ms at the latest).
    ``context_overflow`` is for chats; None: as the config says.
    """

    prompt: Prompt
    model: str | None = None
    request_id: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    timeout: float | None = None
    ignore_eos: bool = False
    chunk_tokens: int | None = None
    context_overflow: ContextOverflow | None = None


# --- answers --------------------------------------------------------------------------------


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
    long; ``summary_tokens`` were generated for it, which the usage does not count.
    """

    model: str
    prompt_tokens: int
    max_tokens: int
    pressure: Pressure = Pressure.NORMAL
    clamped: str | None = None
    prompt_token_ids: tuple[int, ...] = ()
    summarized_messages: int = 0
    summary_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of choice ``index``. ``token_ids`` are the tokens that it was decoded from: first
    ``reasoning_tokens`` of reasoning and its markers, then the others. ``logprobs`` are theirs."""

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    reasoning_tokens: int = 0


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
