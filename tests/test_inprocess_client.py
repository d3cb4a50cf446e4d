"""The openai package bound to a manager of this process: the same calls, answers and errors as over
HTTP, without a socket, from threads and from event loops."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from pydantic import BaseModel

import mlx_router
from mlx_router import MLXModelManager, Settings, async_openai_client, openai_client
from mlx_router.api.app import create_app
from mlx_router.engine.scripted import ScriptedFactory, ScriptedOptions
from mlx_router.errors import EngineFailed
from tests.api_support import serving
from tests.embedding_models import make_embedding_model
from tests.media_support import data_uri, encoded
from tests.server import ServerProcess
from tests.test_demo_vision_model import shape
from tests.waiting import until, until_sync

USER: Any = [{"role": "user", "content": "Hello!"}]
DEMO: dict[str, Any] = {"model": "demo", "messages": USER, "temperature": 0}
SCRIPTED: dict[str, Any] = {"model": "scripted", "messages": USER}
ENDLESS: dict[str, Any] = {
    **SCRIPTED,
    "stream": True,
    "max_tokens": 3000,
    "extra_body": {"ignore_eos": True},
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    name: str
    age: int
    city: str


class Permits:
    """A gate that lets so many steps of an engine pass."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        self._free.release(steps)

    def wait(self) -> None:
        self._free.acquire()


@contextmanager
def scripted(**options: Any) -> Iterator[tuple[MLXModelManager, ScriptedFactory]]:
    """A manager that lives on a thread of its own."""
    factory = ScriptedFactory(ScriptedOptions(**options))
    with MLXModelManager(engine="scripted", factory=factory) as manager:
        yield manager, factory


@asynccontextmanager
async def here(
    settings: Settings | None = None, **options: Any
) -> AsyncIterator[tuple[MLXModelManager, openai.AsyncOpenAI]]:
    """A manager on the running loop, and its client."""
    factory = ScriptedFactory(ScriptedOptions(**options))
    async with (
        MLXModelManager(settings, engine="scripted", factory=factory) as manager,
        async_openai_client(manager) as client,
    ):
        yield manager, client


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXModelManager]:
    """The demo models and a small one for embeddings, on a thread of their own."""
    folder = tmp_path_factory.mktemp("models")
    make_embedding_model("bert", folder / "bert")
    with MLXModelManager(model_directory=folder, demo=True) as manager:
        yield manager


@pytest.fixture(scope="module")
def client(manager: MLXModelManager) -> Iterator[openai.OpenAI]:
    with openai_client(manager) as client:
        yield client


@pytest.fixture
def over_http(demo_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        yield client


def text_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# --- the same as over HTTP ------------------------------------------------------------------


def test_answers_are_those_of_a_server(client: openai.OpenAI, over_http: openai.OpenAI) -> None:
    found = []
    for one in (client, over_http):
        whole = one.chat.completions.create(**DEMO)
        options: Any = {"include_usage": True}
        chunks = list(one.chat.completions.create(**DEMO, stream=True, stream_options=options))
        assert text_of(chunks) == whole.choices[0].message.content
        assert len(chunks) > 4
        usages = [whole.usage.prompt_tokens, whole.usage.completion_tokens]
        assert [chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens] == usages
        found.append((text_of(chunks), whole.choices[0].finish_reason, usages))
    assert found[0] == found[1]
    assert found[0][0]


def test_headers_and_errors_are_those_of_a_server(
    client: openai.OpenAI, over_http: openai.OpenAI
) -> None:
    found: list[Any] = []
    for one in (client, over_http):
        raw = one.chat.completions.with_raw_response.create(**DEMO)
        assert raw.request_id
        streamed = one.chat.completions.with_raw_response.create(**DEMO, stream=True)
        kept = ["content-type", "x-mlx-router-model", "x-mlx-router-max-tokens"]
        headers = [[r.headers.get(name) for name in kept] for r in (raw, streamed)]
        assert text_of(list(streamed.parse()))
        errors = []
        for wrong in ({"temperature": 9}, {"model": "nope"}, {"model": "../x"}, {"tool_choice": 5}):
            with pytest.raises(openai.APIStatusError) as caught:
                one.chat.completions.create(**{**DEMO, **wrong})
            error = caught.value
            assert error.request_id
            errors.append((type(error), error.status_code, error.code, error.param))
        found.append((headers, errors))
    assert found[0] == found[1]
    assert [error[0] for error in found[0][1][:2]] == [openai.BadRequestError, openai.NotFoundError]


def test_streaming_responses_come_line_by_line(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**DEMO, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 4


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"bert", "demo", "demo-vision"}
    assert client.models.retrieve("demo").owned_by == "mlx-router"


def test_a_tool_is_called_and_its_result_used(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked: Any = {"model": "demo", "temperature": 0, "tools": [WEATHER]}
    with client.chat.completions.stream(messages=messages, **asked) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "windy, 8 degrees"}]
    answer = client.chat.completions.create(messages=messages, **asked)
    assert answer.choices[0].message.content == "The weather in Paris is windy, 8 degrees."


