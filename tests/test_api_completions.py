"""Answers of POST /v1/completions: one prompt or several, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from mlx_router.api.app import create_app
from mlx_router.api.merge import merge
from mlx_router.api.schemas.answers import Completion
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    TextPrompt,
    Timings,
    TokenLogprob,
    Usage,
)
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.engine.scripted_text import CONTINUATION
from mlx_router.errors import EngineFailed, QueueFull
from mlx_router.runtime.manager import MLXModelManager
from tests.api_support import (
    MODEL,
    Events,
    Exchange,
    FakeManager,
    Held,
    Script,
    app_for,
    client_for,
    fails,
    plays,
    serving,
    sse,
    started,
)
from tests.waiting import until

PATH = "/v1/completions"


async def complete(manager: FakeManager, **body: Any) -> httpx.Response:
    async with client_for(manager) as client:
        return await client.post(PATH, json={"prompt": "Hello", **body})


def exchange(manager: FakeManager, **body: Any) -> Exchange:
    return Exchange(app_for(manager), json.dumps({"prompt": "Hello", **body}).encode(), PATH)


async def repeats(request: GenerationRequest) -> Events:
    """Says its prompt again, choice by choice, then yields to the others."""
    prompt = request.prompt
    assert isinstance(prompt, TextPrompt)
    text = prompt.text or "ids"
    yield started(prompt_token_ids=prompt.token_ids or (len(text),))
    for index in range(request.n):
        await asyncio.sleep(0)
        yield Delta(index, f"{text}{index}", token_ids=(index,))
    for index in range(request.n):
        yield Finished(index, FinishReason.LENGTH)
    yield Completed(Usage(len(text), 2, 1), Timings(0.1, 0.2, 0.3))


# --- whole answers --------------------------------------------------------------------------


async def test_answer_has_openais_shape() -> None:
    response = await complete(FakeManager())
    body = response.json()
    Completion.model_validate(body)
    assert body["id"].startswith("cmpl-")
    assert response.headers["x-mlx-router-model"] == MODEL
    assert body["choices"] == [
        {"text": "Hello world!", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["total_tokens"] == 10


async def test_choices_are_numbered_prompt_by_prompt_and_usage_is_summed() -> None:
    body = (await complete(FakeManager(repeats), prompt=["a", "bb", "c"], n=2)).json()
    Completion.model_validate(body)
    found = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert found == [(0, "a0"), (1, "a1"), (2, "bb0"), (3, "bb1"), (4, "c0"), (5, "c1")]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 6)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_echo_puts_the_prompt_first() -> None:
    asked: Any = {"prompt": ["a", [7, 8]], "echo": True, "n": 1}
    body = (await complete(FakeManager(repeats), **asked)).json()
    assert [choice["text"] for choice in body["choices"]] == ["aa0", "<7><8>ids0"]
    chunks = sse((await complete(FakeManager(repeats), stream=True, **asked)).text)
    assert gathered(chunks) == {0: "aa0", 1: "<7><8>ids0"}


async def test_token_ids_are_returned_when_asked_for() -> None:
    asked: Any = {"prompt": [[4], [5, 6]], "return_token_ids": True}
    body = (await complete(FakeManager(repeats), **asked)).json()
    Completion.model_validate(body)
    found = [(one["prompt_token_ids"], one["token_ids"]) for one in body["choices"]]
    assert found == [([4], [0]), ([5, 6], [0])]
    chunks = sse((await complete(FakeManager(repeats), stream=True, **asked)).text)
    second = [one for chunk in chunks for one in chunk["choices"] if one["index"] == 1]
    assert second[0]["prompt_token_ids"] == [5, 6]
    assert [token for one in second for token in one.get("token_ids", [])] == [0]


def lp(text: str, *top: tuple[str, float], logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(
        1, text.encode(), logprob, tuple((0, word.encode(), value) for word, value in top)
    )


async def test_logprobs_are_the_old_four_lists() -> None:
    script = plays(
        Delta(0, "Hi", logprobs=[lp("Hi", ("Ho", -0.1), ("Hu", -0.4))]),
        Delta(0, " you", logprobs=[lp(" y", (" y", -0.5)), lp("ou", logprob=float("-inf"))]),
    )
    expected: dict[str, list[Any]] = {
        "tokens": ["Hi", " y", "ou"],
        "token_logprobs": [-0.5, -0.5, -9999.0],
        "top_logprobs": [{"Ho": -0.1, "Hu": -0.4, "Hi": -0.5}, {" y": -0.5}, {"ou": -9999.0}],
        "text_offset": [0, 2, 4],
    }
    body = (await complete(FakeManager(script), logprobs=2)).json()
    Completion.model_validate(body)
    assert body["choices"][0]["logprobs"] == expected

    chunks = sse((await complete(FakeManager(script), logprobs=2, stream=True)).text)
    parts = [one["logprobs"] for chunk in chunks for one in chunk["choices"] if one["logprobs"]]
    for name, values in expected.items():
        assert [value for part in parts for value in part[name]] == values


# --- streams --------------------------------------------------------------------------------


def gathered(chunks: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


async def test_stream_has_openais_shape() -> None:
    asked: Any = {"stream": True, "stream_options": {"include_usage": True}}
    response = await complete(FakeManager(), **asked)
    chunks = sse(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert {(c["object"], c["id"], c["model"]) for c in chunks} == {
        ("text_completion", chunks[0]["id"], MODEL)
    }
    assert chunks[0]["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": None}
    ]
    assert chunks[0]["usage"] is None
    assert chunks[-2]["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 10


async def test_streamed_choices_are_interleaved() -> None:
    asked: Any = {"prompt": ["a", "b"], "n": 2, "stream": True}
    chunks = sse((await complete(FakeManager(repeats), **asked)).text)
    assert gathered(chunks) == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}
    order = [c["choices"][0]["index"] for c in chunks]
    assert order.index(2) < order.index(1)  # b has begun before a has ended
    finished = [c["choices"][0] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in finished) == [0, 1, 2, 3]
    assert "usage" not in chunks[-1]


async def test_json_lines() -> None:
    response = await complete(FakeManager(), stream=True, streaming_format="json_lines")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines.pop() == {"done": True}
    assert gathered(lines) == {0: "Hello world!"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_all_generators(stream: bool) -> None:
    holds = [Held(started(), Delta(0, f"text {number}")) for number in range(3)]
    waiting = iter(holds)
    manager = FakeManager(lambda request: next(waiting)(request))
    one = exchange(manager, prompt=["a", "b", "c"], stream=stream)
    for held in holds:
        await held.waiting.wait()
    assert manager.open == 3
    if stream:
        await one.text_with("text 2")
    one.disconnect()
    await one.end()
    assert all(held.closed.is_set() for held in holds)
    assert manager.open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_one_failure_ends_all_with_its_own_status(stream: bool) -> None:
    held = Held()
    scripts: Iterator[Script] = iter([held, fails(QueueFull("Full.", retry_after=3))])
    manager = FakeManager(lambda request: next(scripts)(request))
    response = await complete(manager, prompt=["a", "b"], stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert held.closed.is_set()
    assert manager.open == 0


async def test_a_failure_in_the_middle_is_an_event() -> None:
    manager = FakeManager(fails(EngineFailed("Broken."), started(), Delta(0, "half")))
    chunks = sse((await complete(manager, stream=True)).text)
    assert chunks[0]["choices"][0]["text"] == "half"
    assert chunks[-1]["error"]["code"] == "engine_failed"


async def test_an_answer_without_an_end_is_an_error() -> None:
    async def ends_early(request: GenerationRequest) -> Events:
        yield started()

    for stream in (False, True):
        response = await complete(FakeManager(ends_early), prompt=["a", "b"], stream=stream)
        assert response.status_code == 500


async def test_the_tightest_limit_is_told() -> None:
    async def script(request: GenerationRequest) -> Events:
        text = getattr(request.prompt, "text", "")
        yield started(max_tokens=int(text), clamped="it is full" if int(text) < 16 else None)
        yield Delta(0, "x")
        yield Finished(0, FinishReason.LENGTH)
        yield Completed(Usage())

    response = await complete(FakeManager(script), prompt=["16", "3", "5"])
    assert response.headers["x-mlx-router-max-tokens"] == "3"
    assert response.headers["x-mlx-router-clamped"] == "it is full"


async def test_no_more_than_allowed_are_under_way() -> None:
    manager = FakeManager(repeats)
    most = 0

    async def generate(request: GenerationRequest) -> Events:
        nonlocal most
        async for event in manager.generate(request):
            most = max(most, manager.open)
            yield event

    requests = [GenerationRequest(TextPrompt(str(number))) for number in range(7)]
    events = [event async for event in merge(generate, requests, 3)]
    assert most == 3
    assert sum(isinstance(event, Finished) for event in events) == 7
    assert events[-1] == Completed(Usage(7, 14, 7), Timings(0.1, 0.2, 0.3))


# --- OpenAI's client, the real manager and the scripted engine ------------------------------


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[MLXModelManager, str]]:
    config = Settings.model_validate({"defaults": {"max_batch_size": 2}})
    manager = MLXModelManager(config, engine="scripted", factory=ScriptedFactory())
    async with serving(create_app(manager, config), lifespan="on") as url:
        yield manager, f"{url}/v1"


async def test_openais_async_client() -> None:
    async with (
        scripted() as (_, url),
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        whole = await client.completions.create(
            model="scripted", prompt=["One", "Two", "Three"], n=2, max_tokens=5, logprobs=2
        )
        stream = await client.completions.create(
            model="scripted",
            prompt=["One", "Two", "Three"],
            n=2,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="scripted", prompt="a", suffix="b")
        with pytest.raises(openai.BadRequestError) as unknown:
            await client.completions.create(model="scripted", prompt=[10**6], echo=True)
    assert refused.value.param == "suffix"
    assert unknown.value.param == "prompt"
    assert [choice.index for choice in whole.choices] == list(range(6))
    text = whole.choices[0].text
    assert text
    assert CONTINUATION.startswith(text)
    assert {choice.finish_reason for choice in whole.choices} == {"length"}
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(logprobs.text_offset or []) == 5
    assert all(len(top) in (2, 3) for top in logprobs.top_logprobs or [])
    texts = dict.fromkeys(range(6), "")
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == dict.fromkeys(range(6), text)
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 30


async def test_openais_blocking_client_and_token_ids() -> None:
    async with scripted() as (manager, url):
        ids = await manager.atokenize("scripted", TextPrompt("Once upon"))

        def ask() -> list[str]:
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                asked: Any = {"model": "scripted", "prompt": ids, "echo": True, "max_tokens": 4}
                whole = client.completions.create(**asked)
                parts = client.completions.create(**asked, stream=True)
                return [whole.choices[0].text, "".join(c.choices[0].text for c in parts)]

        whole, streamed = await asyncio.to_thread(ask)
    assert whole.startswith("Once upon and so")
    assert streamed == whole


async def test_nothing_is_left_over_when_a_client_leaves() -> None:
    config = Settings()
    # An engine at full speed would have written megabytes by the time the client leaves.
    factory = ScriptedFactory(ScriptedOptions(step_delay=0.005))
    manager = MLXModelManager(config, engine="scripted", factory=factory)
    app = create_app(manager, config)
    async with app.router.lifespan_context(app):
        body = {"model": "scripted", "prompt": ["a", "b", "c"], "max_tokens": 30_000}
        asked = {**body, "ignore_eos": True, "stream": True}
        one = Exchange(app, json.dumps(asked).encode(), PATH)
        await one.text_with('"index":2')
        one.disconnect()
        await one.end()
        await until(lambda: not any(one.active for one in manager.status().loaded))
