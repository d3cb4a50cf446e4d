"""The API on the real manager, with the scripted engine: HTTP, queue, load, parsing and all."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from mlx_router.api.app import create_app
from mlx_router.api.schemas.answers import ChatCompletion
from mlx_router.api.schemas.status import HealthDetails, ModelList
from mlx_router.config.settings import Settings
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import ModelLoadFailed
from mlx_router.runtime.manager import MLXModelManager
from tests.api_support import Exchange, serving, sse
from tests.waiting import until

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


class Router:
    """A running app with its manager, and a client of it."""

    def __init__(self, manager: MLXModelManager, app: Any, client: httpx.AsyncClient) -> None:
        self.manager = manager
        self.app = app
        self.client = client

    async def post(self, **body: Any) -> httpx.Response:
        return await self.client.post(CHAT, json={"model": "scripted", "messages": USER, **body})

    def exchange(self, **body: Any) -> Exchange:
        data = {"model": "scripted", "messages": USER, **body}
        return Exchange(self.app, json.dumps(data).encode())

    async def settles(self) -> None:
        """Wait until no request is active or queued anywhere."""
        await until(
            lambda: not any(one.active or one.waiting for one in self.manager.status().loaded)
        )


@asynccontextmanager
async def router(
    options: Any = None, *, defaults: Any = None, **server: Any
) -> AsyncIterator[Router]:
    config = Settings.model_validate({"defaults": defaults or {}, "server": server})
    manager = MLXModelManager(config, engine="scripted", factory=ScriptedFactory(options))
    app = create_app(manager, config)
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield Router(manager, app, client)


async def test_a_stream_says_what_the_whole_answer_says() -> None:
    async with router() as one:
        whole = (await one.post()).json()
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = sse((await one.post(**asked)).text)
        lines = await one.post(stream=True, streaming_format="json_lines")
    ChatCompletion.model_validate(whole)
    text = whole["choices"][0]["message"]["content"]
    assert text
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == text
    assert chunks[-1]["usage"] == whole["usage"]
    objects = [json.loads(line) for line in lines.text.splitlines()]
    assert objects.pop() == {"done": True}
    assert "".join(o["choices"][0]["delta"].get("content", "") for o in objects) == text


async def test_reasoning_is_apart() -> None:
    async with router() as one:
        body = (await one.post(reasoning_effort="high")).json()
        plain = (await one.post(reasoning_effort="none")).json()
    assert body["choices"][0]["message"]["reasoning_content"]
    assert "<think>" not in body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert "reasoning_content" not in plain["choices"][0]["message"]


async def test_openais_client_gets_a_forced_tool_call_and_an_instance_of_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    asked: Any = {"model": "scripted", "messages": USER}
    tools: Any = [WEATHER]
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    async with router() as one, serving_client(one) as client:
        forced = await client.chat.completions.create(**asked, tools=tools, tool_choice="required")
        async with client.chat.completions.stream(
            **asked, tools=tools, tool_choice="required"
        ) as stream:
            streamed = await stream.get_final_completion()
        shaped = await client.chat.completions.create(**asked, response_format=wanted)
    for answer in (forced, streamed):
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        call: Any = choice.message.tool_calls[0]
        assert call.id.startswith("call_")
        assert call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city", "days"}
    assert set(json.loads(shaped.choices[0].message.content or "")) == {"name", "age"}


@asynccontextmanager
async def serving_client(one: Router) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client on a socket of its own; the manager is running already."""
    async with (
        serving(one.app, lifespan="off") as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_eighteen_requests_for_two_models_are_answered_by_the_right_one() -> None:
    gate = asyncio.Semaphore(6)

    async def ask(one: Router, number: int) -> tuple[str, str]:
        model = ("scripted", "scripted-2")[number % 2]
        async with gate:
            response = await one.post(model=model, stream=number % 3 == 0, max_tokens=10)
        body = sse(response.text)[0] if number % 3 == 0 else response.json()
        return model, body["model"]

    async with router() as one:
        answers = await asyncio.gather(*(ask(one, number) for number in range(18)))
        await one.settles()
    assert all(asked == answered for asked, answered in answers)


async def test_max_tokens_is_clamped_and_the_header_says_so() -> None:
    async with router(defaults={"max_tokens": 5}) as one:
        response = await one.post(max_tokens=32_000)
    assert response.json()["usage"]["completion_tokens"] == 5
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert response.headers["x-mlx-router-max-tokens"] == "5"
    assert response.headers["x-mlx-router-clamped"]


async def test_stop_seed_n_and_token_ids_reach_the_engine() -> None:
    async with router() as one:
        body = (await one.post(n=3, stop=["scripted"], seed=-1, return_token_ids=True)).json()
        other = (await one.post(logprobs=True, top_logprobs=2, max_tokens=3)).json()
    assert len(body["choices"]) == 3
    assert all("scripted" not in choice["message"]["content"] for choice in body["choices"])
    assert all(choice["token_ids"] for choice in body["choices"])
    assert body["prompt_token_ids"]
    assert len(other["choices"][0]["logprobs"]["content"]) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_admission_errors_have_their_status(stream: bool) -> None:
    long = [{"role": "user", "content": "word " * 40_000}]
    async with router() as one:
        for body, status, code in (
            ({"model": "nothing"}, 404, "model_not_found"),
            ({"model": "../../etc"}, 404, "model_not_found"),
            ({"model": "/etc/passwd"}, 404, "model_not_found"),
            ({"model": "a\x00b"}, 404, "model_not_found"),
            ({"messages": long}, 400, "context_length_exceeded"),
            ({"logit_bias": {"999999": 1}}, 400, "invalid_value"),
        ):
            response = await one.post(stream=stream, **body)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert (await one.post()).status_code == 200


async def test_a_request_without_model_goes_to_the_one_used_last() -> None:
    async with router() as one:
        assert (await one.post(model=None)).status_code == 400
        await one.post(model="scripted-2")
        assert (await one.post(model=None)).json()["model"] == "scripted-2"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_load_is_told_and_the_other_model_serves(stream: bool) -> None:
    broken = ScriptedOptions(load_error=ModelLoadFailed("The weights are broken."))
    async with router({"scripted": broken}) as one:
        response = await one.post(stream=stream)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "model_load_failed"
        assert (await one.post(model="scripted-2", stream=stream)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_in_time_is_a_504(stream: bool) -> None:
    gate = threading.Event()
    async with router(ScriptedOptions(step_gate=gate)) as one:
        response = await one.post(stream=stream, timeout=0.1)
        gate.set()
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"


async def test_a_timeout_in_the_middle_ends_the_answer_with_what_it_has() -> None:
    async with router(ScriptedOptions(step_delay=0.02)) as one:
        await one.post(max_tokens=1)
        response = await one.post(timeout=0.3)
        chunks = sse((await one.post(timeout=0.3, stream=True)).text)
    assert response.status_code == 200
    assert response.headers["x-mlx-router-timed-out"] == "true"
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert choice["message"]["content"]


async def test_a_failed_step_is_an_event_in_a_stream_and_a_500_otherwise() -> None:
    async with router(ScriptedOptions(fail_at_step=6)) as one:
        found = sse((await one.post(stream=True)).text)
        assert found[-1]["error"]["code"] == "engine_failed"
        assert len(found) > 1
        assert (await one.post()).status_code == 200
    async with router(ScriptedOptions(fail_at_step=6)) as one:
        assert (await one.post()).status_code == 500


async def test_a_dead_engine_thread_ends_its_stream_and_the_next_request_is_served() -> None:
    async with router({"scripted": ScriptedOptions(die_at_step=6)}) as one:
        found = sse((await one.post(stream=True)).text)
        assert found[-1]["error"]["type"] == "server_error"
        assert (await one.post(model="scripted-2")).status_code == 200


async def test_a_loading_model_is_bridged_by_keep_alives() -> None:
    gate = threading.Event()
    async with router(ScriptedOptions(load_gate=gate), keep_alive_seconds=0.05) as one:
        exchange = one.exchange(stream=True)
        await exchange.text_with(": keep-alive\n\n: keep-alive")
        gate.set()
        chunks = sse(await exchange.end())
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_a_load_is_never_started(stream: bool) -> None:
    loading, gate = threading.Event(), threading.Event()
    async with router(ScriptedOptions(loading=loading, load_gate=gate)) as one:
        exchange = one.exchange(stream=stream)
        assert await asyncio.to_thread(loading.wait, 10)
        exchange.disconnect()
        assert await exchange.end() == ""
        gate.set()
        await one.settles()
        assert (await one.post()).status_code == 200


async def test_many_random_leavers_leave_nothing_behind() -> None:
    chance = random.Random(1)
    async with router(ScriptedOptions(step_delay=0.001)) as one:
        await one.post()
        threads = threading.active_count()

        async def leave(stream: bool, seconds: float) -> None:
            exchange = one.exchange(stream=stream)
            await asyncio.sleep(seconds)
            exchange.disconnect()
            await exchange.end()

        for _ in range(5):
            await asyncio.gather(
                *(leave(chance.random() < 0.7, chance.random() * 0.05) for _ in range(20))
            )
        await one.settles()
        assert (await one.post()).status_code == 200
        assert threading.active_count() <= threads + 1


async def test_a_full_queue_is_a_quick_429() -> None:
    loading, gate = threading.Event(), threading.Event()
    async with router(ScriptedOptions(loading=loading, load_gate=gate), max_queue=2) as one:
        waiting = [asyncio.create_task(one.post(max_tokens=2)) for _ in range(6)]
        assert await asyncio.to_thread(loading.wait, 10)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        refused = next(iter(done)).result()
        gate.set()
        statuses = sorted([(await task).status_code for task in waiting])
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert statuses.count(429) == 4
    assert statuses.count(200) == 2


async def test_a_server_that_shuts_down_answers_503() -> None:
    async with router() as one:
        assert (await one.post()).status_code == 200
        one.manager.begin_shutdown()
        for stream in (False, True):
            response = await one.post(stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "shutting_down"
            assert "retry-after" in response.headers


async def test_models_and_health_follow_what_happens() -> None:
    async with router() as one:
        before = (await one.client.get("/v1/models")).json()
        ModelList.model_validate(before)
        assert {m["id"]: m["state"] for m in before["data"]} == {
            "scripted": "unloaded",
            "scripted-2": "unloaded",
            "scripted-vision": "unloaded",
        }
        await one.post()
        health = (await one.client.get("/v1/health")).json()
        HealthDetails.model_validate(health)
        model = (await one.client.get("/v1/models/scripted")).json()
    assert health["current_model"] == "scripted"
    assert health["request_count"] == 1
    assert [loaded["id"] for loaded in health["loaded_models"]] == ["scripted"]
    assert model["state"] == "ready"
