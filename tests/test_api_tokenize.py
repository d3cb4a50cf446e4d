"""POST /v1/tokenize and /v1/detokenize, and the manager's methods behind them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import mlx_router
from mlx_router import Message, MLXModelManager, Settings
from mlx_router.api.app import create_app
from mlx_router.api.schemas.answers import Detokenized, Tokenized
from mlx_router.domain import ChatPrompt, ModelCard, ModelKind, ModelState, TextPrompt
from mlx_router.engine.scripted import ScriptedFactory
from mlx_router.engine.scripted_text import CHAT, VOCAB_SIZE, ScriptedCodec
from mlx_router.errors import InvalidRequest, ModelCorrupt, ModelLoadFailed, ModelNotFound
from mlx_router.runtime.codecs import Codecs
from tests.api_support import MODEL, FakeManager, client_for

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
USER = [{"role": "user", "content": "Hello"}]


async def post(path: str, **body: Any) -> httpx.Response:
    async with client_for(FakeManager()) as client:
        return await client.post(path, json=body)


# --- the routes -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_shapes(prefix: str) -> None:
    body = (await post(f"{prefix}/tokenize", prompt="a bb ccc", return_token_strs=True)).json()
    Tokenized.model_validate(body)
    assert body == {
        "count": 4,
        "max_model_len": 8192,
        "tokens": [1, 1, 2, 3],
        "token_strs": ["<1>", "<1>", "<2>", "<3>"],
    }
    body = (await post(f"{prefix}/tokenize", prompt="a bb", add_special_tokens=False)).json()
    assert body == {"count": 2, "max_model_len": 8192, "tokens": [1, 2]}
    body = (await post(f"{prefix}/detokenize", model=MODEL, tokens=[3, 4])).json()
    Detokenized.model_validate(body)
    assert body == {"prompt": "<3><4>"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": USER, "tools": "x"}, "tools"),
        (
            "/tokenize",
            {"messages": USER, "chat_template_kwargs": {"messages": "x"}},
            "chat_template_kwargs",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {"tokens": [2**31]}, "tokens.0"),
    ],
)
async def test_a_bad_value_is_named(path: str, body: dict[str, Any], param: str) -> None:
    response = await post(path, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_unknown_models_and_fields() -> None:
    assert (await post("/tokenize", model="nothing", prompt="a")).status_code == 404
    assert (await post("/tokenize", model="x" * 600, prompt="a")).status_code == 404
    assert (await post("/detokenize", model="x" * 600, tokens=[1])).status_code == 404
    response = await post("/tokenize", prompt="a", foo=1)
    assert response.headers["x-mlx-router-ignored"] == "foo"


# --- the manager, with the scripted engine --------------------------------------------------


@asynccontextmanager
async def running(manager: MLXModelManager) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(manager, manager.settings)
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client,
    ):
        yield client


async def test_round_trip_on_the_scripted_engine_without_a_load() -> None:
    factory = ScriptedFactory()
    manager = MLXModelManager(engine="scripted", factory=factory)
    text = "The weather, in Zürich: 5° 🌦"
    async with running(manager) as client:
        asked = {"model": "scripted", "prompt": text, "return_token_strs": True}
        found = (await client.post("/tokenize", json=asked)).json()
        back = await client.post(
            "/detokenize", json={"model": "scripted", "tokens": found["tokens"]}
        )
        chat = (await client.post("/tokenize", json={"model": "scripted", "messages": USER})).json()
    assert back.json() == {"prompt": text}
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert "The" in found["token_strs"]
    assert found["max_model_len"] == 32768
    assert chat["tokens"][0] == CHAT
    assert not factory.engines


async def test_a_loaded_model_uses_its_own_codec_and_vocabulary() -> None:
    reads: list[str] = []

    class Factory(ScriptedFactory):
        def codec(self, card: ModelCard) -> ScriptedCodec:
            reads.append(card.id)
            return super().codec(card)

    async with MLXModelManager(engine="scripted", factory=Factory()) as manager:
        with pytest.raises(InvalidRequest, match="Which model"):
            await manager.afind()
        await manager.aload("scripted")
        assert (await manager.afind()).id == "scripted"
        ids = await manager.atokenize("scripted", TextPrompt("Hello"))
        assert await manager.adetokenize("scripted", ids) == "Hello"
        assert reads == ["scripted"]
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await manager.adetokenize("scripted", [1, VOCAB_SIZE])
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await manager.atoken_texts("scripted", [-1])
        with pytest.raises(ModelNotFound):
            await manager.atokenize("nothing", TextPrompt("Hello"))


def test_blocking_twins() -> None:
    settings = Settings.model_validate({"defaults": {"model": "scripted"}})
    with MLXModelManager(settings, engine="scripted") as manager:
        assert manager.find().id == "scripted"
        ids = manager.tokenize(None, TextPrompt("the model"))
        assert manager.detokenize(None, ids) == "the model"
        assert manager.token_texts(None, ids) == ["the", " model"]
        assert manager.tokenize(None, TextPrompt(token_ids=(5, 6))) == [5, 6]


# --- the demo's tokenizer -------------------------------------------------------------------


async def test_round_trip_on_the_demo_model_without_a_load() -> None:
    text = "Hello, world! What is MLX Router? Zürich 🌦"
    config = Settings.model_validate({"models": {"demo": {"path": str(DEMO)}}})
    async with running(MLXModelManager(config, model_directory=[])) as client:
        found = (await client.post("/tokenize", json={"prompt": text})).json()
        back = await client.post("/detokenize", json={"tokens": found["tokens"]})
        chat = (await client.post("/tokenize", json={"messages": USER})).json()
        read = await client.post("/detokenize", json={"tokens": chat["tokens"]})
        wrong = await client.post("/detokenize", json={"tokens": [10_000_000]})
        models = (await client.get("/models")).json()["data"]
    assert back.json() == {"prompt": text}
    assert "Hello" in read.json()["prompt"]
    assert "<|im_start|>" in read.json()["prompt"]
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "tokens"
    assert [one["state"] for one in models if one["id"] == "demo"] == [ModelState.UNLOADED]


# --- the codecs that are kept ---------------------------------------------------------------


def card(path: Path, name: str = "one") -> ModelCard:
    return ModelCard(id=name, path=path, kind=ModelKind.TEXT, architecture="test")


class Counting(ScriptedFactory):
    """Counts the codecs it makes; ``errors`` are raised first."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.made: list[str] = []
        self.errors = list(errors)

    def codec(self, card: ModelCard) -> ScriptedCodec:
        self.made.append(card.id)
        if self.errors:
            raise self.errors.pop(0)
        return super().codec(card)


