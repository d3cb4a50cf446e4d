"""Which sampling and which token limit an answer gets: pure, from request, config and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_router.domain import GenerationRequest, Pressure, SamplingOptions
from mlx_router.engine.base import Sampling
from mlx_router.errors import ContextLengthExceeded, InvalidRequest

FALLBACK_SAMPLING = SamplingOptions(
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)

_MODEL_FILE_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def decide_sampling(
    request: GenerationRequest, entry: SamplingOptions, model_file: Mapping[str, Any]
) -> Sampling:
    """Request before config entry before the model's generation_config.json before defaults."""
    advised = SamplingOptions(**{k: model_file[k] for k in _MODEL_FILE_KEYS if k in model_file})
    chosen = request.sampling.over(entry).over(advised).over(FALLBACK_SAMPLING)
    values = {name: getattr(chosen, name) for name in SamplingOptions.__dataclass_fields__}
    return Sampling(**values, logit_bias=request.logit_bias, seed=request.seed)


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
) -> TokenLimit:
    """The most tokens the answer may have. What a client asks beyond that is clamped, not refused:
    agents ask for 32,000 whatever the context. Raises ContextLengthExceeded if the prompt leaves no
    room at all."""
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your "
            f"messages resulted in {prompt_tokens} tokens. Please reduce the length of the "
            "messages.",
            param="messages",
        )
    limits = {
        model_limit: "the model's max_tokens",
        pressure_limit: f"memory pressure ({pressure})",
        room: "the room left in the context",
    }
    least = min(limits)
    if asked is None or asked > least:
        return TokenLimit(least, limits[least] if asked is not None else None)
    return TokenLimit(asked)


def check_token_ids(ids: Mapping[int, Any] | list[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest for an id the model does not have: MLX would read foreign memory."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"Token id {token_id} is not in the model's vocabulary (0 to {vocab_size - 1}).",
                param=param,
            )
