"""Embeddings: the vectors are the model's own, in any company, and nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_router import MLXModelManager, Settings
from mlx_router.catalog.supported import installed
from mlx_router.domain import ModelCard, ModelKind, TextPrompt
from mlx_router.engine import embedding as engine_module
from mlx_router.engine.embedding import EmbeddingEngine
from mlx_router.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelCorrupt,
    ModelLoadFailed,
    ModelNotFound,
    RequestTimeout,
    ShuttingDown,
)
from mlx_router.runtime.embedding import MAX_OPEN, EmbeddingRequest
from tests.embedding_models import HIDDEN, POSITIONS, make_embedding_model, write_pooling
from tests.models import make_model
from tests.test_loading import check_closing_after_an_error
from tests.waiting import until

KINDS = ("bert", "xlm-roberta", "qwen3-embedding")
TEXTS = [
    "hello world",
    "the quick brown fox jumps over a lazy dog",
    "oslo",
    "cats sleep all day while birds sing loudly from tall trees near old river bank",
]


@pytest.fixture(scope="module")
def manager(embedding_models: Path) -> Iterator[MLXModelManager]:
    with MLXModelManager(model_directory=embedding_models) as manager:
        yield manager


@asynccontextmanager
async def running(
    models: Path, *, defaults: dict[str, Any] | None = None, **server: Any
) -> AsyncIterator[MLXModelManager]:
    settings = Settings.model_validate({"defaults": defaults or {}, "server": server})
    async with MLXModelManager(settings, model_directory=models) as manager:
        yield manager


def close(left: Sequence[float], right: Sequence[float], tolerance: float = 2e-5) -> bool:
    assert len(left) == len(right)
    return max(abs(x - y) for x, y in zip(left, right, strict=True)) < tolerance


def active(manager: MLXModelManager) -> int:
    return sum(one.active + one.waiting for one in manager.status().loaded)


class Gate:
    """Lets the forward passes of all embedding engines through one by one, or all at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.steps = threading.Semaphore(0)
        self.seen: list[list[list[int]]] = []
        forward = EmbeddingEngine._forward

        def gated(engine: EmbeddingEngine, prompts: Sequence[Sequence[int]]) -> mx.array:
            if prompts[0] != [0, 0]:  # else it is the load
                self.seen.append([list(prompt) for prompt in prompts])
                while not self.open.is_set() and not self.steps.acquire(timeout=0.01):
                    pass
            return forward(engine, prompts)

        monkeypatch.setattr(EmbeddingEngine, "_forward", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


# --- the vectors ----------------------------------------------------------------------------

POOLED: dict[str, Callable[[mx.array], mx.array]] = {
    "mean": lambda hidden: hidden.mean(axis=1),
    "cls": lambda hidden: hidden[:, 0],
    "max": lambda hidden: hidden.max(axis=1),
    "lasttoken": lambda hidden: hidden[:, -1],
}


@pytest.mark.parametrize(
    ("kind", "stated", "expected"),
    [
        ("bert", "mean", "mean"),
        ("bert", "cls", "cls"),
        ("bert", "max", "max"),
        ("bert", "lasttoken", "lasttoken"),
        ("xlm-roberta", "cls", "cls"),
        ("qwen3", None, "lasttoken"),
        ("qwen3", "mean", "mean"),
    ],
)
def test_the_vectors_are_the_models_own_pooled_as_it_says(
    kind: str, stated: str | None, expected: str, tmp_path: Path
) -> None:
    """Held against mlx-vlm's hidden states of each text by itself."""
    from mlx_vlm.embedding_loader import load_embedding_model
    from transformers import AutoTokenizer

    folder = make_embedding_model(kind, tmp_path / "one-embedding", pooling=stated)
    model = load_embedding_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with MLXModelManager(model_directory=tmp_path) as manager:
        vectors = manager.embed(TEXTS).vectors
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = mx.array([tokenizer.encode(text)])
        pooled = POOLED[expected](model(ids).last_hidden_state)[0]
        reference = pooled / mx.linalg.norm(pooled)
        assert close(vector, reference.tolist())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_vector_in_any_company(manager: MLXModelManager, kind: str) -> None:
    long = " ".join(TEXTS[3].split() * 4)
    together = manager.embed([*TEXTS, long, "fox"], kind).vectors
    for text, vector in zip([*TEXTS, long, "fox"], together, strict=True):
        assert close(manager.embed(text, kind).vectors[0], vector)
    assert not close(together[0], together[1], 0.01)


def test_long_and_short_texts_do_share_a_batch(
    embedding_models: Path, gate: Gate, manager: MLXModelManager
) -> None:
    """Else the test above would show nothing."""
    gate.open.set()
    manager.embed(TEXTS, "bert")
    assert len({len(prompt) for prompt in gate.seen[-1]}) == len(TEXTS)


@pytest.mark.parametrize(("dtype", "pooling"), [("float32", "mean"), ("bfloat16", "cls")])
def test_vectors_have_length_one_and_are_deterministic(
    dtype: str, pooling: str, tmp_path: Path
) -> None:
    make_embedding_model("bert", tmp_path / "bert", dtype=dtype, pooling=pooling)
    with MLXModelManager(model_directory=tmp_path) as manager:
        first, second = manager.embed(TEXTS), manager.embed(TEXTS)
    assert first.packed == second.packed
    assert [len(vector) for vector in first.vectors] == [HIDDEN] * len(TEXTS)
    for vector in first.vectors:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-6)


