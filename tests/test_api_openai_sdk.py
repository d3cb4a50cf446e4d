"""OpenAI's own client understands every answer and raises its own class for every error, and its
helpers work. The helpers are tried on a real server process, one by one, sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

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
from tests.server import ServerProcess

MESSAGES: Any = [{"role": "user", "content": "Hello?"}]


@asynccontextmanager
async def sdk(manager: FakeManager, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(app_for(manager)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


async def test_whole_answer() -> None:
    token = TokenLogprob(5, b"Hi", -0.5, ((5, b"Hi", -0.5),))
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


# --- the helpers, on a real server process --------------------------------------------------


class Address(BaseModel):
    street: str
    number: int = Field(ge=1)


class Person(BaseModel):
    """What an answer is parsed as: nested, with lists, choices and bounds."""

    name: str
    age: int
    kind: Literal["friend", "colleague"]
    addresses: list[Address]
    nickname: str | None


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str
    days: int
    unit: Literal["celsius", "kelvin"]


class Clock(BaseModel):
    zone: str


TOOLS = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Clock)]
CALLS: Any = [{"role": "user", "content": "Use GetWeather and Clock."}]
ASK: dict[str, Any] = {"model": "scripted", "messages": MESSAGES}


@pytest.fixture
def client(scripted_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted_server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(scripted_server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=scripted_server.url, api_key="none", max_retries=0
    ) as client:
        yield client


def test_the_stream_helper_tells_every_event(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        **ASK, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    (done,) = [event for event in events if event.type == "content.done"]
    (logprobs,) = [event for event in events if event.type == "logprobs.content.done"]
    text = final.choices[0].message.content
    assert text
    assert len(deltas) > 3
    assert text == "".join(deltas) == done.content
    assert "".join(token.token for token in logprobs.content) == text
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.completion_tokens >= len(deltas)
    assert final.id.startswith("chatcmpl-")
    whole = client.chat.completions.create(**ASK)
    assert whole.choices[0].message.content == text
    assert whole.usage == final.usage


def test_the_stream_helper_gathers_several_tool_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="scripted", messages=CALLS, tools=TOOLS, parallel_tool_calls=True
    ) as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert [event.name for event in done] == ["GetWeather", "Clock"]
    assert [event.index for event in done] == [0, 1]
    for event in done:
        mine = [piece.arguments_delta for piece in pieces if piece.index == event.index]
        assert "".join(mine) == event.arguments
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    weather, clock = choice.message.tool_calls or []
    assert isinstance(weather.function.parsed_arguments, GetWeather)
    assert isinstance(clock.function.parsed_arguments, Clock)


async def test_the_asynchronous_stream_helper(aclient: openai.AsyncOpenAI) -> None:
    async with aclient.chat.completions.stream(
        model="scripted", messages=CALLS, tools=TOOLS
    ) as stream:
        names = [e.name async for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    assert names == ["GetWeather", "Clock"]
    assert final.choices[0].finish_reason == "tool_calls"
    async with aclient.chat.completions.stream(**ASK, response_format=Person) as stream:
        parsed = (await stream.get_final_completion()).choices[0].message.parsed
    assert isinstance(parsed, Person)


def test_parse_gives_an_instance(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**ASK, response_format=Person)
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert person.addresses[0].number >= 1
    assert answer.choices[0].message.refusal is None


def test_parse_gives_the_arguments_of_a_tool(client: openai.OpenAI) -> None:
    choice = openai.pydantic_function_tool(GetWeather)
    named: Any = {"type": "function", "function": {"name": choice["function"]["name"]}}
    for tool_choice in (named, "required"):
        answer = client.chat.completions.parse(**ASK, tools=TOOLS[:1], tool_choice=tool_choice)
        (call,) = answer.choices[0].message.tool_calls or []
        assert isinstance(call.function.parsed_arguments, GetWeather)
        assert answer.choices[0].finish_reason == "tool_calls"


def test_parse_says_when_the_answer_was_cut_off(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASK, response_format=Person, max_tokens=3)


async def test_the_asynchronous_parse(aclient: openai.AsyncOpenAI) -> None:
    answer = await aclient.chat.completions.parse(**ASK, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_tool_round_trip_with_the_sdks_own_objects(client: openai.OpenAI) -> None:
    messages = [*CALLS]
    first = client.chat.completions.parse(model="scripted", messages=messages, tools=TOOLS)
    message = first.choices[0].message
    messages.append(message)  # as OpenAI's examples do
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "It is noon."}
        for call in message.tool_calls or []
    ]
    second = client.chat.completions.parse(model="scripted", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "The tool's result: It is noon."


def test_raw_responses(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASK, max_tokens=10**6)
    assert raw.status_code == 200
    assert raw.request_id
    assert raw.headers["x-mlx-router-model"] == "scripted"
    assert raw.headers["x-mlx-router-max-tokens"]
    assert raw.parse().choices[0].message.content
    streamed = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert len(list(streamed.parse())) > 3


def test_streaming_responses(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    with client.models.with_streaming_response.list() as listed:
        assert listed.parse().data


async def test_asynchronous_raw_and_streaming_responses(aclient: openai.AsyncOpenAI) -> None:
    raw = await aclient.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content
    async with aclient.chat.completions.with_streaming_response.create(
        **ASK, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_models_of_a_real_server(client: openai.OpenAI) -> None:
    page = client.models.list()
    assert [model.id for model in page.data] == ["scripted", "scripted-2", "scripted-vision"]
    assert not page.has_next_page()
    assert client.models.retrieve("scripted").owned_by == "mlx-router"


def test_completions_of_a_real_server(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "scripted", "prompt": ["Once", "Twice"], "max_tokens": 12}
    whole = client.completions.create(**asked, logprobs=2, echo=False)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or []) == 12
    texts = ["", ""]
    usage = None
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


async def test_asynchronous_completions(aclient: openai.AsyncOpenAI) -> None:
    stream = await aclient.completions.create(model="scripted", prompt="Once", stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    whole = await aclient.completions.create(model="scripted", prompt="Once")
    assert text == whole.choices[0].text


def test_closing_a_stream_early_frees_the_server(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        **ASK, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
    )
    next(stream)
    stream.close()
    assert client.chat.completions.create(**ASK).choices[0].message.content
