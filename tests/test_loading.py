"""A load that waits is prepared, one under way disturbs nobody, and what it found out is kept."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.llama import Model
from mlx_lm.utils import load_model

from mlx_router import MLXModelManager, Settings
from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine import device
from mlx_router.engine.base import BatchTrial, Engine, Job, LoadedModel, Sampling
from mlx_router.engine.batch import BatchRunner
from mlx_router.engine.loading import dismantle, load_error, weight_bytes
from mlx_router.engine.scripted import ScriptedCodec, ScriptedFactory, ScriptedOptions
from mlx_router.engine.text import TextEngine, TextEngineOptions
from mlx_router.errors import RouterError
from mlx_router.runtime.readahead import ReadAhead
from tests.waiting import until_sync

MB = 1 << 20
PLENTY = 1 << 40


# --- reading ahead --------------------------------------------------------------------------
# A pipe in the place of a file of weights shows what is read of it, and lets the reader wait.


def card(folder: Path) -> ModelCard:
    return ModelCard(id=folder.name, path=folder, kind=ModelKind.TEXT, architecture="llama")


def shard(folder: Path, number: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    pipe = folder / f"model-{number:05}-of-00002.safetensors"
    os.mkfifo(pipe)
    return pipe


def is_open(pipe: Path) -> bool:
    """Whether somebody reads it."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True


def taken(writer: int) -> int:
    """Fill the pipe until its reader leaves: how many bytes it took at most."""
    written = 0
    try:
        while True:
            written += os.write(writer, bytes(64 << 10))
    except BrokenPipeError:
        return written
    finally:
        os.close(writer)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


@pytest.fixture
def ahead() -> Iterator[ReadAhead]:
    reader = ReadAhead(lambda: PLENTY)
    yield reader
    reader.follow([])
    until_sync(lambda: not readers())


def test_shards_are_read_in_the_order_of_their_layers(ahead: ReadAhead, tmp_path: Path) -> None:
    second, first = shard(tmp_path / "model", 2), shard(tmp_path / "model", 1)
    ahead.follow([card(tmp_path / "model")])
    writer = os.open(first, os.O_WRONLY)  # returns when somebody reads it
    assert not is_open(second)
    os.close(writer)
    os.close(os.open(second, os.O_WRONLY))


def test_reading_ahead_stops_at_once(ahead: ReadAhead, tmp_path: Path) -> None:
    pipe = shard(tmp_path / "model")
    ahead.follow([card(tmp_path / "model")])
    writer = os.open(pipe, os.O_WRONLY)
    os.write(writer, b"weights")
    ahead.follow([])  # it is being loaded, or nobody waits any more
    assert taken(writer) <= MB
    until_sync(lambda: not readers())


def test_no_more_is_read_than_there_is_memory(tmp_path: Path) -> None:
    ahead = ReadAhead(lambda: (1 << 30) + 8 * MB)  # a gigabyte of it is to stay free
    pipe = shard(tmp_path / "model")
    ahead.follow([card(tmp_path / "model")])
    assert 4 * MB <= taken(os.open(pipe, os.O_WRONLY)) <= 9 * MB
    until_sync(lambda: not readers())


def test_without_memory_to_spare_nothing_is_read(tmp_path: Path) -> None:
    ahead = ReadAhead(lambda: MB)
    shard(tmp_path / "model")
    ahead.follow([card(tmp_path / "model")])
    until_sync(lambda: not readers())  # it would wait for the pipe


def test_a_model_is_read_once_while_it_waits(ahead: ReadAhead, tmp_path: Path) -> None:
    pipe = shard(tmp_path / "model")
    wanted = card(tmp_path / "model")
    ahead.follow([wanted])
    os.close(os.open(pipe, os.O_WRONLY))
    until_sync(lambda: not readers())
    ahead.follow([card(tmp_path), wanted])
    until_sync(lambda: not readers())  # it would wait for the pipe
    ahead.follow([])
    ahead.follow([wanted])
    os.close(os.open(pipe, os.O_WRONLY))


