"""From the wire's completion request to the runtime's requests, one for each prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlx_router.api.fields import COMPLETIONS_REFUSED, sort_fields
from mlx_router.api.generation import Call, delivery, generation_request
from mlx_router.api.schemas.completions import MAX_PROMPTS, MAX_TOKEN_ID, CompletionRequest
from mlx_router.api.service import ANONYMOUS, Caller
from mlx_router.api.validation import parse, shorten
from mlx_router.config.settings import Settings
from mlx_router.domain import GenerationRequest, TextPrompt
from mlx_router.errors import InvalidRequest, UnsupportedParameter

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall(Call):
    """A completion request: one request of the runtime for each prompt, alike in all else."""

    requests: tuple[GenerationRequest, ...]
    echo: bool = False

    @property
    def n(self) -> int:
        """Choices for each prompt; choice i of prompt k is number k * n + i."""
        return self.requests[0].n


def completion_call(
    data: dict[str, Any], settings: Settings, caller: Caller = ANONYMOUS
) -> CompletionCall:
    """Check and translate a request body. Raises InvalidRequest that names the field."""
    ignored = sort_fields(data, CompletionRequest, COMPLETIONS_REFUSED)
    wire = parse(CompletionRequest, data)
    if wire.best_of not in (None, 1, wire.n or 1):
        raise UnsupportedParameter(
            "best_of must be 1 or the same as n: all answers are returned, none is picked "
            f"(got {wire.best_of}).",
            param="best_of",
        )
    if wire.echo and wire.logprobs is not None:
        raise UnsupportedParameter(
            "echo and logprobs cannot be combined: there are no logprobs of the prompt.",
            param="echo",
        )
    prompts = _prompts(wire.prompt)
    how = delivery(wire, settings)
    common = generation_request(
        wire,
        prompts[0],
        settings,
        caller=caller,
        stream=how.stream,
        max_tokens=wire.max_tokens or _DEFAULT_MAX_TOKENS,
        logprobs=wire.logprobs,
    )
    requests = tuple(replace(common, prompt=prompt) for prompt in prompts)
    return CompletionCall(requests=requests, delivery=how, echo=bool(wire.echo), ignored=ignored)


def token_ids(value: object, at: str) -> tuple[int, ...]:
    """A list of token ids; raises InvalidRequest that names the place."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{at} must be a list of token ids (got {shorten(value)}).", param=at)
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item <= MAX_TOKEN_ID:
            raise InvalidRequest(
                f"{at}.{index} must be a token id, 0 to {MAX_TOKEN_ID} (got {shorten(item)}).",
                param=f"{at}.{index}",
            )
    return tuple(value)


def _prompts(value: object) -> tuple[TextPrompt, ...]:
    if not isinstance(value, list) or (value and type(value[0]) in (int, float, bool)):
        return (_prompt(value, "prompt"),)
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt must have 1 to {MAX_PROMPTS} items (got {len(value)}).", param="prompt"
        )
    return tuple(_prompt(item, f"prompt.{index}") for index, item in enumerate(value))


def _prompt(value: object, at: str) -> TextPrompt:
    if isinstance(value, str):
        return TextPrompt(value)
    if not isinstance(value, list):
        raise InvalidRequest(
            f"{at} must be a string or a list of token ids (got {shorten(value)}).", param=at
        )
    if not value:
        raise InvalidRequest(f"{at} must not be empty.", param=at)
    return TextPrompt(token_ids=token_ids(value, at))
