"""POST /v1/embeddings: OpenAI's request and answer, and one clear error for what is wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import openai
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import OpenAIEmbeddings
from openai.types import CreateEmbeddingResponse
from pydantic import SecretStr

from mlx_router import MLXModelManager, Settings
from mlx_router.api.app import create_app
from mlx_router.api.embeddings import embedding_request
from mlx_router.api.schemas.answers import EmbeddingList
from mlx_router.api.schemas.embeddings import EmbeddingsRequest
from mlx_router.api.validation import parse
from mlx_router.engine.embedding import EmbeddingEngine
from mlx_router.errors import QueueFull, RouterError
from mlx_router.runtime.embedding import EmbeddingRequest, Embeddings
from tests.api_support import Exchange, FakeManager, client_for
from tests.embedding_models import HIDDEN, POSITIONS
from tests.server import ServerProcess
from tests.test_embeddings import TEXTS, Gate, active
from tests.waiting import until

PATH = "/v1/embeddings"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@pytest.fixture(scope="module")
def server(
    embedding_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), models=embedding_models) as server:
        yield server


def ask(server: ServerProcess, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base}{PATH}", json={"model": "bert", **body}, timeout=60)


async def post(manager: FakeManager, **body: Any) -> httpx.Response:
    async with client_for(manager) as client:
        return await client.post(PATH, json=body)


@asynccontextmanager
async def app_with(models: Path, **server: Any) -> AsyncIterator[tuple[MLXModelManager, FastAPI]]:
    """A real manager behind the app, on this event loop."""
    config = Settings.model_validate({"server": server, "defaults": {"max_batch_size": 1}})
    manager = MLXModelManager(config, model_directory=models)
    app = create_app(manager, config)
    async with app.router.lifespan_context(app):
        yield manager, app


# --- the answer -----------------------------------------------------------------------------


def test_the_answer_is_openais(server: ServerProcess) -> None:
    response = ask(server, input=TEXTS)
    assert response.status_code == 200, response.text
    assert response.headers["x-mlx-router-model"] == "tiny/bert"
    body = response.json()
    EmbeddingList.model_validate(body, strict=True)
    CreateEmbeddingResponse.model_validate(body, strict=True)
    assert set(body) == {"object", "data", "model", "usage"}
    assert body["model"] == "tiny/bert"
    assert [item["index"] for item in body["data"]] == [0, 1, 2, 3]
    assert [len(item["embedding"]) for item in body["data"]] == [HIDDEN] * 4
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > len(TEXTS) * 2


def test_base64_holds_the_same_numbers(server: ServerProcess) -> None:
    numbers = ask(server, input=TEXTS).json()
    packed = ask(server, input=TEXTS, encoding_format="base64").json()
    EmbeddingList.model_validate(packed, strict=True)
    for one, other in zip(numbers["data"], packed["data"], strict=True):
        raw = base64.b64decode(other["embedding"], validate=True)
        assert list(struct.unpack(f"<{HIDDEN}f", raw)) == one["embedding"]
    assert {**numbers, "data": None} == {**packed, "data": None}


def test_every_form_of_input_is_the_same_text(server: ServerProcess) -> None:
    asked = {"model": "bert", "prompt": TEXTS[1]}
    ids = httpx.post(f"{server.url}/tokenize", json=asked, timeout=60).json()["tokens"]
    answers = [ask(server, input=form).json() for form in (TEXTS[1], [TEXTS[1]], ids, [ids])]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["usage"]["prompt_tokens"] == len(ids)


def test_the_route_answers_without_the_prefix(server: ServerProcess) -> None:
    response = httpx.post(
        f"{server.base}/embeddings", json={"model": "bert", "input": "hello"}, timeout=60
    )
    assert response.status_code == 200


def test_openais_blocking_client(server: ServerProcess) -> None:
    """It asks for base64 by itself, and unpacks it."""
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        plain = client.embeddings.create(model="bert", input=TEXTS, encoding_format="float")
        usual = client.embeddings.create(model="bert", input=TEXTS, user="me")
        short = client.embeddings.create(model="qwen3-embedding", input="hello", dimensions=8)
        with pytest.raises(openai.BadRequestError) as wrong:
            client.embeddings.create(model="bert", input=["hello", ""])
        with pytest.raises(openai.NotFoundError) as unknown:
            client.embeddings.create(model="text-embedding-3-small", input="hello")
    assert [item.embedding for item in usual.data] == [
        pytest.approx(item.embedding) for item in plain.data
    ]
    assert usual.usage == plain.usage
    assert len(short.data[0].embedding) == 8
    assert wrong.value.param == "input.1"
    assert unknown.value.code == "model_not_found"


async def test_openais_async_client_with_many_requests_at_once(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:

        async def vector(model: str, text: str) -> list[float]:
            answer = await client.embeddings.create(model=model, input=text)
            return answer.data[0].embedding

        kinds = ["bert", "qwen3-embedding", "xlm-roberta"]
        asked = [(kind, f"{text} {i}") for kind in kinds for i, text in enumerate(TEXTS * 3)]
        together = await asyncio.gather(*(vector(kind, text) for kind, text in asked))
        for index in (0, 13, 35):
            alone = await vector(*asked[index])
            assert together[index] == pytest.approx(alone, abs=2e-5)


def test_langchain_embeds_texts(server: ServerProcess) -> None:
    embeddings = OpenAIEmbeddings(
        model="bert",
        base_url=server.url,
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
    )
    vectors = embeddings.embed_documents(TEXTS)
    plain = ask(server, input=TEXTS).json()["data"]
    assert vectors == [pytest.approx(item["embedding"]) for item in plain]


def test_models_say_what_they_are_for(server: ServerProcess) -> None:
    models = httpx.get(f"{server.url}/models", timeout=60).json()["data"]
    described = {model["id"]: model for model in models}
    bert = described["tiny/bert"]
    assert bert["kind"] == "embedding"
    assert bert["capabilities"]["embeddings"] is True
    assert bert["capabilities"]["chat"] is False
    assert bert["context_window"] == POSITIONS
    assert 0 < bert["memory_requirements"]["required_gb"] < 0.3
    assert described["tiny/llama"]["capabilities"]["embeddings"] is False


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "1 to 2048 items (got 0)"),
        ({"input": ["a"] * 2049}, "input", "1 to 2048 items (got 2049)"),
        ({"input": ["a", ""]}, "input.1", "empty"),
        ({"input": [[3], []]}, "input.1", "empty"),
        ({"input": [3, "a"]}, "input.1", "token id"),
        ({"input": ["a", 3]}, "input.1", "a text or a list of token ids (got 3)"),
        ({"input": [[3, 1.5]]}, "input.0.1", "token id"),
        ({"input": [True]}, "input.0", "token id"),
        ({"input": {"text": "a"}}, "input", "a text or a list of token ids"),
        ({"input": 5}, "input", "a text or a list of token ids"),
        ({"input": None}, "input", "a text or a list of token ids"),
        ({}, "input", "is required"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
        ({"input": "a", "dimensions": 33}, "dimensions", "1 to 32"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "whole number"),
        ({"input": "a", "timeout": 0}, "timeout", "more than 0"),
        ({"input": [[3, 125]]}, "input", "vocabulary (0 to 124)"),
        ({"input": [[3], [125]]}, "input.1", "vocabulary (0 to 124)"),
        ({"input": "a", "model": "llama"}, "model", "ask for tiny/bert"),
        ({"input": "a", "model": None}, "model", "Which model?"),
        ({"input": "a", "model": 5}, "model", "string"),
    ],
)
def test_one_clear_error_names_the_field(
    server: ServerProcess, body: dict[str, Any], param: str, part: str
) -> None:
    response = ask(server, **body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert part in error["message"]


inputs = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def translated(body: dict[str, Any]) -> EmbeddingRequest | RouterError:
    try:
        return embedding_request(parse(EmbeddingsRequest, body))
    except RouterError as error:
        return error


@given(
    st.fixed_dictionaries(
        {"input": inputs},
        optional={name: inputs for name in EmbeddingsRequest.model_fields if name != "input"},
    )
)
def test_any_json_is_translated_or_refused_with_a_message(body: dict[str, Any]) -> None:
    found = translated(body)
    if isinstance(found, RouterError):
        assert found.status in (400, 404)
        assert found.message
    else:
        assert found.texts
        assert all(found.texts)


def test_a_text_that_is_too_long_is_named_with_the_numbers(server: ServerProcess) -> None:
    response = ask(server, input=["hello", "fox " * POSITIONS])
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": f"This model's maximum context length is {POSITIONS} tokens. However, input.1 "
        f"has {POSITIONS + 2} tokens. Please make it shorter, or send it in parts.",
        "type": "invalid_request_error",
        "param": "input.1",
        "code": "context_length_exceeded",
    }


def test_an_embedding_model_does_not_chat(server: ServerProcess) -> None:
    body = {"model": "bert", "messages": [{"role": "user", "content": "Hello"}]}
    response = httpx.post(f"{server.url}/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert "does not write text" in response.json()["error"]["message"]


async def test_fields_without_effect_are_reported() -> None:
    response = await post(FakeManager(), input="hello", user="me", input_type="query", truncate=5)
    assert response.status_code == 200
    assert response.headers["x-mlx-router-ignored"] == "input_type,truncate"


async def test_the_request_reaches_the_manager_as_it_was_sent() -> None:
    manager = FakeManager()
    await post(manager, input=["a", [1, 2]], model="org/tiny-model", dimensions=2, timeout=1.5)
    await post(manager, input=[1, 2, 3])
    assert manager.embedded == [
        EmbeddingRequest(("a", (1, 2)), "org/tiny-model", 2, 1.5),
        EmbeddingRequest(((1, 2, 3),)),
    ]


# --- full queues, timeouts, clients that leave ----------------------------------------------


async def test_a_full_queue_says_when_to_come_back() -> None:
    class Full(FakeManager):
        async def embed_request(self, request: EmbeddingRequest) -> Embeddings:
            raise QueueFull("The queue is full.")

    response = await post(Full(), input="hello")
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1


async def test_requests_wait_in_a_bounded_queue(embedding_models: Path, gate: Gate) -> None:
    body = {"model": "bert", "input": "hello"}
    gate.steps.release()  # the warm-up
    async with app_with(embedding_models, max_queue=1) as (manager, app):
        await manager.aload("bert")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            posts = [asyncio.create_task(client.post(PATH, json=body)) for _ in range(2)]
            await until(lambda: active(manager) == 2)
            assert (await client.post(PATH, json=body)).status_code == 429
            gate.open.set()
            assert [(await one).status_code for one in posts] == [200, 200]


async def test_a_timeout_is_a_504(embedding_models: Path, gate: Gate) -> None:
    async with app_with(embedding_models) as (_, app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"model": "bert", "input": "hello", "timeout": 0.1}
            response = await client.post(PATH, json=body)
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "timeout"
            gate.open.set()


async def test_a_client_that_leaves_takes_its_jobs_along(
    embedding_models: Path, gate: Gate
) -> None:
    async with app_with(embedding_models) as (manager, app):
        body = json.dumps({"model": "bert", "input": [[5, 6]] * 1000}).encode()
        one = Exchange(app, body, PATH)
        await until(lambda: len(gate.seen) == 1)
        one.disconnect()
        await one.end()
        await until(lambda: active(manager) == 0)
        gate.open.set()
        await manager.aembed([[5, 7]], "bert")
    assert gate.seen[1:] == [[[5, 7]]]


async def test_a_fault_inside_tells_the_client_nothing_of_it(
    embedding_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = EmbeddingEngine._forward

    def fails(engine: EmbeddingEngine, prompts: Sequence[Sequence[int]]) -> mx.array:
        if prompts[0] == [5, 6]:
            raise RuntimeError("secret")
        return forward(engine, prompts)

    monkeypatch.setattr(EmbeddingEngine, "_forward", fails)
    async with app_with(embedding_models) as (_, app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.post(PATH, json={"model": "bert", "input": [[5, 6]]})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "engine_failed")
    assert "secret" not in response.text