def test_a_folder_that_has_gone_costs_the_next_model_nothing(
    ahead: ReadAhead, tmp_path: Path
) -> None:
    gone, pipe = tmp_path / "gone", shard(tmp_path / "model")
    gone.mkdir()
    (gone / "model.safetensors").symlink_to(tmp_path / "nowhere")
    ahead.follow([card(gone), card(tmp_path / "model")])
    os.close(os.open(pipe, os.O_WRONLY))


async def test_a_model_that_must_wait_is_read_ahead(tmp_path: Path, tiny_models: Path) -> None:
    """And one that is loaded is not read again."""
    for name in ("one", "two"):
        shutil.copytree(tiny_models / "tiny" / "llama", tmp_path / name)
    stepping, gate = threading.Event(), threading.Event()
    factory = ScriptedFactory({"one": ScriptedOptions(stepping=stepping, step_gate=gate)})
    settings = Settings.model_validate({"defaults": {"cache_size": 1}})
    async with MLXModelManager(settings, model_directory=tmp_path, factory=factory) as manager:
        pipes = {}
        for name in ("one", "two"):
            await manager.aload(name)
            await manager.aunload(name)
            pipes[name] = shard(tmp_path / name)
        answers = [asyncio.create_task(manager.achat("Hello", "one"))]
        await asyncio.to_thread(stepping.wait, 20)
        answers.append(asyncio.create_task(manager.achat("Hello", "two")))
        writer = await asyncio.to_thread(os.open, pipes["two"], os.O_WRONLY)
        assert not is_open(pipes["one"])
        gate.set()
        await asyncio.to_thread(taken, writer)
        assert all(answer.content for answer in await asyncio.gather(*answers))


# --- what is served meanwhile ---------------------------------------------------------------


async def test_streams_go_on_while_a_model_loads() -> None:
    loading, gate = threading.Event(), threading.Event()
    factory = ScriptedFactory(
        {
            "scripted": ScriptedOptions(text="word " * 4000, step_delay=0.001),
            "scripted-2": ScriptedOptions(loading=loading, load_gate=gate),
        }
    )
    async with (
        MLXModelManager(Settings(), engine="scripted", factory=factory) as manager,
        aclosing(manager.astream("Hello", "scripted", max_tokens=20_000)) as events,
    ):
        await anext(events)
        other = asyncio.create_task(manager.achat("Hello", "scripted-2"))
        await asyncio.to_thread(loading.wait, 20)
        assert loading.is_set()
        for _ in range(100):
            await anext(events)
        assert not other.done()
        gate.set()
        assert (await other).content
        await anext(events)


# --- what is found out once -----------------------------------------------------------------


def on_thread(work: Callable[[], Any]) -> Any:
    """Run as an engine's thread does."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)
        finally:
            device.end_thread()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def leave_an_error() -> None:
    """Start a computation that fails, and do not look at what becomes of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "short.safetensors"
        mx.save_safetensors(str(file), {"array": mx.zeros(1 << 20)})
        late = cast("dict[str, mx.array]", mx.load(str(file)))["array"]
        os.truncate(file, 1000)
        mx.async_eval(late)  # type: ignore[no-untyped-call]