def test_many_texts_keep_their_order(manager: MLXModelManager) -> None:
    words = ["fox", "dog", "grass", "river", "bank", "oslo", "lima"]
    texts = [f"{words[i % 7]} {i} " * (1 + i % 5) for i in range(2 * MAX_OPEN + 9)]
    vectors = manager.embed(texts, "bert").vectors
    assert len(vectors) == len(texts)
    for index in (0, 1, 64, 65, MAX_OPEN, len(texts) - 1):
        assert close(manager.embed(texts[index], "bert").vectors[0], vectors[index])


def test_dimensions_cut_a_vector_and_bring_it_back_to_length_one(manager: MLXModelManager) -> None:
    whole = manager.embed(TEXTS, "bert").vectors
    cut = manager.embed(TEXTS, "bert", dimensions=5).vectors
    for long, short in zip(whole, cut, strict=True):
        norm = math.hypot(*long[:5])
        assert close(short, [number / norm for number in long[:5]], 1e-6)
    assert manager.embed(TEXTS, "bert", dimensions=HIDDEN).vectors == whole


def test_token_ids_are_taken_as_they_are(manager: MLXModelManager) -> None:
    ids = [manager.tokenize("bert", TextPrompt(text)) for text in TEXTS]
    by_text, by_ids = manager.embed(TEXTS, "bert"), manager.embed(ids, "bert")
    assert by_ids == by_text
    assert by_text.prompt_tokens == sum(map(len, ids))
    assert by_text.model == "tiny/bert"


async def test_the_async_twin(embedding_models: Path, manager: MLXModelManager) -> None:
    async with running(embedding_models) as own:
        results = await asyncio.gather(*(own.aembed(text, "bert") for text in TEXTS))
    for text, result in zip(TEXTS, results, strict=True):
        assert close(result.vectors[0], manager.embed(text, "bert").vectors[0])


# --- which model ----------------------------------------------------------------------------


def test_the_only_embedding_model_needs_no_name(tmp_path: Path) -> None:
    with MLXModelManager(model_directory=tmp_path) as manager:
        with pytest.raises(ModelNotFound, match="no embedding model"):
            manager.embed("hello")
        make_embedding_model("bert", tmp_path / "bert")  # found without a restart
        assert manager.embed("hello").model == "bert"


def test_of_several_models_one_must_be_named(manager: MLXModelManager) -> None:
    with pytest.raises(InvalidRequest, match=r"Which model\?.*tiny/bert") as caught:
        manager.embed("hello")
    assert caught.value.param == "model"


def test_a_text_model_is_refused_and_another_one_named(manager: MLXModelManager) -> None:
    with pytest.raises(InvalidRequest, match=r"kind text.*ask for tiny/bert") as caught:
        manager.embed("hello", "llama")
    assert caught.value.param == "model"
    assert "tiny/llama" not in [one.id for one in manager.status().loaded]


def test_a_chat_still_goes_to_the_text_model_that_was_used_last(tmp_path: Path) -> None:
    make_embedding_model("bert", tmp_path / "bert")
    for kind in ("llama", "qwen3"):
        make_model(kind, tmp_path / kind)
    with MLXModelManager(model_directory=tmp_path) as manager:
        manager.chat("Hello!", "qwen3", max_tokens=1)
        manager.embed("hello")
        assert manager.chat("Hello!", max_tokens=1).model == "qwen3"


def test_an_embedding_model_is_described_as_one(manager: MLXModelManager) -> None:
    contexts = {"bert": POSITIONS, "xlm-roberta": POSITIONS - 2, "qwen3-embedding": 2048}
    for kind, context in contexts.items():
        card = manager.model(kind).card
        assert card.kind == "embedding"
        assert card.context_length == context
        assert card.weight_bytes < card.required_bytes < card.weight_bytes + 2**28


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "limit"), [("bert", POSITIONS), ("xlm-roberta", POSITIONS - 2)])
def test_a_text_beyond_the_table_of_positions_is_refused(
    embedding_models: Path, kind: str, limit: int
) -> None:
    """Also if the config promises a longer context: MLX would read foreign memory."""
    settings = Settings.model_validate({"models": {f"tiny/{kind}": {"context_length": 4096}}})
    with MLXModelManager(settings, model_directory=embedding_models) as manager:
        assert manager.embed([[5] * limit], kind).prompt_tokens == limit
        with pytest.raises(ContextLengthExceeded) as caught:
            manager.embed([[5], [5] * (limit + 1), [6]], kind)
    assert f"context length is {limit} tokens" in caught.value.message
    assert f"input.1 has {limit + 1} tokens" in caught.value.message
    assert caught.value.param == "input.1"


