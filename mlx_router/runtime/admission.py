"""What a request may have of a model: decided from request, card, config and pressure. Pure."""

from __future__ import annotations

from dataclasses import replace

from mlx_router.config.settings import Settings
from mlx_router.domain import (
    ChatPrompt,
    GenerationRequest,
    ImagePart,
    ModelCard,
    ModelKind,
    Picture,
    Pressure,
)
from mlx_router.errors import INSTALL_VISION, InvalidRequest, UnsupportedParameter
from mlx_router.runtime.generation import Plan
from mlx_router.runtime.limits import (
    TokenLimit,
    decide_max_tokens,
    decide_sampling,
    model_max_tokens,
    token_limits,
)


def check_ability(card: ModelCard, request: GenerationRequest, settings: Settings) -> None:
    """Refuse what this model cannot do, before it costs a load. Raises InvalidRequest and
    UnsupportedParameter."""
    if card.kind not in (ModelKind.TEXT, ModelKind.VISION):
        raise InvalidRequest(
            f"{card.id} is a model of kind {card.kind} and does not write text.", param="model"
        )
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return
    check_sight(card, prompt)
    if prompt.tools and not settings.defaults.enable_function_calling:
        raise UnsupportedParameter(
            "Tools are switched off on this server (enable_function_calling).", param="tools"
        )


def check_sight(card: ModelCard, prompt: ChatPrompt) -> None:
    """Raises InvalidRequest for images to a model that sees none."""
    if card.kind is ModelKind.VISION:
        return
    if any(isinstance(part, ImagePart | Picture) for part in prompt.parts):
        what = "; ask a model of kind vision."
        if card.blind:
            what = f", since mlx-vlm is not installed here. To install it: {INSTALL_VISION}."
        raise InvalidRequest(f"{card.id} cannot see images{what}", param="messages")


def make_plan(
    card: ModelCard, request: GenerationRequest, settings: Settings, pressure: Pressure
) -> Plan:
    """Sampling, token limit and timeout of the answer, and whose computed prompts it may reuse."""
    if settings.prefix_cache.shared:
        request = replace(request, cache_scope="")
    entry, defaults = settings.for_model(card.id), settings.defaults
    model_limit = model_max_tokens(card, settings)
    pressure_limit = token_limits(card, settings).at(pressure)

    def limit(prompt_tokens: int) -> TokenLimit:
        return decide_max_tokens(
            request.max_tokens,
            model_limit=model_limit,
            pressure_limit=pressure_limit,
            pressure=pressure,
            context_length=card.context_length,
            prompt_tokens=prompt_tokens,
            is_chat=isinstance(request.prompt, ChatPrompt),
        )

    return Plan(
        request=request,
        sampling=lambda codec: decide_sampling(request, entry.sampling(), codec.sampling),
        limit=limit,
        pressure=pressure,
        timeout=request.timeout or defaults.timeout,
        chunk_tokens=request.chunk_tokens or defaults.stream_chunk_size,
    )
