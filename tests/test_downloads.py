"""Models fetched on request, from a stand-in of the Hugging Face Hub over real HTTP."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from collections import namedtuple
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from openai import NotFoundError, OpenAI

from mlx_router import (
    Completed,
    GenerationEvent,
    GenerationRequest,
    MLXModelManager,
    Preparing,
    Settings,
    Started,
)
from mlx_router.downloads import downloads as waiting
from mlx_router.downloads import job, transfer
from mlx_router.downloads.selection import RepoFile, is_repository_name, needed
from mlx_router.errors import (
    InsufficientMemory,
    InsufficientStorage,
    ModelCorrupt,
    ModelNotFound,
    PermissionDenied,
    QueueFull,
    RouterError,
    ShuttingDown,
    Unavailable,
)
from tests.api_support import FakeManager, client_for, fails, post, says
from tests.embedding_models import make_embedding_model
from tests.hub_server import COMMIT, TOKEN, Gate, HubServer, hub_in_use
from tests.models import add_remote_code, copy_model, make_model
from tests.server import ServerProcess
from tests.waiting import until_sync

MODEL = "tiny/qwen3"
WEIGHTS = "model.safetensors"
HALF = 300_000  # bytes; the weights of a tiny model are a little less than twice as many


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it is on the Hub, with files beside it that nobody needs here."""
    folder = make_model("qwen3", tmp_path_factory.mktemp("hub") / "qwen3")
    (folder / "README.md").write_text("# A model\n")
    (folder / ".gitattributes").write_text("")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "consolidated.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    return folder


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that has MODEL, for this process and for server processes that it starts."""
    with hub_in_use(tmp_path, monkeypatch) as server:
        server.add(MODEL, source)
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def manager(hub: HubServer, models: Path, tmp_path: Path) -> Iterator[MLXModelManager]:
    with make_manager(models, tmp_path) as manager:
        yield manager


def make_manager(models: Path, tmp_path: Path, **entry: Any) -> MLXModelManager:
    config = {
        "defaults": {"allow_downloads": True, "state_directory": str(tmp_path / "state")},
        "models": {MODEL: entry},
    }
    return MLXModelManager(Settings.model_validate(config), model_directory=models)


def refused(manager: MLXModelManager, kind: type[RouterError], name: str = MODEL) -> str:
    """The message of the error that asking for a model gives; the model directory stays empty."""
    with pytest.raises(kind) as caught:
        manager.find(name)
    assert type(caught.value) is kind
    assert caught.value.param == "model"
    folders = manager.settings.defaults.model_directories()
    assert [f.name for f in folders[0].iterdir() if not f.name.startswith(".")] == []
    return caught.value.message


# --- the way it goes ------------------------------------------------------------------------


def test_a_model_is_downloaded_loaded_and_answers(
    hub: HubServer, manager: MLXModelManager, models: Path, source: Path
) -> None:
    answer = manager.chat("Hello?", model=MODEL, max_tokens=4)
    assert answer.model == MODEL
    assert answer.usage.completion_tokens == 4
    folder = models / MODEL
    assert sorted(file.name for file in folder.iterdir()) == [
        *("chat_template.jinja", "config.json", "generation_config.json", WEIGHTS),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    for file in folder.iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes()
    assert not list(models.rglob("*.incomplete"))
    asked = len(hub.seen)
    manager.chat("Hello again?", model="qwen3", max_tokens=1)
    assert len(hub.seen) == asked


def test_an_embedding_model_is_downloaded_with_its_pooling(
    hub: HubServer, manager: MLXModelManager, models: Path, tmp_path: Path
) -> None:
    here = make_embedding_model("bert", tmp_path / "here" / "tiny" / "bert")
    hub.add("tiny/bert", here)
    fetched = manager.embed("Hello", model="tiny/bert")
    assert (models / "tiny/bert/1_Pooling/config.json").exists()
    with MLXModelManager(manager.settings, model_directory=tmp_path / "here") as local:
        assert local.embed("Hello").packed == fetched.packed


def test_requests_for_one_model_share_one_download(
    hub: HubServer, manager: MLXModelManager
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(manager.find, MODEL)]
        assert gate.reached.wait(20)
        found += [pool.submit(manager.find, name) for name in ("Tiny/Qwen3", MODEL)]
        loaded = pool.submit(manager.load, MODEL)
        gate.opened.set()
        assert {one.result().id for one in found} == {MODEL}
        assert loaded.result().card.id == MODEL
    assert len(hub.reads(WEIGHTS)) == 1


def test_a_stream_of_the_library_says_what_it_waits_for(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REPORT_SECONDS", 0.02)
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    events = manager.stream("Hello?", model=MODEL, max_tokens=3)
    texts = []
    for event in events:
        if not isinstance(event, Preparing):
            break
        texts.append(event.text)
        (request,) = manager.activity.live.values()
        assert (request.phase, request.detail) == ("waiting", event.text)
        if " 5" in event.text:
            gate.opened.set()
    assert isinstance(event, Started)
    assert (request.phase, request.detail) == ("prefill", "")
    assert f"downloading {MODEL} 5" in " ".join(texts)
    assert texts[-1].endswith("% of 0.6 MB")
    rest = list(events)
    assert isinstance(rest[-1], Completed)
    assert not any(isinstance(event, Preparing) for event in rest)


def test_the_log_says_how_far_a_download_is(
    hub: HubServer,
    manager: MLXModelManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(job, "_LOG_SECONDS", (0.0, 0.0))
    caplog.set_level("INFO", "mlx_router.downloads")
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(manager.find, MODEL)
        until_sync(lambda: f"downloading {MODEL} 5" in caplog.text)
        gate.opened.set()
        found.result()
    lines = [record.getMessage() for record in caplog.records if ".downloads." in record.name]
    assert lines[0] == f"downloading {MODEL}: 6 files, 0.6 MB, of which 0.0 MB are here already"
    assert re.fullmatch(rf"downloading {MODEL} 5\d % of 0.6 MB, [\d.]+ MB a second", lines[1])
    assert re.fullmatch(rf"downloaded {MODEL}: 0.6 MB in .* s \(.* MB a second\)", lines[-1])


def test_a_download_goes_on_when_all_who_asked_have_left(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REPORT_SECONDS", 0.02)
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    events = manager.stream("Hello?", model=MODEL)
    assert isinstance(next(events), Preparing)
    events.close()
    gate.opened.set()
    until_sync(lambda: any(card.id == MODEL for card in manager.cards()))
    manager.find(MODEL)
    assert len(hub.reads(WEIGHTS)) == 1


def test_the_download_does_not_count_against_the_timeout(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REPORT_SECONDS", 0.02)
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    events = manager.stream("Hello?", model=MODEL, max_tokens=2, timeout=3.0)
    # Each report comes after 0.02 s of waiting: together they take longer than the timeout.
    reports = [next(events) for _ in range(160)]
    assert all(isinstance(event, Preparing) for event in reports)
    gate.opened.set()
    assert isinstance(list(events)[-1], Completed)


def test_the_models_of_other_repositories_queue(
    hub: HubServer, models: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "AT_ONCE", 1)
    monkeypatch.setattr(waiting, "MAX_JOBS", 2)
    monkeypatch.setattr(waiting, "REPORT_SECONDS", 0.02)
    hub.add("tiny/second", source)
    hub.add("tiny/third", source)
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with make_manager(models, tmp_path) as manager, ThreadPoolExecutor(1) as pool:
        first = pool.submit(manager.find, MODEL)
        assert gate.reached.wait(20)
        second = manager.stream("Hello?", model="tiny/second", max_tokens=1)
        until_sync(lambda: "waiting for other downloads" in str(next(second)))
        with pytest.raises(QueueFull, match="tiny/third is not downloaded: 2 other models"):
            manager.find("tiny/third")
        assert len(hub.reads(WEIGHTS)) == 1
        gate.opened.set()
        assert first.result().id == MODEL
        assert isinstance(list(second)[-1], Completed)


# --- interrupted ----------------------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_stopped(
    hub: HubServer, manager: MLXModelManager
) -> None:
    hub.cuts[WEIGHTS] = [HALF, 100_000]
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, HALF, HALF + 100_000]


def test_a_mirror_without_ranges_sends_the_file_again(
    hub: HubServer, manager: MLXModelManager
) -> None:
    hub.ranges = False
    hub.cuts[WEIGHTS] = [HALF]
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, HALF]


def test_a_download_that_gave_up_goes_on_at_the_next_request(
    hub: HubServer, manager: MLXModelManager
) -> None:
    hub.cuts[WEIGHTS] = [HALF, *[0] * 5]
    assert "cannot be reached" in refused(manager, Unavailable)
    hub.cuts[WEIGHTS] = []
    before = len(hub.reads(WEIGHTS))
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)[before:]] == [HALF]


def test_what_was_fetched_of_another_revision_is_not_mixed_in(
    hub: HubServer, manager: MLXModelManager, models: Path
) -> None:
    hub.cuts[WEIGHTS] = [HALF, *[0] * 5]
    refused(manager, Unavailable)
    hub.cuts[WEIGHTS] = []
    hub.repos[MODEL].commit = COMMIT[::-1]
    before = len(hub.reads(WEIGHTS))
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)[before:]] == [0]


def test_an_answer_that_ends_early_without_an_error_is_gone_on_with(
    hub: HubServer, manager: MLXModelManager, models: Path, source: Path
) -> None:
    hub.ends[WEIGHTS] = [HALF, 100_000]
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, HALF, HALF + 100_000]
    assert (models / MODEL / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_an_answer_that_always_ends_early_is_given_up_and_what_came_is_kept(
    hub: HubServer, manager: MLXModelManager
) -> None:
    hub.ends[WEIGHTS] = [HALF, *[0] * 5]
    assert "is not what it should be" in refused(manager, Unavailable)
    hub.ends.clear()
    before = len(hub.reads(WEIGHTS))
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)[before:]] == [HALF]


def test_no_more_than_the_announced_size_is_written(
    hub: HubServer, manager: MLXModelManager, models: Path, source: Path
) -> None:
    hub.extra = {WEIGHTS: bytes(5_000_000), "config.json": b"x"}
    assert manager.find(MODEL).usable
    for name in (WEIGHTS, "config.json"):
        assert (models / MODEL / name).read_bytes() == (source / name).read_bytes()
        assert len(hub.reads(name)) == 1


def test_a_mirror_without_hashes_is_refused(hub: HubServer, manager: MLXModelManager) -> None:
    hub.repos[MODEL].hashes = False
    assert "is not what it should be" in refused(manager, Unavailable)
    assert len(hub.seen) == 1


def test_a_damaged_file_is_fetched_again(
    hub: HubServer, manager: MLXModelManager, models: Path, source: Path
) -> None:
    hub.damage = {WEIGHTS: 1, "config.json": 1}
    assert manager.find(MODEL).usable
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, 0]
    assert (models / MODEL / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_a_file_that_stays_damaged_is_an_error(hub: HubServer, manager: MLXModelManager) -> None:
    hub.damage[WEIGHTS] = 100
    assert "is not what it should be" in refused(manager, Unavailable)


def test_a_download_whose_thread_does_not_start_can_be_asked_for_again(
    manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    fail_to_start("download", 1, monkeypatch)
    assert "gives this server no more threads" in refused(manager, Unavailable)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert manager.find(MODEL).usable


def test_no_file_is_written_after_a_download_whose_threads_did_not_all_start(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hub.gates["chat_template.jinja"] = Gate(1)  # the first file

    def soon() -> None:
        assert gate.reached.wait(20)
        threading.Timer(0.3, gate.opened.set).start()

    fail_to_start("download-file", 2, monkeypatch, soon)
    assert "gives this server no more threads" in refused(manager, Unavailable)
    assert "download-file" not in {thread.name for thread in threading.enumerate()}
    assert hub.reads("tokenizer.json") == []


def fail_to_start(
    name: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Let the start of the threads of that name fail, from the given number of them on."""
    start, count = threading.Thread.start, 0

    def fails(thread: threading.Thread) -> None:
        nonlocal count
        count += thread.name == name
        if thread.name == name and count >= number:
            before()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)


