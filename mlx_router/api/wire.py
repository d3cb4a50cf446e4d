"""Small pieces of an answer that streamed and whole answers share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import orjson

from mlx_router.domain import Completed, Delta, Pressure, Started, TokenLogprob, Usage
from mlx_router.version import __version__

SYSTEM_FINGERPRINT = "fp_" + hashlib.sha256(__version__.encode()).hexdigest()[:10]
_MIN_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON does not have
_MAX_HEADER = 400


def answer_id(prefix: str) -> str:
    return f"{prefix}-{token_hex(12)}"


def dumps(value: object) -> bytes:
    """JSON; a lone surrogate, which UTF-8 cannot say, becomes a question mark."""
    try:
        return orjson.dumps(value)
    except TypeError:
        if isinstance(value, str):
            return orjson.dumps(value.encode(errors="replace").decode())
        raise


def header_value(text: str) -> str:
    """``text`` as a header can carry it: printable ASCII, the rest percent-encoded, cut."""
    return quote(text, safe=" !#$&'()*+,/:;=?@[]~|<>^`{}\"", errors="replace")[:_MAX_HEADER]


def without_reasoning(event: Delta) -> Delta:
    """The event without its reasoning, and without the tokens of that, which would spell it."""
    begin = event.reasoning_tokens
    return replace(
        event,
        reasoning="",
        token_ids=event.token_ids[begin:],
        logprobs=event.logprobs[begin:],
        reasoning_tokens=0,
    )


def usage_dict(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def timings_dict(done: Completed) -> dict[str, Any]:
    """The ``timings`` extension, under llama.cpp's names; milliseconds and tokens per second.

    ``prompt_n`` counts the prompt tokens that were computed, ``cache_n`` those that were reused.
    """
    usage, timings = done.usage, done.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "queue_ms": round(timings.queued * 1e3, 3),
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": round(timings.prefill * 1e3, 3),
        "prompt_per_second": _rate(computed, timings.prefill),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(timings.decode * 1e3, 3),
        "predicted_per_second": _rate(usage.completion_tokens, timings.decode),
    }


def logprobs_list(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            **_token(item.raw, item.logprob),
            "top_logprobs": [_token(raw, logprob) for _, raw, logprob in item.top],
        }
        for item in logprobs
    ]


def text_logprobs(logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The logprobs of a completion, four lists of one length. ``text_offset`` counts the characters
    of ``tokens``, from ``offset`` on. The alternatives include the token itself."""
    tokens = [item.text for item in logprobs]
    tops = []
    for item, token in zip(logprobs, tokens, strict=True):
        top: dict[str, float] = {}
        for _, raw, logprob in item.top:  # the likeliest first; others may read the same
            top.setdefault(raw.decode(errors="replace"), _finite(logprob))
        top.setdefault(token, _finite(item.logprob))
        tops.append(top)
    offsets = list(accumulate(map(len, tokens), initial=offset))[:-1]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(item.logprob) for item in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def started_headers(started: Started | None) -> dict[str, str]:
    """Which model answers, under which memory pressure if any, why with fewer tokens or messages
    than asked for, if so, and what else there is to be said."""
    if started is None:
        return {}
    headers = {"x-mlx-router-model": header_value(started.model)}
    if started.pressure is not Pressure.NORMAL:
        headers["x-mlx-router-memory-pressure"] = started.pressure
    if started.clamped is not None:
        headers["x-mlx-router-max-tokens"] = str(started.max_tokens)
        headers["x-mlx-router-clamped"] = header_value(started.clamped)
    if started.summarized_messages:
        headers["x-mlx-router-summarized"] = str(started.summarized_messages)
    if started.notices:
        headers["x-mlx-router-notice"] = header_value(" ".join(started.notices))
    return headers


def prompt_notes(started: Started) -> dict[str, Any]:
    """What a chat's answer says of its prompt: the extension ``context`` if older messages were
    summarised, and ``notices`` if there are any."""
    notes: dict[str, Any] = {}
    if started.summarized_messages:
        notes["context"] = {
            "summarized_messages": started.summarized_messages,
            "summary_tokens": started.summary_tokens,
        }
    if started.notices:
        notes["notices"] = list(started.notices)
    return notes


def _token(raw: bytes, logprob: float) -> dict[str, Any]:
    text = raw.decode(errors="replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def _finite(logprob: float) -> float:
    # not >=, so that a NaN ends up here as well
    return logprob if logprob > _MIN_LOGPROB else _MIN_LOGPROB


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 2) if seconds > 0 else 0.0