@pytest.mark.parametrize(
    ("texts", "dimensions", "param", "part"),
    [
        (["a", ""], None, "input.1", "empty"),
        ("", None, "input", "empty"),
        ([], None, "input", "at least one"),
        ([[3], [3, 1000]], None, "input.1", "Token id 1000"),
        ([[3, -1]], None, "input", "Token id -1"),
        ([None], None, "input.0", "neither a text nor"),
        ([["a"]], None, "input.0", "neither a text nor"),
        (7, None, "input", "a text or a list of"),
        ("a", 0, "dimensions", "1 to 32"),
        ("a", HIDDEN + 1, "dimensions", "got 33"),
        ("a", 2.5, "dimensions", "whole number"),
    ],
)
def test_bad_input_is_named(
    manager: MLXModelManager, texts: Any, dimensions: Any, param: str, part: str
) -> None:
    with pytest.raises(InvalidRequest, match=part) as caught:
        manager.embed(texts, "bert", dimensions)
    assert caught.value.param == param


@pytest.fixture
def no_mlx_vlm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    find: Any = PathFinder.find_spec
    for name in ("mlx_vlm", "mlx_vlm.embedding_loader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        PathFinder,
        "find_spec",
        lambda name, *rest: None if name.startswith("mlx_vlm") else find(name, *rest),
    )
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.usefixtures("no_mlx_vlm")
def test_without_mlx_vlm_the_error_says_how_to_get_it(embedding_models: Path) -> None:
    with MLXModelManager(model_directory=embedding_models) as manager:
        with pytest.raises(ModelLoadFailed, match="uv sync --extra vision"):
            manager.embed("hello", "qwen3-embedding")
        with pytest.raises(ModelCorrupt, match="uv sync --extra vision"):
            manager.embed("hello", "bert")


def test_a_pooling_that_cannot_be_done_is_named(tmp_path: Path) -> None:
    make_embedding_model("bert", tmp_path / "bert", pooling="weightedmean")
    with (
        MLXModelManager(model_directory=tmp_path) as manager,
        pytest.raises(ModelLoadFailed, match="weightedmean"),
    ):
        manager.embed("hello")


def test_an_architecture_without_vectors_is_named(tmp_path: Path) -> None:
    write_pooling(make_model("llama", tmp_path / "llama"), "mean")
    with (
        MLXModelManager(model_directory=tmp_path) as manager,
        pytest.raises(ModelLoadFailed, match="architecture llama"),
    ):
        manager.embed("hello")


