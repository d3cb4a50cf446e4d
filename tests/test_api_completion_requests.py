"""Fields of POST /v1/completions: each is honoured, or refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_router.api.completions import CompletionCall, completion_call
from mlx_router.api.schemas.completions import CompletionRequest
from mlx_router.config.settings import Settings
from mlx_router.domain import TextPrompt
from mlx_router.errors import RouterError
from tests.api_support import MODEL, FakeManager, client_for


async def complete(manager: FakeManager, **body: Any) -> httpx.Response:
    async with client_for(manager) as client:
        return await client.post("/v1/completions", json={"prompt": "Hello", **body})


async def refusal(**body: Any) -> dict[str, Any]:
    manager = FakeManager()
    response = await complete(manager, **body)
    assert response.status_code == 400, response.text
    assert not manager.requests
    error: dict[str, Any] = response.json()["error"]
    return error


async def test_every_field_arrives() -> None:
    manager = FakeManager()
    response = await complete(
        manager,
        model="org/tiny-model",
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=1,
        frequency_penalty=-1,
        stop=["a", "b"],
        n=2,
        seed=7,
        logit_bias={"5": 2},
        logprobs=3,
        best_of=2,
        user="ann",
        ignore_eos=True,
        timeout=1.5,
        suffix=None,
    )
    assert response.status_code == 200
    assert "x-mlx-router-ignored" not in response.headers
    [request] = manager.requests
    assert request.prompt == TextPrompt("Hello")
    assert request.model == "org/tiny-model"
    assert (request.max_tokens, request.n, request.seed, request.logprobs) == (9, 2, 7, 3)
    assert (request.stop, request.logit_bias) == (("a", "b"), {5: 2})
    assert (request.timeout, request.ignore_eos) == (1.5, True)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)


async def test_openais_limit_of_tokens_is_the_default() -> None:
    manager = FakeManager()
    await complete(manager)
    assert manager.requests[0].max_tokens == 16
    assert manager.requests[0].logprobs is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [TextPrompt("a")]),
        ("", [TextPrompt("")]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([1, 2], [TextPrompt(token_ids=(1, 2))]),
        ([[1, 2], [3]], [TextPrompt(token_ids=(1, 2)), TextPrompt(token_ids=(3,))]),
        ([2**31 - 1], [TextPrompt(token_ids=(2**31 - 1,))]),
    ],
)
async def test_every_kind_of_prompt(prompt: Any, expected: list[TextPrompt]) -> None:
    manager = FakeManager()
    assert (await complete(manager, prompt=prompt)).status_code == 200
    assert [request.prompt for request in manager.requests] == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [1, True]}, "prompt.1"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": [1.5]}, "prompt.0"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [2**31]}, "prompt.0"),
        ({"prompt": [[1], [1, -1]]}, "prompt.1.1"),
        ({"prompt": [["a"]]}, "prompt.0.0"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 9}, "n"),
        ({"temperature": 3}, "temperature"),
    ],
)
async def test_a_bad_value_is_named(body: dict[str, Any], param: str) -> None:
    error = await refusal(**body)
    assert (error["param"], error["code"]) == (param, "invalid_value")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_would_change_the_answer_is_refused(body: dict[str, Any], param: str) -> None:
    error = await refusal(**body)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


async def test_a_missing_prompt_is_named_and_an_unknown_field_reported() -> None:
    async with client_for(FakeManager()) as client:
        response = await client.post("/completions", json={"model": MODEL})
    assert response.json()["error"]["param"] == "prompt"
    assert (await complete(FakeManager(), foo=1)).headers["x-mlx-router-ignored"] == "foo"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
fields = st.sampled_from([*CompletionRequest.model_fields, "suffix", "messages", "user", "other"])


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.dictionaries(fields, values, max_size=4), st.booleans())
def test_any_json_is_translated_or_refused_with_a_message(
    body: dict[str, Any], whole: bool
) -> None:
    found: CompletionCall | RouterError
    try:
        found = completion_call(body if whole else {"prompt": "a", **body}, Settings())
    except RouterError as error:
        found = error
    if isinstance(found, RouterError):
        assert 400 <= found.status < 500
        assert len(found.message) < 500
    else:
        assert 1 <= len(found.requests) <= 128
