"""OpenAI's own client understands every answer and raises its own class for every error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from mlx_router.domain import Delta, FinishReason, TokenLogprob, ToolCallDelta
from mlx_router.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InsufficientMemory,
    ModelNotFound,
    QueueFull,
    RouterError,
)
from tests.api_support import (
    MODEL,
    FakeManager,
    app_for,
    fails,
    plays,
    serving,
    settings,
    started,
)

MESSAGES: Any = [{"role": "user", "content": "Hello?"}]


@asynccontextmanager
async def sdk(manager: FakeManager, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(app_for(manager)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


async def test_whole_answer() -> None:
    token = TokenLogprob(5, "Hi", -0.5, ((5, "Hi", -0.5),))
    script = plays(Delta(0, "Hi", reasoning="hm", logprobs=[token]))
    async with sdk(FakeManager(script)) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1, seed=1, n=1
        )
    choice = answer.choices[0]
    assert choice.message.content == "Hi"
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].top_logprobs[0].logprob == -0.5
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


async def test_streamed_answer() -> None:
    async with sdk(FakeManager()) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hello world!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10


async def test_accumulated_stream_equals_the_whole_answer() -> None:
    script = plays(
        Delta(0, tool_calls=[ToolCallDelta(0, id="call_1", name="f")]),
        Delta(0, tool_calls=[ToolCallDelta(0, '{"a":')]),
        Delta(0, tool_calls=[ToolCallDelta(0, "1}"), ToolCallDelta(1, "{}", "call_2", "g")]),
        reason=FinishReason.TOOL_CALLS,
    )
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in "fg"
    ]
    async with sdk(FakeManager(script)) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=tools)
        async with client.chat.completions.stream(
            model=MODEL, messages=MESSAGES, tools=tools
        ) as stream:
            gathered = await stream.get_final_completion()
    assert gathered.choices[0].finish_reason == "tool_calls"
    calls = gathered.choices[0].message.tool_calls
    expected = whole.choices[0].message.tool_calls
    assert calls is not None
    assert expected is not None
    found = [(c.id, c.function.name, c.function.arguments) for c in calls]
    assert found == [("call_1", "f", '{"a":1}'), ("call_2", "g", "{}")]
    assert found == [(c.id, c.function.name, c.function.arguments) for c in expected]  # type: ignore[union-attr]


async def test_models() -> None:
    async with sdk(FakeManager()) as client:
        models = [model.id async for model in client.models.list()]
        one = await client.models.retrieve(MODEL)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nothing")
    assert models == [MODEL, "org/other"]
    assert one.id == MODEL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ModelNotFound("No such model.", param="model"), openai.NotFoundError),
        (ContextLengthExceeded("Too long.", param="messages"), openai.BadRequestError),
        (QueueFull("Full.", retry_after=1), openai.RateLimitError),
        (InsufficientMemory("No room."), openai.InternalServerError),
        (EngineFailed("Broken."), openai.InternalServerError),
    ],
)
async def test_errors_raise_openais_classes(
    error: RouterError, raised: type[openai.APIStatusError], stream: bool
) -> None:
    async with sdk(FakeManager(fails(error))) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)
    assert caught.value.status_code == error.status
    assert caught.value.code == error.code
    assert caught.value.param == error.param
    assert caught.value.request_id
    assert error.message in caught.value.message


async def test_a_bad_field_is_a_bad_request() -> None:
    async with sdk(FakeManager()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert caught.value.param == "temperature"


async def test_an_error_in_the_middle_of_a_stream_raises() -> None:
    script = fails(EngineFailed("The step failed."), started(), Delta(0, "half"))
    async with sdk(FakeManager(script)) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == ["", "half"]
        with pytest.raises(openai.APIError, match=r"The step failed\."):
            await anext(stream)


async def test_keys() -> None:
    one = FakeManager(settings=settings(api_keys={"ann": "sk-secret"}))
    async with sdk(one, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with sdk(one, "sk-secret") as client:
        assert [model.id async for model in client.models.list()]