def test_closing_ends_a_download_at_once_and_says_so(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    manager = make_manager(models, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(manager.find, MODEL)
        assert gate.reached.wait(20)
        manager.close()
        assert not gate.opened.is_set()
        with pytest.raises(ShuttingDown, match="goes on at the next request"):
            waiter.result(timeout=5)
    gate.opened.set()
    with make_manager(models, tmp_path) as manager:
        assert manager.find(MODEL).usable


def test_two_processes_do_not_write_to_the_same_files(
    hub: HubServer,
    manager: MLXModelManager,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two managers stand for them: a file lock tells them apart as it does processes."""
    monkeypatch.setattr(waiting, "REPORT_SECONDS", 0.02)
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with make_manager(models, tmp_path) as other, ThreadPoolExecutor(1) as pool:
        first = pool.submit(manager.find, MODEL)
        assert gate.reached.wait(20)
        second = other.stream("Hello?", model=MODEL, max_tokens=1)
        until_sync(lambda: "waiting for another process" in str(next(second)))
        gate.opened.set()
        assert first.result().id == MODEL
        assert isinstance(list(second)[-1], Completed)
    assert len(hub.reads(WEIGHTS)) == 1


# --- refused --------------------------------------------------------------------------------


def test_off_by_default_and_nobody_is_asked(hub: HubServer, models: Path, tmp_path: Path) -> None:
    settings = Settings.model_validate({"defaults": {"state_directory": str(tmp_path / "state")}})
    assert not settings.defaults.allow_downloads
    make_model("llama", models / "tiny" / "llama")
    with MLXModelManager(settings, model_directory=models) as manager:
        with pytest.raises(ModelNotFound) as caught:
            manager.find("tiny/lama")
        assert "The nearest are: tiny/llama" in caught.value.message
        assert "defaults.allow_downloads" in caught.value.message
        with pytest.raises(ModelNotFound) as caught:
            manager.find("lama")
        assert "allow_downloads" not in caught.value.message
    assert hub.seen == []


@pytest.mark.parametrize(
    "name",
    [
        *("qwen3", "tiny/../qwen3", "../qwen3", "/tiny/qwen3", "https://huggingface.co/tiny/qwen3"),
        *("tiny/qwen3@main", "tiny/qwen3:main", "tiny/qwen3/config.json", "tiny//qwen3", "a\0b/c"),
        *("tiny/.qwen3", ".tiny/qwen3", "tiny/qwen3.git", "tiny/a--b", "tiny/", "~/qwen3", "é/b"),
        *("tiny\\qwen3/x", "tiny/" + "x" * 200, "models--tiny/qwen3", "tiny/qwen3\n", "-a/b"),
    ],
)
def test_a_name_that_is_no_repositorys_is_never_asked_for(
    name: str, hub: HubServer, manager: MLXModelManager
) -> None:
    assert not is_repository_name(name)
    assert "Hugging Face" not in refused(manager, ModelNotFound, name)
    assert hub.seen == []


@pytest.mark.parametrize("name", [MODEL, "mlx-community/Qwen3-4B-4bit", "01-ai/Yi_1.5", "a/b"])
def test_names_of_repositories(name: str) -> None:
    assert is_repository_name(name)


def test_a_repository_that_does_not_exist_is_not_found(
    hub: HubServer, manager: MLXModelManager, models: Path
) -> None:
    message = refused(manager, ModelNotFound, "tiny/qwen4")
    assert message.startswith("The model 'tiny/qwen4' does not exist")
    assert "does not have tiny/qwen4 either" in message
    manager.find(MODEL)
    with pytest.raises(ModelNotFound, match=f"The nearest are: {MODEL}"):
        manager.find("tiny/qwen4")


def test_a_name_that_the_hub_does_not_have_is_not_asked_for_again_at_once(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_REMEMBERED", 2)
    for name in ("a/one", "a/two", "a/three"):
        refused(manager, ModelNotFound, name)
    assert len(hub.seen) == 3
    assert "does not have a/three either" in refused(manager, ModelNotFound, "A/Three")
    refused(manager, ModelNotFound, "a/two")
    assert len(hub.seen) == 3
    refused(manager, ModelNotFound, "a/one")  # forgotten for the others
    assert len(hub.seen) == 4
    monkeypatch.setattr(waiting, "REMEMBER_SECONDS", 0.0)
    for _ in range(2):
        refused(manager, ModelNotFound, "a/four")
    assert len(hub.seen) == 6


@pytest.mark.parametrize(("code", "word"), [("GatedRepo", "licence"), (None, "hf auth login")])
def test_a_model_that_wants_a_login_says_so(
    code: str | None, word: str, hub: HubServer, manager: MLXModelManager
) -> None:
    hub.repos[MODEL].problem = code or "Forbidden"
    message = refused(manager, PermissionDenied)
    assert word in message
    assert "HF_TOKEN" in message


def test_a_token_opens_a_gated_model_and_goes_to_the_hub_alone(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[MODEL].problem = "GatedRepo"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert manager.find(MODEL).usable
    assert {seen.token for seen in hub.seen if seen.host.startswith("127.")} == {True}
    assert {seen.token for seen in hub.seen if seen.host.startswith("localhost")} == {False}


@pytest.mark.parametrize("status", [500, 503, 429, 404])
def test_a_hub_in_trouble_is_unavailable(
    status: int, hub: HubServer, manager: MLXModelManager
) -> None:
    hub.status = status
    with pytest.raises(Unavailable, match=f"status {status}") as caught:
        manager.find(MODEL)
    assert caught.value.status == 503
    assert caught.value.retry_after


def test_an_unreachable_hub_is_unavailable(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REMEMBER_SECONDS", 0.0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(manager, Unavailable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(manager, Unavailable)
    assert hub.seen == []


def test_an_unreachable_hub_is_named_with_the_nearest_models_and_left_alone_for_a_while(
    hub: HubServer, manager: MLXModelManager, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("llama", models / "tiny" / "llama")
    hub.status = 503
    for _ in range(3):
        with pytest.raises(Unavailable, match="status 503") as caught:
            manager.find("tiny/lama")
        assert "The nearest are: tiny/llama" in caught.value.message
        assert caught.value.retry_after
    assert len(hub.seen) == 1


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[]", b'{"id": "x"}'])
def test_an_answer_that_is_not_the_hubs_is_unavailable(
    body: bytes, hub: HubServer, manager: MLXModelManager
) -> None:
    hub.listing = body
    assert "is not what it should be" in refused(manager, Unavailable)


def test_a_repository_without_safetensors_is_refused(
    hub: HubServer, manager: MLXModelManager
) -> None:
    files = hub.repos[MODEL].files
    hub.repos[MODEL].files = {"config.json": files["config.json"], "model-q4.gguf": b"GGUF"}
    message = refused(manager, ModelCorrupt)
    assert "no weights in safetensors on the Hugging Face Hub (only .gguf files)" in message
    assert len(hub.seen) == 1


def test_a_model_with_its_own_code_is_refused_before_its_weights(
    hub: HubServer, models: Path, tmp_path: Path, source: Path
) -> None:
    own = copy_model(source, tmp_path / "own")
    canary = tmp_path / "canary"
    add_remote_code(own, canary)
    hub.add(MODEL, own)
    with make_manager(models, tmp_path) as manager:
        message = refused(manager, ModelCorrupt)
        assert "asks to run its own code (auto_map in config.json)" in message
        assert hub.reads(WEIGHTS) == hub.reads("modeling_own.py") == []
        assert not list(models.rglob("config.json"))
    with make_manager(models, tmp_path, trust_remote_code=True) as manager:
        assert manager.find(MODEL).usable
    assert (models / MODEL / "modeling_own.py").exists()
    assert not canary.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files: files.pop("tokenizer.json"), "has no tokenizer"),
        (lambda files: files.pop("config.json"), "config.json is missing"),
        (
            lambda files: files.update({"config.json": b'{"model_type": "nonesuch"}'}),
            "architecture nonesuch",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_its_weights(
    change: Callable[[dict[str, bytes]], Any],
    problem: str,
    hub: HubServer,
    manager: MLXModelManager,
) -> None:
    change(hub.repos[MODEL].files)
    assert problem in refused(manager, ModelCorrupt)
    assert hub.reads(WEIGHTS) == []


def test_a_model_that_can_never_fit_is_refused_before_the_download(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    hub.repos[MODEL].sizes[WEIGHTS] = 2**50
    with make_manager(models, tmp_path) as manager:
        message = refused(manager, InsufficientMemory)
        assert "it needs 1258291.2 GB and this machine has " in message
        assert len(hub.seen) == 1
    hub.repos[MODEL].sizes.clear()
    with make_manager(models, tmp_path, required_memory_gb=50_000) as manager:
        assert "it needs 60000.0 GB" in refused(manager, InsufficientMemory)


def test_a_repository_that_fills_the_disk_beside_a_small_model_is_refused(
    hub: HubServer, manager: MLXModelManager
) -> None:
    repo = hub.repos[MODEL]
    repo.files["x.txt"] = b"x"
    repo.sizes["x.txt"] = 900 * 2**30
    message = refused(manager, ModelCorrupt)
    assert "7 files, of which those that are no weights have 900.0 GB; a model may have" in message
    del repo.files["x.txt"]
    repo.files |= {f"{number}.txt": b"x" for number in range(job.MAX_FILES)}
    assert f"it has {job.MAX_FILES + 6} files" in refused(manager, ModelCorrupt)
    assert len(hub.seen) == 2


def test_a_full_disk_is_known_before_the_download(
    hub: HubServer, manager: MLXModelManager, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0))
    message = refused(manager, InsufficientStorage)
    assert "it needs 0.6 MB and there is room for 0.0 MB " in message
    assert "in the model directory models (1.0 GB of the disk stay free)" in message
    assert str(models) not in message
    assert len(hub.seen) == 1
    free = job.KEEP_FREE_BYTES + HALF
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free))
    assert "it needs 0.6 MB and there is room for 0.3 MB" in refused(manager, InsufficientStorage)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free + HALF))
    assert manager.find(MODEL).usable


def test_a_disk_that_fills_up_meanwhile_is_an_error_of_its_own(
    hub: HubServer, manager: MLXModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "_write", full)
    assert refused(manager, InsufficientStorage).startswith("The disk is full")


def test_a_model_directory_that_cannot_be_written_is_an_error(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    (models / ".downloads").write_text("in the way")
    with make_manager(models, tmp_path) as manager:
        assert "it cannot be written (File exists)" in refused(manager, Unavailable)


def test_a_link_does_not_lead_a_download_out_of_the_model_directory(
    hub: HubServer, manager: MLXModelManager, models: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (models / "tiny").symlink_to(outside)
    with pytest.raises(PermissionDenied, match="a link in the model directory"):
        manager.find(MODEL)
    assert list(outside.iterdir()) == []
    assert len(hub.seen) == 1


def test_a_folder_of_that_name_is_not_overwritten(
    hub: HubServer, manager: MLXModelManager, models: Path
) -> None:
    (models / MODEL).mkdir(parents=True)
    (models / MODEL / "notes.txt").write_text("mine")
    with pytest.raises(ModelCorrupt, match="has a folder of that name, without a model in it"):
        manager.find(MODEL)
    assert (models / MODEL / "notes.txt").read_text() == "mine"
    (models / MODEL / "notes.txt").unlink()
    assert manager.find(MODEL).usable


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_a_model_is_not_downloaded_into_another_where_it_would_not_be_found(
    file: str, hub: HubServer, manager: MLXModelManager, models: Path
) -> None:
    (models / "tiny").mkdir()
    (models / "tiny" / file).write_text("{}")
    with pytest.raises(ModelCorrupt, match="the folder tiny in the model directory is itself a "):
        manager.find(MODEL)
    assert len(hub.seen) == 1
    (models / "tiny" / file).unlink()
    assert manager.find(MODEL).usable


def test_only_plain_names_of_needed_files_are_taken() -> None:
    names = [
        *("config.json", "merges.txt", "tokenizer.model", "qwen.tiktoken", "chat_template.jinja"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json",),
    ]
    others = [
        *(
            "../evil.json",
            "/etc/x.json",
            "a/b.json",
            ".hidden.json",
            "x/../config.json",
            "README.md",
        ),
        *("original/model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"),
        *("pytorch_model.bin", "model.gguf", "model.pt", "modeling.py", "a\\b.json", "..json"),
        *("Dense/model.safetensors", "2_Dense/.x.safetensors", "2_Dense/a/x.safetensors"),
    ]
    files = [RepoFile(name, 1) for name in names + others]
    assert sorted(file.name for file in needed(files, with_code=False)) == sorted(names)
    assert sorted(f.name for f in needed(files, with_code=True)) == sorted([*names, "modeling.py"])
    lone = [RepoFile("weights.safetensors", 1), RepoFile("adapter_model.safetensors", 1)]
    assert [file.name for file in needed(lone, with_code=False)] == ["weights.safetensors"]


def test_weights_of_a_dense_layer_are_no_model() -> None:
    files = [RepoFile("2_Dense/config.json", 1), RepoFile("2_Dense/model.safetensors", 1)]
    assert not any(file.is_weights for file in needed(files, with_code=False))


def test_names_that_differ_in_case_alone_are_one_file() -> None:
    names = ["config.json", "Config.json", "config.json", "Model.safetensors", "model.safetensors"]
    chosen = needed([RepoFile(name, 1) for name in names], with_code=False)
    assert [file.name for file in chosen] == ["config.json", "model.safetensors"]


# --- through a server -----------------------------------------------------------------------

CONFIG = {"defaults": {"allow_downloads": True}, "server": {"keep_alive_seconds": 60}}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


def test_a_server_downloads_a_model_for_an_openai_client(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    hub.repos["tiny/gated"] = replace(hub.repos[MODEL], problem="GatedRepo")
    hub.repos["tiny/gguf"] = replace(hub.repos[MODEL], files={"m.gguf": b"GGUF"})
    hub.repos["tiny/large"] = replace(hub.repos[MODEL], sizes={WEIGHTS: 2**50})
    with ServerProcess(tmp_path, config=CONFIG, models=models) as server:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        answer = client.chat.completions.create(**QUESTION)  # type: ignore[call-overload]
        assert answer.model == MODEL
        assert answer.usage.completion_tokens == 3
        with pytest.raises(NotFoundError) as caught:
            client.chat.completions.create(**{**QUESTION, "model": "tiny/qwen4"})  # type: ignore[call-overload]
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        for name, status, code in (
            ("tiny/gated", 403, "permission_denied"),
            ("tiny/gguf", 400, "model_corrupt"),
            ("tiny/large", 503, "insufficient_memory"),
        ):
            for stream in (False, True):
                asked = {**QUESTION, "model": name, "stream": stream}
                refusal = httpx.post(f"{server.url}/chat/completions", json=asked, timeout=30)
                assert (refusal.status_code, refusal.json()["error"]["code"]) == (status, code)
        hub.status = 503
        refusal = httpx.post(
            f"{server.url}/chat/completions", json={**QUESTION, "model": "a/b"}, timeout=30
        )
        assert refusal.status_code == 503
        assert int(refusal.headers["retry-after"]) > 0
    log = server.output()
    assert f"downloading {MODEL}: 6 files, 0.6 MB, of which 0.0 MB are here already" in log
    assert re.search(rf"downloaded {MODEL}: 0.6 MB in [\d.]+ s \([\d.]+ MB a second\)", log)
    assert "HTTP Request" not in log
    assert "Traceback" not in log


def test_a_streamed_answer_says_how_far_the_download_is(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    asked = {**QUESTION, "stream": True}
    with (
        ServerProcess(tmp_path, config=CONFIG, models=models) as server,
        httpx.stream("POST", f"{server.url}/chat/completions", json=asked, timeout=60) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        comments = []
        for line in lines:
            if line.startswith("data:"):
                break
            if line:
                comments.append(line)
            if re.fullmatch(rf": downloading {MODEL} 5\d % of 0.6 MB", line):
                gate.opened.set()
        assert gate.opened.is_set()
        assert all(line.startswith(": downloading") for line in comments)
        assert json.loads(line.removeprefix("data: "))["model"] == MODEL
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert all(line.startswith("data: ") for line in rest)


@contextmanager
def downloading(
    gate: Gate, models: Path, folder: Path
) -> Iterator[tuple[ServerProcess, Future[httpx.Response]]]:
    """A server that was asked for a model, and has got as far as the gate with its weights."""
    with (
        ServerProcess(folder, config=CONFIG, models=models) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        url = f"{server.url}/chat/completions"
        asked = pool.submit(httpx.post, url, json=QUESTION, timeout=60)
        assert gate.reached.wait(30)
        yield server, asked


def test_a_killed_server_goes_on_with_the_download_where_it_stopped(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with downloading(gate, models, tmp_path) as (server, lost):
        partial = (
            models / ".downloads" / MODEL.replace("/", "--") / COMMIT / f"{WEIGHTS}.incomplete"
        )
        until_sync(lambda: partial.exists() and partial.stat().st_size == HALF)
        server.stop(signal.SIGKILL)
        assert isinstance(lost.exception(), httpx.TransportError)
    assert not (models / MODEL).exists()
    gate.opened.set()
    small = len(hub.reads("config.json"))
    with ServerProcess(tmp_path, config=CONFIG, models=models) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=QUESTION, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 3
    assert [seen.offset for seen in hub.reads(WEIGHTS)] == [0, HALF]
    assert len(hub.reads("config.json")) == small
    assert not list((models / ".downloads").glob("*/*"))


def test_a_server_that_is_told_to_end_does_not_wait_for_a_download(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    gate = hub.gates[WEIGHTS] = Gate(HALF)
    with downloading(gate, models, tmp_path) as (server, asked):
        assert server.stop() == 0  # in less than the Gate would hold it
        assert asked.result().status_code == 503
        assert asked.result().json()["error"]["code"] == "shutting_down"


def test_a_default_model_is_downloaded_at_the_start(
    hub: HubServer, models: Path, tmp_path: Path
) -> None:
    config = {**CONFIG, "default_model": MODEL}
    with ServerProcess(tmp_path, config=config, models=models) as server:
        asked = {key: value for key, value in QUESTION.items() if key != "model"}
        answer = httpx.post(f"{server.url}/chat/completions", json=asked, timeout=60)
        assert answer.json()["model"] == MODEL
    assert len(hub.reads(WEIGHTS)) == 1


# --- what the API makes of it ---------------------------------------------------------------


async def prepares(request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
    """Two reports, then a short answer."""
    yield Preparing("downloading org/tiny 0 % of 1.0 GB")
    yield Preparing("downloading org/tiny 50 % of 1.0 GB")
    async for event in says("Hello")(request):
        yield event


async def test_reports_are_comments_of_sse() -> None:
    answer = await post(FakeManager(prepares), stream=True)
    assert answer.text.startswith(
        ": downloading org/tiny 0 % of 1.0 GB\n\n: downloading org/tiny 50 % of 1.0 GB\n\ndata: {"
    )
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_reports_of_several_prompts_come_before_the_answer() -> None:
    async with client_for(FakeManager(prepares)) as client:
        asked = {"prompt": ["One", "Two"], "stream": True}
        answer = await client.post("/v1/completions", json=asked)
    *events, end = answer.text.split("\n\n")
    comments = [event for event in events if event.startswith(":")]
    assert 2 <= len(comments) <= 4
    assert events[: len(comments)] == comments
    assert (events[-1], end) == ("data: [DONE]", "")


async def test_reports_are_blank_json_lines() -> None:
    answer = await post(FakeManager(prepares), stream=True, streaming_format="json_lines")
    lines = answer.text.split("\n")
    assert lines[:2] == ["", ""]
    assert [json.loads(line) for line in lines[2:-1]][-1] == {"done": True}


@pytest.mark.parametrize("body", [{}, {"stream": True, "streaming_format": "json_array"}])
async def test_reports_leave_a_whole_answer_as_it_is(body: dict[str, Any]) -> None:
    answer = await post(FakeManager(prepares), **body)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"


async def test_an_error_after_a_report_ends_the_stream() -> None:
    script = fails(ModelNotFound("gone"), Preparing("downloading"))
    answer = await post(FakeManager(script), stream=True)
    assert answer.status_code == 200
    first, event, _ = answer.text.split("\n\n", 2)
    assert first == ": downloading"
    assert json.loads(event.removeprefix("data: "))["error"]["message"] == "gone"