def kept(factory: ScriptedFactory) -> Codecs:
    return Codecs(factory, ThreadPoolExecutor(2))


async def test_a_codec_is_read_once_for_all_who_ask(tmp_path: Path) -> None:
    factory = Counting()
    codecs = kept(factory)
    asking = [asyncio.create_task(codecs.get(card(tmp_path))) for _ in range(5)]
    asking[0].cancel()
    found = (await asyncio.gather(*asking, return_exceptions=True))[1:]
    assert factory.made == ["one"]
    assert all(one is found[0] for one in found)


async def test_a_codec_is_read_again_when_a_file_has_changed(tmp_path: Path) -> None:
    shutil.copy(DEMO / "config.json", tmp_path)
    factory = Counting()
    codecs = kept(factory)
    first = await codecs.get(card(tmp_path))
    assert first.size
    assert await codecs.get(card(tmp_path)) is first
    os.utime(tmp_path / "config.json", (1, 1))
    assert await codecs.get(card(tmp_path)) is not first
    assert factory.made == ["one", "one"]


async def test_four_codecs_are_kept(tmp_path: Path) -> None:
    factory = Counting()
    codecs = kept(factory)
    for name in ("a", "b", "c", "d", "a", "e", "a", "b"):
        await codecs.get(card(tmp_path, name))
    assert factory.made == ["a", "b", "c", "d", "e", "b"]


async def test_a_failure_is_told_and_not_kept(tmp_path: Path) -> None:
    factory = Counting(ModelCorrupt("Broken."), ValueError("secret"))
    codecs = kept(factory)
    with pytest.raises(ModelCorrupt):
        await codecs.get(card(tmp_path))
    with pytest.raises(ModelLoadFailed) as caught:
        await codecs.get(card(tmp_path))
    assert "secret" not in caught.value.message
    assert (await codecs.get(card(tmp_path))).decode([72]) == "H"


async def test_a_chat_is_written_by_the_template(tmp_path: Path) -> None:
    words = await kept(ScriptedFactory()).get(card(tmp_path))
    prompt = ChatPrompt((Message("user", "Hello"),))
    assert words.encode(prompt) == ScriptedCodec().encode_chat(prompt).ids