def test_an_answer_is_parsed_as_a_class(client: openai.OpenAI) -> None:
    question = "Give me JSON for a person named Zed, age 31, city Oslo."
    answer = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": question}],
        response_format=Person,
        temperature=0,
    )
    assert answer.choices[0].message.parsed == Person(name="Zed", age=31, city="Oslo")


def test_an_image_is_seen(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(encoded(shape("circle", "blue")))}}
    question = {"type": "text", "text": "What is in this picture?"}
    messages: Any = [{"role": "user", "content": [image, question]}]
    answer = client.chat.completions.create(model="demo-vision", messages=messages, temperature=0)
    assert answer.choices[0].message.content == "A blue circle."


async def test_embeddings_are_made(client: openai.OpenAI, manager: MLXModelManager) -> None:
    texts = ["A cat sat on the mat.", "Oslo is in Norway."]
    direct = manager.embed(texts, "bert").vectors
    made = client.embeddings.create(model="bert", input=texts)
    for item, vector in zip(made.data, direct, strict=True):
        assert item.embedding == pytest.approx(list(vector), rel=1e-3, abs=1e-5)
    async with async_openai_client(manager) as other:
        again = await other.embeddings.create(model="bert", input=texts)
    assert [item.index for item in again.data] == [0, 1]
    assert again.data[1].embedding == pytest.approx(made.data[1].embedding, rel=1e-3, abs=1e-5)


def test_no_socket_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a socket was used")

    for name in ("connect", "bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refused)
    with scripted() as (manager, _), openai_client(manager) as client:
        assert client.chat.completions.create(**SCRIPTED).choices[0].message.content
        assert text_of(list(client.chat.completions.create(**SCRIPTED, stream=True)))


async def test_api_keys_are_for_others() -> None:
    settings = Settings.model_validate({"server": {"api_keys": {"ann": "sk-secret"}}})
    async with here(settings) as (manager, client):
        assert [model.id async for model in client.models.list()]
        async with serving(create_app(manager, settings), "off") as url, httpx.AsyncClient() as far:
            headers = {"mlx_router.in_process": "true", "host": "mlx-router.internal"}
            refused = await far.get(f"{url}/v1/models", headers=headers)
    assert refused.status_code == 401


# --- streams --------------------------------------------------------------------------------


def test_a_chunk_is_there_before_the_next_step() -> None:
    permits = Permits()
    with scripted(step_gate=permits) as (manager, _), openai_client(manager) as client:
        permits.allow(2)  # one takes the prompt in, one decodes
        stream = client.chat.completions.create(**ENDLESS)
        first = next(chunk for chunk in stream if text_of([chunk]))
        assert len(manager.activity.live) == 1, "the rest of the answer is yet to be decoded"
        assert text_of([first])
        permits.allow(10_000)
        assert text_of(list(stream))


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_a_stream_that_is_left_takes_no_further_step(way: str) -> None:
    permits = Permits()
    with scripted(step_gate=permits) as (manager, factory), openai_client(manager) as client:
        permits.allow(3)
        stream = client.chat.completions.create(**ENDLESS)
        assert next(stream).choices
        if way == "closed":
            stream.close()
        else:
            del stream
            gc.collect()  # the package's streams are cycles of references
        until_sync(lambda: not manager.activity.live)
        (engine,) = factory.engines
        steps = engine.steps
        permits.allow(10_000)
        until_sync(lambda: not engine.busy)
        assert engine.steps <= steps + 1, "the one that it was in"
        assert manager.activity.tally("scripted").requests == {"cancelled": 1}


@pytest.mark.parametrize("on", ["its own loop", "another loop"])
async def test_a_cancelled_task_gives_its_answer_up(on: str) -> None:
    permits = Permits()
    factory = ScriptedFactory(ScriptedOptions(step_gate=cast(threading.Event, permits)))
    manager = MLXModelManager(engine="scripted", factory=factory)
    if on == "its own loop":
        await manager.astart()
    client = async_openai_client(manager)
    task = asyncio.create_task(client.chat.completions.create(**SCRIPTED))
    await until(lambda: bool(factory.engines and factory.engines[0].busy))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not manager.activity.live)
    permits.allow(10_000)
    assert (await client.chat.completions.create(**SCRIPTED)).choices[0].message.content
    await manager.aclose()


def test_the_clients_timeout_gives_the_answer_up() -> None:
    permits = Permits()
    with scripted(step_gate=permits) as (manager, _):
        client = openai_client(manager, timeout=0.05, max_retries=1)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**SCRIPTED)
        assert manager.activity.request_count == 2, "the package tries again by itself"
        until_sync(lambda: not manager.activity.live)
        permits.allow(10_000)


async def test_the_clients_timeout_holds_on_a_loop_too() -> None:
    permits = Permits()
    async with here(step_gate=permits) as (manager, client):
        permits.allow(2)
        stream = await client.chat.completions.create(**ENDLESS, timeout=0.2)
        with pytest.raises(openai.APITimeoutError):
            async for _ in stream:
                pass
        await until(lambda: not manager.activity.live)
        permits.allow(10_000)