def loaded(folder: Path, trial: BatchTrial | None) -> LoadedModel:
    def load() -> LoadedModel:
        engine = TextEngine(card(folder), TextEngineOptions(batch_trial=trial))
        try:
            model = engine.load()
            engine.add(Job(id=1, prompt=[5, 6], max_tokens=2, sampling=Sampling()))
            tokens = 0
            while engine.busy:
                tokens += len(engine.step())
            assert tokens == 2
            return model
        finally:
            engine.close()

    result = on_thread(load)
    assert isinstance(result, LoadedModel)
    return result


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows with each pass of a llama."""
    counted: list[int] = []
    forward = Model.__call__

    def count(self: Any, inputs: mx.array, *rest: Any, **options: Any) -> mx.array:
        counted.append(inputs.shape[0])
        logits: mx.array = forward(self, inputs, *rest, **options)
        return logits

    monkeypatch.setattr(Model, "__call__", count)
    return counted


def test_batching_is_tried_once(tiny_models: Path, passes: list[int]) -> None:
    folder = tiny_models / "tiny" / "llama"
    first = loaded(folder, None)
    assert max(passes) > 1  # rows together
    assert first.batch_trial is not None
    assert first.batches
    passes.clear()
    assert loaded(folder, first.batch_trial) == first
    assert max(passes) == 1


def test_batching_is_tried_again_with_other_versions(tiny_models: Path, passes: list[int]) -> None:
    stale = BatchTrial(batches=False, reason="it did not work then", versions="mlx 0.0.1")
    model = loaded(tiny_models / "tiny" / "llama", stale)
    assert max(passes) > 1
    assert model.batches


def test_what_did_not_batch_is_served_alone_without_another_trial(
    tiny_models: Path, passes: list[int]
) -> None:
    known = BatchTrial(batches=False, reason="rows are mixed up", versions=device.versions())
    model = loaded(tiny_models / "tiny" / "llama", known)
    assert not model.batches
    assert model.batch_trial == known
    assert max(passes) == 1


def test_a_second_start_knows_what_the_first_found_out(
    tiny_models: Path, tmp_path: Path, passes: list[int]
) -> None:
    defaults = {"state_directory": str(tmp_path), "warmup_tokens": 0}
    settings = Settings.model_validate({"defaults": defaults})
    for start in range(2):
        passes.clear()
        with MLXModelManager(settings, model_directory=tiny_models) as manager:
            manager.chat("Hello", "llama", max_tokens=2)
        assert (max(passes) > 1) == (start == 0)


class FailingTrials:
    """Lets so many batches of several rows fail as for want of memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, error: Exception) -> None:
        self.failed = 0
        step = BatchRunner.step

        def fail(runner: BatchRunner) -> Any:
            if self.failed < count:
                self.failed += 1
                raise error
            return step(runner)

        monkeypatch.setattr(BatchRunner, "step", fail)


NO_MEMORY = RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")


