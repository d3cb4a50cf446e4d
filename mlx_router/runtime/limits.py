"""Which sampling and which token limit an answer gets: pure, from request, config and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_router.config.settings import Settings
from mlx_router.domain import (
    ChatPrompt,
    GenerationRequest,
    ModelCard,
    NamedTool,
    Pressure,
    SamplingOptions,
)
from mlx_router.engine.base import Sampling
from mlx_router.errors import ContextLengthExceeded, InvalidRequest
from mlx_router.memory.policy import TokenLimits

FALLBACK_SAMPLING = SamplingOptions(
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)


def decide_sampling(
    request: GenerationRequest, entry: SamplingOptions, model_file: SamplingOptions
) -> Sampling:
    """Request before config entry before the model's generation_config.json before defaults."""
    chosen = request.sampling.over(entry).over(model_file).over(FALLBACK_SAMPLING)
    values = {name: getattr(chosen, name) for name in SamplingOptions.__dataclass_fields__}
    return Sampling(**values, logit_bias=request.logit_bias, seed=request.seed)


def model_max_tokens(card: ModelCard, settings: Settings) -> int:
    """Tokens that an answer of this model may have, before memory pressure."""
    entry = settings.for_model(card.id)
    if entry.max_tokens is not None:
        return entry.max_tokens
    if entry.memory_pressure_max_tokens is not None:
        return entry.memory_pressure_max_tokens.normal
    return min(card.context_length, settings.defaults.max_tokens)


def token_limits(card: ModelCard, settings: Settings) -> TokenLimits:
    """Tokens that an answer of this model may have under each memory pressure, at most
    :func:`model_max_tokens`. What the config does not state follows from the ``max_tokens`` that
    it states, else from the model."""
    entry, most = settings.for_model(card.id), model_max_tokens(card, settings)
    if (own := entry.memory_pressure_max_tokens) is not None:
        return TokenLimits(own.normal, own.moderate, own.high, own.critical).capped(most)
    if entry.max_tokens is not None:
        return TokenLimits.for_stated(most)
    return TokenLimits.for_discovered(most)


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """``clamped`` says why this is less than the request asked for; None if it is not."""

    max_tokens: int
    clamped: str | None = None


def decide_max_tokens(
    asked: int | None,
    *,
    model_limit: int,
    pressure_limit: int,
    pressure: Pressure,
    context_length: int,
    prompt_tokens: int,
    is_chat: bool = True,
) -> TokenLimit:
    """The most tokens the answer may have. What a client asks beyond that is clamped, not refused:
    agents ask for 32,000 whatever the context. Raises ContextLengthExceeded if the prompt leaves no
    room at all."""
    room = context_length - prompt_tokens
    if room < 1:
        raise _context_exceeded(context_length, prompt_tokens, asked, is_chat=is_chat)
    limits = [
        (model_limit, "the model's max_tokens"),
        (room, "the room left in the context"),
        (pressure_limit, f"memory pressure ({pressure})"),
    ]
    least, reason = min(limits, key=lambda limit: limit[0])
    if asked is not None and asked <= least:
        return TokenLimit(asked)
    # Who asks for nothing gets the model's limit; less than that wants a word, too.
    expected = asked if asked is not None else min(model_limit, room)
    return TokenLimit(least, reason if least < expected else None)


def _context_exceeded(
    context_length: int, prompt_tokens: int, asked: int | None, *, is_chat: bool
) -> ContextLengthExceeded:
    """The error for a prompt that leaves no room, in OpenAI's words: clients search for them."""
    if is_chat:
        return ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your "
            f"messages resulted in {prompt_tokens} tokens. Please reduce the length of the "
            "messages.",
            param="messages",
        )
    completion = asked or 1  # nobody asks for nothing
    return ContextLengthExceeded(
        f"This model's maximum context length is {context_length} tokens, however you requested "
        f"{prompt_tokens + completion} tokens ({prompt_tokens} in your prompt; {completion} for "
        "the completion). Please reduce your prompt; or completion length.",
        param="prompt",
    )


def check_token_ids(ids: Mapping[int, Any] | list[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for an id the model does not have: MLX would read foreign memory."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"Token id {token_id} is not in the model's vocabulary (0 to {vocab_size - 1}).",
                param=param,
            )


# field -> (type, least, most); the HTTP API has narrower bounds of its own for some.
_BOUNDS: dict[str, tuple[type, float, float]] = {
    "max_tokens": (int, 1, 10**9),
    "n": (int, 1, 128),
    "seed": (int, -(2**63), 2**64 - 1),
    "logprobs": (int, 0, 100),
    "timeout": (float, 0, 10**6),
    "chunk_tokens": (int, 1, 10**6),
    "temperature": (float, 0, 100),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 10**9),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 1e-3, 100),
    "presence_penalty": (float, -100, 100),
    "frequency_penalty": (float, -100, 100),
}


def check_request(request: GenerationRequest) -> None:
    """Raises InvalidRequest for a value that an engine could not work with: inside a step it would
    hurt other requests. Programs come here without the HTTP API's validation."""
    for name, (kind, least, most) in _BOUNDS.items():
        holder = request if hasattr(request, name) else request.sampling
        value = getattr(holder, name)
        if value is None:
            continue
        fits = isinstance(value, int if kind is int else int | float)
        if not fits or isinstance(value, bool) or not least <= value <= most:
            raise InvalidRequest(
                f"{name} is {_article(kind)} from {least:g} to {most:g}, not {value!r}.", param=name
            )
    for token_id, bias in request.logit_bias.items():
        if not isinstance(token_id, int) or not isinstance(bias, int | float) or bias != bias:
            raise InvalidRequest("logit_bias maps token ids to numbers.", param="logit_bias")
    if isinstance(request.prompt, ChatPrompt):
        _check_tool_choice(request.prompt)
    if not all(isinstance(text, str) and text for text in request.stop):
        raise InvalidRequest("stop is one text or several, none of them empty.", param="stop")
    _check_overflow(request)


def _check_overflow(request: GenerationRequest) -> None:
    overflow = request.context_overflow
    if overflow not in (None, "error", "summarize"):
        raise InvalidRequest(
            f"context_overflow is 'error' or 'summarize', not {overflow!r}.",
            param="context_overflow",
        )
    if overflow == "summarize" and not isinstance(request.prompt, ChatPrompt):
        raise InvalidRequest(
            "context_overflow 'summarize' is for chats; a plain prompt has no messages.",
            param="context_overflow",
        )


def _check_tool_choice(prompt: ChatPrompt) -> None:
    choice, names = prompt.tool_choice, [tool.name for tool in prompt.tools]
    if isinstance(choice, NamedTool) and choice.name not in names:
        raise InvalidRequest(
            f"tool_choice names {choice.name!r}, which is not in tools ({', '.join(names)}).",
            param="tool_choice",
        )
    if choice == "required" and not names:
        raise InvalidRequest("tool_choice 'required' needs tools.", param="tool_choice")


def _article(kind: type) -> str:
    return "a whole number" if kind is int else "a number"
