"""What is asked of a model: one :class:`GenerationRequest`, whatever API it was written for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image, or a PDF, as the client named it: a data URI or an http(s) URL.

    ``pages`` of a PDF: ``"2-4,7"``, counted from 1; None: the first ones. ``name``: of the file.
    """

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    pages: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """What a model sees of an :class:`ImagePart`: an image, or one page of a PDF.

    ``rgb``: ``3 * width * height`` bytes, rows from the top, upright, without transparency.
    ``digest`` is the same for the same pixels, and for no others.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False)
    digest: str


ContentPart = TextPart | ImagePart | Picture


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
    """A chat to be answered. Models get :class:`Picture` in place of every :class:`ImagePart`."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    reasoning_effort: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[ContentPart, ...]:
        """The parts of all messages that are made of parts, in order."""
        contents = (message.content for message in self.messages)
        return tuple(part for parts in contents if isinstance(parts, tuple) for part in parts)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """What the model is to see, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

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
    ``context_overflow`` is for chats; None: as the config says. ``cache_scope``: computed prompts
    are reused among requests of the same scope only.
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
    cache_scope: str = ""
