"""The built-in demo model, asked through the OpenAI SDK, in a real server process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import mlx_router
from tests.server import ServerProcess

MODEL = Path(mlx_router.__file__).parent / "demo" / "model"


@pytest.fixture(scope="module")
def client(demo_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, *messages: str | dict[str, Any], **fields: Any) -> Any:
    """The first choice of an answer; texts are messages of the user."""
    written: Any = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in messages]
    given: dict[str, Any] = {"model": "demo", "temperature": 0, **fields}
    return client.chat.completions.create(messages=written, **given).choices[0]


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
            },
        },
    }


def test_it_ships_in_a_few_megabytes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 4_000_000
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is MLX Router?", "MLX"),
        ("How do I add a model?", "models"),
        ("which endpoints are there", "/v1/chat/completions"),
        ("What port does it use?", "8800"),
        ("Who are you?", "demo"),
        ("What is the capital of Norway?", "Oslo"),
        ("Hello!", "help"),
    ],
)
def test_it_answers_readably(client: OpenAI, question: str, expected: str) -> None:
    choice = ask(client, question)
    assert expected.lower() in choice.message.content.lower()
    assert choice.finish_reason == "stop"


def test_it_says_what_it_does_not_know(client: OpenAI) -> None:
    answer = ask(client, "Explain the causes of the French Revolution.").message.content
    assert "demo model" in answer


@pytest.mark.parametrize(
    ("offered", "question", "arguments"),
    [
        (
            tool("get_weather", "Get the current weather in a city.", city="string"),
            "What is the weather in Paris?",
            {"city": "Paris"},
        ),
        (
            tool("lookup_order", "Look up an order by its id.", order_id="string"),
            "Use lookup_order with A17.",
            {"order_id": "A17"},
        ),
        (
            tool("zorble_fetch", "Fetch a zorble.", key="string"),
            "Call zorble_fetch with banana.",
            {"key": "banana"},
        ),
    ],
    ids=lambda value: value["function"]["name"] if "function" in value else None,
)
def test_it_calls_tools_it_has_never_seen(
    client: OpenAI, offered: dict[str, Any], question: str, arguments: dict[str, str]
) -> None:
    choice = ask(client, question, tools=[offered])
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == offered["function"]["name"]
    assert json.loads(call.function.arguments) == arguments
    assert choice.message.content is None


def test_it_reads_the_result_of_a_tool(client: OpenAI) -> None:
    weather = tool("get_weather", "Get the current weather in a city.", city="string")
    question = {"role": "user", "content": "What is the weather in Paris?"}
    called = ask(client, question, tools=[weather]).message
    result = {
        "role": "tool",
        "tool_call_id": called.tool_calls[0].id,
        "content": "sunny, 21 degrees",
    }
    answer = ask(
        client, question, called.model_dump(exclude_none=True), result, tools=[weather]
    ).message.content
    assert "sunny" in answer
    assert "21" in answer


def test_it_thinks_when_thinking_is_on(client: OpenAI) -> None:
    question = "What is the capital of Peru?"
    thought = ask(client, question, extra_body={"enable_thinking": True})
    assert thought.message.reasoning_content
    assert "Lima" in thought.message.content
    assert "<think>" not in thought.message.content
    assert not hasattr(ask(client, question).message, "reasoning_content")


def test_it_writes_json_when_asked(client: OpenAI) -> None:
    answer = ask(client, "Give me JSON for a person named Zara, age 33, city Oslo.")
    assert json.loads(answer.message.content) == {"name": "Zara", "age": 33, "city": "Oslo"}


def test_it_remembers_a_name(client: OpenAI) -> None:
    answer = ask(
        client,
        "My name is Alice.",
        {"role": "assistant", "content": "Nice to meet you, Alice! How can I help you?"},
        "What is my name?",
    )
    assert "Alice" in answer.message.content


def test_streamed_and_whole_answers_are_the_same(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=messages,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    usage, expected = chunks[-1].usage, whole.usage
    assert usage is not None
    assert expected is not None
    computed = {"prompt_tokens_details"}  # the second one reuses the first one's prompt
    assert usage.model_dump(exclude=computed) == expected.model_dump(exclude=computed)
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 20
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].id != whole.id


async def test_the_asynchronous_client_works_too(demo_server: ServerProcess) -> None:
    async with AsyncOpenAI(base_url=demo_server.url, api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "What is the capital of Norway?"}],
            temperature=0,
            stream=True,
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        models = [model.id async for model in client.models.list()]
    assert "Oslo" in text
    assert models == ["demo", "demo-vision"]


def test_errors_are_the_sdks_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, "Hello", model="deno")
    assert "demo" in missing.value.message
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, "Hello", temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "word " * 20_000)
    assert long.value.code == "context_length_exceeded"
