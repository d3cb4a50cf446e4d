"""What every request for text says alike: who writes, how it samples, and how it is answered."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_router.api.schemas.base import GenerationFields
from mlx_router.api.service import Caller
from mlx_router.api.validation import shorten
from mlx_router.config.settings import Settings
from mlx_router.domain import GenerationRequest, Prompt, SamplingOptions
from mlx_router.errors import InvalidRequest, ModelNotFound

MAX_MODEL_NAME = 512

# An answer that is read as a whole needs few events; after 50 ms one is made anyway.
_WHOLE_ANSWER = 1024

# The most that the runtime takes: more than any context, so it is clamped, as all that is too much.
_MOST_TOKENS = 10**9

_TOKEN_ID = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How an answer is to be written. ``token_ids``: show them beside the text."""

    stream: bool
    streaming_format: str
    include_usage: bool = False
    token_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a request is answered. ``ignored`` are fields without effect and ``warnings`` sentences;
    both go into headers."""

    delivery: Delivery
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def delivery(wire: GenerationFields, settings: Settings) -> Delivery:
    """What the request says about it, and where it is silent the settings."""
    streaming_format = wire.streaming_format or settings.defaults.streaming_format
    stream = settings.defaults.stream if wire.stream is None else wire.stream
    return Delivery(
        # a json_array is one object, sent at the end
        stream=stream and streaming_format != "json_array",
        streaming_format=streaming_format,
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        token_ids=bool(wire.return_token_ids),
    )


def generation_request(
    wire: GenerationFields,
    prompt: Prompt,
    settings: Settings,
    *,
    caller: Caller,
    stream: bool,
    max_tokens: int | None,
    logprobs: int | None,
) -> GenerationRequest:
    """The runtime's request. Raises InvalidRequest that names the field, and ModelNotFound."""
    return GenerationRequest(
        prompt=prompt,
        model=model_name(wire.model),
        request_id=caller.request_id,
        sampling=_sampling(wire),
        max_tokens=None if max_tokens is None else min(max_tokens, _MOST_TOKENS),
        stop=(wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop or ()),
        n=wire.n or 1,
        # Random generators take unsigned numbers; a negative seed stays a seed of its own.
        seed=None if wire.seed is None else wire.seed & (2**63 - 1),
        logit_bias=_logit_bias(wire.logit_bias),
        logprobs=logprobs,
        timeout=wire.timeout,
        ignore_eos=bool(wire.ignore_eos),
        chunk_tokens=settings.defaults.stream_chunk_size if stream else _WHOLE_ANSWER,
        cache_scope=caller.cache_scope,
    )


def model_name(name: str | None) -> str | None:
    """The name to look for; None: the default model. Raises ModelNotFound for an endless one."""
    if name is not None and len(name) > MAX_MODEL_NAME:
        raise ModelNotFound(f"There is no model {shorten(name)}.", param="model")
    return name or None


def _sampling(wire: GenerationFields) -> SamplingOptions:
    return SamplingOptions(
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=wire.top_k,
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
    )


def _logit_bias(wire: dict[str, float] | None) -> dict[int, float]:
    if not wire:
        return {}
    for key in wire:
        if not _TOKEN_ID.fullmatch(key):
            raise InvalidRequest(
                f"logit_bias must have token ids as keys (got {shorten(key)}).", param="logit_bias"
            )
    return {int(key): value for key, value in wire.items()}
