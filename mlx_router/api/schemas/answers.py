"""What the API answers, for the OpenAPI description only: answers are written without pydantic,
and the tests hold them against these models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_router.config.changes import TakesEffect


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Answer):
    """Every error, as OpenAI writes it."""

    error: ErrorDetail


# --- chat -----------------------------------------------------------------------------------


class CalledFunctionOut(Answer):
    name: str
    arguments: str = Field(description="JSON text.")


class ToolCallOut(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunctionOut


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str | None = Field(description="Null if there are tool calls only.")
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallOut] | None = None


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobOut(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    content: list[TokenLogprobOut]
    refusal: None = None


class Choice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class PromptTokensDetails(Answer):
    cached_tokens: int


class CompletionTokensDetails(Answer):
    reasoning_tokens: int


class UsageOut(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TimingsOut(Answer):
    """Milliseconds, and tokens per second. prompt_n: computed, cache_n: reused prompt tokens."""

    queue_ms: float
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class ContextOut(Answer):
    """Only of a chat that was too long, and whose older messages a summary took the place of."""

    summarized_messages: int
    summary_tokens: int = Field(description="Generated for the summary; not part of usage.")


Notices = Annotated[
    list[str] | None,
    Field(description="Sentences about the prompt, such as that a PDF was cut; only if any."),
]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageOut
    system_fingerprint: str
    timings: TimingsOut
    context: ContextOut | None = None
    notices: Notices = None
    prompt_token_ids: list[int] | None = None


# --- a chat in chunks -----------------------------------------------------------------------


class CalledFunctionDelta(Answer):
    name: str | None = Field(None, description="In the first piece of a call only.")
    arguments: str = Field(description="A piece of JSON text.")


class ToolCallDelta(Answer):
    """A piece of the call ``index``; id and type are in its first piece only."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class MessageDelta(Answer):
    role: Literal["assistant"] | None = Field(None, description="In the first chunk only.")
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answer):
    index: int
    delta: MessageDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = Field(
        description="In the last chunk of the choice."
    )
    token_ids: list[int] | None = None


class ChatCompletionChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice] = Field(description="One; none in the chunk that has the usage.")
    usage: UsageOut | None = Field(None, description="With stream_options.include_usage.")
    timings: TimingsOut | None = None
    context: ContextOut | None = None
    notices: Notices = None
    prompt_token_ids: list[int] | None = None


# --- completions and tokens -----------------------------------------------------------------


class TextLogprobs(Answer):
    """Lists of one length. text_offset: where each token begins in the joined tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answer):
    text: str
    index: int = Field(description="Answer i of prompt k has k * n + i.")
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageOut


class TextChunkChoice(Answer):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(
        description="In the last chunk of the choice."
    )
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChunk(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChunkChoice] = Field(description="One; none in the chunk with the usage.")
    usage: UsageOut | None = Field(None, description="With stream_options.include_usage.")


class Tokenized(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = Field(None, description="With return_token_strs.")


class Detokenized(Answer):
    prompt: str


# --- embeddings -----------------------------------------------------------------------------


class EmbeddingOut(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="A text with encoding_format base64.")


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: EmbeddingUsage


# --- POST /admin/reload ----------------------------------------------------------------------


class SettingChange(Answer):
    setting: str = Field(description='As in `models["org/name"].pinned`.')
    before: Any
    after: Any
    takes_effect: TakesEffect


class ConfigReload(Answer):
    object: Literal["config.reload"]
    changes: list[SettingChange]


class Shutdown(Answer):
    object: Literal["server.shutdown"]
    grace_seconds: float