def test_a_trial_that_fails_once_for_want_of_memory_is_made_again(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = FailingTrials(monkeypatch, 1, NO_MEMORY)
    model = loaded(tiny_models / "tiny" / "llama", None)
    assert trials.failed == 1
    assert model.batches


@pytest.mark.parametrize(
    ("error", "tries", "remembered"),
    [(NO_MEMORY, 2, False), (MemoryError(), 2, False), (ValueError("[broadcast_shapes]"), 1, True)],
)
def test_only_a_failure_that_will_come_again_is_remembered(
    error: Exception,
    tries: int,
    remembered: bool,
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a model whose trial failed is served alone."""
    defaults = {"state_directory": str(tmp_path), "warmup_tokens": 0}
    settings = Settings.model_validate({"defaults": defaults})
    for start in range(2):
        trials = FailingTrials(monkeypatch, tries if start == 0 else 0, error)
        with MLXModelManager(settings, model_directory=tiny_models) as manager:
            manager.chat("Hello", "llama", max_tokens=2)
        assert trials.failed == (tries if start == 0 else 0)
        entry = json.loads((tmp_path / "models.json").read_text())["models"]["tiny/llama"]
        batching = entry["batching"]
        if remembered:
            assert batching["batches"] is False
        else:
            assert batching is None if start == 0 else batching["batches"]


def test_a_tokenizer_is_read_once_however_often_its_model_is_swapped() -> None:
    """Reading a large one stops every stream for the better part of a second."""
    read = []

    class Factory(ScriptedFactory):
        def codec(self, card: ModelCard) -> ScriptedCodec:
            read.append(card.id)
            return super().codec(card)

    factory = Factory()
    settings = Settings.model_validate({"defaults": {"cache_size": 1}})
    with MLXModelManager(settings, engine="scripted", factory=factory) as manager:
        for _ in range(3):
            manager.chat("Hello", "scripted")
            manager.chat("Hello", "scripted-2")
    assert len(factory.engines) == 6
    assert read == ["scripted", "scripted-2"]


def test_what_a_server_has_imported_is_not_collected_again() -> None:
    """To look through all of it stops every stream for a tenth of a second."""
    code = (
        "import gc, sys\n"
        "from mlx_router.engine.device import prepare_process\n"
        "prepare_process()\n"
        "assert 'mlx_lm.generate' in sys.modules\n"
        "assert gc.get_freeze_count() > len(gc.get_objects())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- the end of a model ---------------------------------------------------------------------


def test_a_dismantled_model_holds_no_weights(tiny_models: Path) -> None:
    def held() -> tuple[int, int, int]:
        model, _ = load_model(tiny_models / "tiny" / "llama")
        size, before = weight_bytes(model), mx.get_active_memory()
        dismantle(model)
        return size, before, mx.get_active_memory()

    size, before, after = on_thread(held)
    assert size > 0
    assert before - after >= size


def test_buffers_that_others_reuse_are_dropped_once_for_100_mb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleared = []

    def held() -> tuple[int, int]:
        model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(60)))
        mx.eval(model.parameters())
        monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(mx.get_active_memory()))
        size, before = weight_bytes(model), mx.get_active_memory()
        dismantle(model)
        monkeypatch.undo()
        return size, before - mx.get_active_memory()

    size, freed = on_thread(held)
    assert freed >= size == 240 * MB
    assert len(cleared) == 2


def check_closing_after_an_error(engine: Engine) -> None:
    """An error that nobody has looked at does not stop it, and what may have suffered from it is
    not handed on."""
    used: list[mx.Stream] = []

    def close() -> None:
        before = mx.get_active_memory()
        engine.load()
        used.append(mx.default_stream(mx.cpu))
        leave_an_error()
        engine.close()
        assert mx.get_active_memory() <= before

    on_thread(close)
    assert used[0] not in device._idle_streams


def test_closing_is_not_stopped_by_an_error_that_nobody_has_looked_at(tiny_models: Path) -> None:
    check_closing_after_an_error(TextEngine(card(tiny_models / "tiny" / "llama")))
    assert loaded(tiny_models / "tiny" / "llama", None).batches


# --- what a client is told ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("No adapter: /Users/me/secret/one"), "No adapter: <path>"),
        (FileNotFoundError("No adapter:/Users/me/my secret"), "No adapter:<path>"),
        (FileNotFoundError(2, "No such file", "/Users/me/my secret"), "No such file: <path>"),
        (OSError("in '/Users/o/secret', see https://a.org/b"), "in <path>, see https://a.org/b"),
        (RuntimeError("(/Users/me/secret.safetensors)"), "(<path>"),
        (RuntimeError("~/secret is no folder"), "<path>"),
        (RuntimeError("file:///Users/me/secret"), "file:<path>"),
        (RuntimeError("x" * 180 + " '/Users/me/secret'"), "x <"),
        (
            RuntimeError("/models/one/config.json has and/or ../x </s> 1 / 2"),
            "has and/or ../x </s>",
        ),
        (RuntimeError("a\n/Users/me/secret"), "a"),
    ],
)
def test_what_a_client_is_told_of_a_failed_load_has_no_paths(error: Exception, told: str) -> None:
    message = load_error(card(Path("/models/one")), error).message
    assert told in message
    assert not any(part in message for part in ("/Users", "/models", "secret"))


def test_a_missing_adapter_is_said_without_its_path(tiny_models: Path, tmp_path: Path) -> None:
    options = TextEngineOptions(adapter_path=tmp_path / "of me" / "my adapter")
    engine = TextEngine(card(tiny_models / "tiny" / "llama"), options)

    def load() -> str:
        try:
            engine.load()
        except RouterError as error:
            return error.message
        finally:
            engine.close()
        return ""

    message = on_thread(load)
    assert "The adapter path does not exist: <path>" in message
    assert not any(part in message for part in ("of me", "my adapter", str(tmp_path)))
