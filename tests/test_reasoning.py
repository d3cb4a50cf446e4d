"""Reasoning of a real model: apart from content, counted, and withheld where the config says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

import mlx_router
from tests.server import ServerProcess

PATH = str(Path(mlx_router.__file__).parent / "demo" / "model")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A server that has the demo model twice, by different settings."""
    folder = tmp_path_factory.mktemp("reasoning")
    models = {
        "shown": {"path": PATH, "reasoning_response": "enable"},
        "hidden": {"path": PATH, "reasoning_response": "disable"},
    }
    with (
        ServerProcess(folder, config={"models": models}, models=folder) as server,
        OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client: OpenAI, model: str, *, thinking: bool = True, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "What is the capital of Peru?"}]
    return client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        **{"extra_body": {"enable_thinking": thinking}, **options},
    )


def joined(chunks: list[Any], field: str) -> str:
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    return "".join(getattr(delta, field, None) or "" for delta in deltas)


@pytest.mark.parametrize("model", ["shown", "hidden"])
def test_reasoning_is_shown_or_withheld_and_counted_all_the_same(
    client: OpenAI, model: str
) -> None:
    whole = ask(client, model)
    chunks = list(ask(client, model, stream=True, stream_options={"include_usage": True}))
    message = whole.choices[0].message
    assert "Lima" in message.content
    assert "<think>" not in message.content
    assert joined(chunks, "content") == message.content
    reasoning = getattr(message, "reasoning_content", "")
    assert bool(reasoning) == (model == "shown")
    assert joined(chunks, "reasoning_content") == reasoning
    assert whole.usage.completion_tokens_details.reasoning_tokens > 0
    computed = {"prompt_tokens_details"}  # the second one reuses the first one's prompt
    assert chunks[-1].usage.model_dump(exclude=computed) == whole.usage.model_dump(exclude=computed)


@pytest.mark.parametrize("stream", [False, True])
def test_withheld_reasoning_is_not_spelt_by_tokens_either(client: OpenAI, stream: bool) -> None:
    spelt = {}
    for model in ("shown", "hidden"):
        answer = ask(
            client,
            model,
            stream=stream,
            logprobs=True,
            extra_body={"enable_thinking": True, "return_token_ids": True},
        )
        choices = [one.choices[0] for one in (answer if stream else [answer])]
        tokens = [
            token.token for one in choices if one.logprobs for token in one.logprobs.content or ()
        ]
        ids = [token for one in choices for token in getattr(one, "token_ids", ())]
        assert len(tokens) == len(ids)
        spelt[model] = "".join(tokens)
    reasoning, _, content = spelt["shown"].partition("</think>\n\n")
    assert reasoning.startswith("<think>")
    assert spelt["hidden"] == content
    assert "Lima" in content


def test_without_thinking_nothing_is_counted_as_reasoning(client: OpenAI) -> None:
    off = ask(client, "shown", thinking=False)
    assert off.usage.completion_tokens_details.reasoning_tokens == 0
    assert not hasattr(off.choices[0].message, "reasoning_content")