def test_a_failure_in_the_middle_raises() -> None:
    with scripted(die_at_step=12) as (manager, _), openai_client(manager) as client:
        stream = client.chat.completions.create(**ENDLESS)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == EngineFailed.code


def test_closing_the_manager_ends_a_stream_that_is_read() -> None:
    permits = Permits()
    with scripted(step_gate=permits) as (manager, _):
        permits.allow(2)
        client = openai_client(manager)
        stream = client.chat.completions.create(**ENDLESS)
        assert next(stream).choices
        with ThreadPoolExecutor() as pool:
            rest = pool.submit(list, stream)
            permits.allow(1)
            closing = pool.submit(manager.close)
            with pytest.raises(openai.APIError):
                rest.result(20)
            permits.allow(10_000)
            closing.result(20)
        # The manager starts anew when it is used again, and so does its client.
        assert client.chat.completions.create(**SCRIPTED).choices[0].message.content


def test_closing_while_threads_ask_is_told_to_all_of_them() -> None:
    def ask(client: openai.OpenAI, done: threading.Event) -> str:
        while not done.is_set():
            try:
                client.chat.completions.create(**SCRIPTED, max_tokens=2)
            except openai.InternalServerError as error:
                return f"{error.status_code} {error.code}"
        return "answered"

    for _ in range(5):
        done = threading.Event()
        with scripted() as (manager, _factory), ThreadPoolExecutor(8) as pool:
            client = openai_client(manager, timeout=20)
            asking = [pool.submit(ask, client, done) for _ in range(8)]
            until_sync(lambda: manager.activity.request_count > 8)
            done.set()
            manager.close()
            assert {one.result(20) for one in asking} <= {"503 shutting_down", "answered"}
            assert client.chat.completions.create(**SCRIPTED).choices, "it starts anew"


async def test_a_manager_that_shuts_down_answers_503() -> None:
    async with here() as (manager, client):
        manager.begin_shutdown()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**SCRIPTED)
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")


# --- threads and loops ----------------------------------------------------------------------


def test_threads_share_a_client(client: openai.OpenAI) -> None:
    def ask(index: int) -> str:
        if index % 2:
            return text_of(list(client.chat.completions.create(**DEMO, stream=True)))
        return client.chat.completions.create(**DEMO).choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert answers == {"Hello! How can I help you today?"}


async def test_requests_of_one_loop_are_decoded_together() -> None:
    permits = Permits()
    async with here(step_gate=permits) as (manager, client):
        tasks = [asyncio.create_task(client.chat.completions.create(**SCRIPTED)) for _ in range(6)]
        await until(lambda: manager.status().loaded[:1] != [] and len(manager.activity.live) == 6)
        permits.allow(10_000)
        answers = await asyncio.gather(*tasks)
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 6


async def test_a_loop_that_is_not_the_managers(manager: MLXModelManager) -> None:
    async with async_openai_client(manager) as client:
        whole = await client.chat.completions.create(**DEMO)
        chunks = [c async for c in await client.chat.completions.create(**DEMO, stream=True)]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(**{**DEMO, "temperature": 9})
    assert text_of(chunks) == whole.choices[0].message.content


def test_loops_of_several_threads_share_a_manager(manager: MLXModelManager) -> None:
    async def ask() -> str:
        async with async_openai_client(manager) as client:
            chunks = [c async for c in await client.chat.completions.create(**DEMO, stream=True)]
        return text_of(chunks)

    with ThreadPoolExecutor(3) as pool:
        answers = {future.result() for future in [pool.submit(asyncio.run, ask()) for _ in "abc"]}
    assert len(answers) == 1


async def test_a_notebook_asks_from_a_thread_and_is_told_why_not_from_its_loop() -> None:
    async with here() as (manager, _):
        client = openai_client(manager)
        answer = await asyncio.to_thread(lambda: client.chat.completions.create(**SCRIPTED))
        assert answer.choices[0].message.content
        with pytest.raises(RuntimeError, match="async_openai_client"):
            client.chat.completions.create(**SCRIPTED)


async def test_a_notebook_may_block_its_loop_if_the_router_is_not_on_it(
    client: openai.OpenAI,
) -> None:
    assert client.chat.completions.create(**DEMO).choices[0].message.content


# --- openai is optional ---------------------------------------------------------------------


def test_openai_is_imported_when_a_client_is_made() -> None:
    code = (
        "import sys\n"
        "from mlx_router import MLXModelManager, async_openai_client, openai_client\n"
        "import mlx_router.client\n"
        "assert not {'openai', 'httpx', 'httpx2', 'fastapi'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("make", ["openai_client", "async_openai_client"])
def test_without_openai_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="uv sync --extra client"):
        getattr(mlx_router, make)(MLXModelManager(engine="scripted"))


def test_the_extra_that_the_error_names_exists() -> None:
    project = (Path(mlx_router.__file__).parent.parent / "pyproject.toml").read_text()
    assert '\nclient = ["openai' in project