def test_a_text_model_is_served_without_mlx_vlm() -> None:
    code = (
        "import sys; from mlx_router import MLXModelManager\n"
        "with MLXModelManager(demo=True) as manager: manager.chat('Hello!', max_tokens=2)\n"
        "assert 'mlx_lm' in sys.modules and 'mlx_vlm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- batches and faults ---------------------------------------------------------------------


async def test_a_batch_is_bounded_and_holds_texts_of_about_one_length(
    embedding_models: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STEP_TOKENS", 300)
    gate.open.set()
    lengths = [3, 100, 5, 90, 4, 120, 3, 2, 128, 110]
    async with running(embedding_models) as manager:
        await manager.aembed([[5] * length for length in lengths], "bert")
        first = len(gate.seen)
        await manager.aembed([[5] * 3, [5] * 100], "bert")
        assert len(gate.seen) == first + 2
    batches = [[len(prompt) for prompt in batch] for batch in gate.seen[:first]]
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert any(len(batch) > 1 for batch in batches)
    assert all(max(batch) * len(batch) <= 300 for batch in batches)
    assert not any(min(batch) < 10 and max(batch) > 80 for batch in batches)


POISON = 77


def poisoned(forward: Any, act: str) -> Any:
    def forward_or_fail(engine: EmbeddingEngine, prompts: Sequence[Sequence[int]]) -> mx.array:
        bad = [POISON in prompt for prompt in prompts]
        if act == "raises" and any(bad):
            raise RuntimeError("injected")
        vectors: mx.array = forward(engine, prompts)
        return mx.where(mx.array(bad)[:, None], mx.nan, vectors)

    return forward_or_fail


@pytest.mark.parametrize("act", ["raises", "gives no numbers"])
async def test_a_text_that_fails_costs_no_other_request_its_vector(
    embedding_models: Path, act: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddingEngine, "_forward", poisoned(EmbeddingEngine._forward, act))
    async with running(embedding_models) as manager:
        alone = asyncio.create_task(manager.aembed([[5, 6]], "bert"))
        await until(lambda: bool(gate.seen))
        requests = [[[5, 9]], [[5, 8], [POISON, 9]], [[5, 7]]]
        tasks = [asyncio.create_task(manager.aembed(ids, "bert")) for ids in requests]
        await until(lambda: active(manager) == 4)
        gate.open.set()
        await alone
        good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, EngineFailed)
        assert bad.message.startswith("input.1: ")
        assert not isinstance(good, BaseException)
        assert not isinstance(fine, BaseException)
        again = await manager.aembed([[5, 9], [5, 7]], "bert")
        assert close(good.vectors[0], again.vectors[0])
        assert close(fine.vectors[0], again.vectors[1])


async def test_an_engine_that_dies_is_loaded_again(
    embedding_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(embedding_models) as manager:
        before = await manager.aembed("hello", "bert")
        with monkeypatch.context() as patch:
            patch.setattr(EmbeddingEngine, "step", lambda self: 1 / 0)
            with pytest.raises(EngineFailed):
                await manager.aembed("hello", "bert")
        assert await manager.aembed("hello", "bert") == before


def test_closing_is_not_stopped_by_an_error_that_nobody_has_looked_at(
    embedding_models: Path,
) -> None:
    folder = next(path.parent for path in embedding_models.rglob("bert*/config.json"))
    card = ModelCard(id="bert", path=folder, kind=ModelKind.EMBEDDING, architecture="bert")
    check_closing_after_an_error(EmbeddingEngine(card))


async def test_a_small_request_need_not_wait_for_all_of_a_large_one(
    embedding_models: Path, gate: Gate
) -> None:
    async with running(embedding_models) as manager:
        large = asyncio.create_task(manager.aembed([[5, 6]] * 20 * MAX_OPEN, "bert"))
        await until(lambda: bool(gate.seen))
        small = asyncio.create_task(manager.aembed([[5, 7]], "bert"))
        await until(lambda: active(manager) == 2)
        gate.open.set()
        await small
        assert not large.done()
        await large
    before = next(i for i, batch in enumerate(gate.seen) if [5, 7] in batch)
    assert before < len(gate.seen) // 3


# --- leaving, waiting, swapping -------------------------------------------------------------


async def test_a_request_that_is_given_up_is_computed_no_further(
    embedding_models: Path, gate: Gate
) -> None:
    async with running(embedding_models) as manager:
        given_up = asyncio.create_task(manager.aembed([[5, 6]] * 10 * MAX_OPEN, "bert"))
        await until(lambda: len(gate.seen) == 1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert active(manager) == 0
        gate.open.set()
        await manager.aembed([[5, 7]], "bert")
    assert gate.seen[1:] == [[[5, 7]]]


async def test_a_timeout_ends_the_request(embedding_models: Path, gate: Gate) -> None:
    async with running(embedding_models) as manager:
        request = EmbeddingRequest(("hello",), "bert", timeout=0.2)
        with pytest.raises(RequestTimeout):
            await manager.embed_request(request)
        assert active(manager) == 0
        gate.open.set()
        assert (await manager.aembed("hello", "bert")).vectors


async def test_closing_ends_what_is_under_way(embedding_models: Path, gate: Gate) -> None:
    async with running(embedding_models) as manager:
        under_way = asyncio.create_task(manager.aembed("hello", "bert"))
        await until(lambda: bool(gate.seen))
        closing = asyncio.create_task(manager.aclose())
        with pytest.raises(ShuttingDown):
            await under_way
        gate.open.set()
        await closing


async def test_text_and_embedding_models_take_turns_in_one_place(embedding_models: Path) -> None:
    async with running(embedding_models, defaults={"cache_size": 1}) as manager:
        answers, vectors = [], []
        for _ in range(2):
            chat = manager.achat("Hello!", "llama", max_tokens=5, temperature=0)
            answer, result = await asyncio.gather(chat, manager.aembed(TEXTS, "bert"))
            answers.append(answer.content)
            vectors.append(result.packed)
            assert len(manager.status().loaded) == 1
        await manager.aunload("bert")
        await manager.aunload("llama")
        assert manager.status().loaded == []
    assert answers[0] == answers[1] != ""
    assert vectors[0] == vectors[1]


def test_two_managers_and_no_thread_is_left(embedding_models: Path) -> None:
    before = set(threading.enumerate())
    for _ in range(2):
        with MLXModelManager(model_directory=embedding_models) as manager:
            assert manager.embed("hello", "qwen3-embedding").vectors
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("engine ")]
    assert left == []
