"""Which sampling and which token limit an answer gets."""

from __future__ import annotations

import pytest

from mlx_router.domain import GenerationRequest, Pressure, SamplingOptions, TextPrompt
from mlx_router.errors import ContextLengthExceeded
from mlx_router.runtime.limits import decide_max_tokens, decide_sampling

NOTHING = SamplingOptions()


def request(**sampling: float) -> GenerationRequest:
    return GenerationRequest(
        TextPrompt("x"),
        sampling=SamplingOptions(**sampling),  # type: ignore[arg-type]
        seed=7,
        logit_bias={3: 1.0},
    )


def test_request_comes_before_entry_before_model_file_before_defaults() -> None:
    entry = SamplingOptions(temperature=0.2, top_p=0.5, top_k=20)
    model_file = SamplingOptions(temperature=0.3, top_p=0.6, top_k=30, min_p=0.2)
    sampling = decide_sampling(request(temperature=0.0, top_p=0.9), entry, model_file)
    assert (sampling.temperature, sampling.top_p) == (0.0, 0.9)
    assert sampling.top_k == 20
    assert sampling.min_p == 0.2
    assert (sampling.presence_penalty, sampling.repetition_penalty) == (0.0, 1.0)
    assert (sampling.seed, dict(sampling.logit_bias)) == (7, {3: 1.0})


def test_where_nobody_says_anything() -> None:
    sampling = decide_sampling(request(), NOTHING, NOTHING)
    chosen = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    assert chosen == (0.7, 0.9, 40, 0.05)


def test_a_prompt_that_fills_the_context_is_refused_in_openais_words() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        decide_max_tokens(
            10,
            model_limit=4096,
            pressure_limit=4096,
            pressure=Pressure.NORMAL,
            context_length=100,
            prompt_tokens=100,
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.message.startswith(
        "This model's maximum context length is 100 tokens. However, your messages resulted in "
        "100 tokens."
    )
