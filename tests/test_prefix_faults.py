"""Computed prompts that cannot be kept, read or shared cost time, and never an answer."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mlx_router.engine import text
from mlx_router.engine.prefix import disk as disk_module
from mlx_router.engine.prefix.cache import PrefixCache
from mlx_router.engine.prefix.disk import PrefixDisk
from mlx_router.engine.prefix.files import Folder
from tests.server import ServerProcess
from tests.stepping import ByHand, make_job, words
from tests.test_text_engine import FailingRunner, make_gemma2
from tests.waiting import until_sync

PROMPT = words(600)
BLOCKS = 512  # tokens of it that are kept on disk, in two files
SHORT = words(20)
KEYS = {"ann": "sk-ann-1234567890abcdef", "bob": "sk-bob-1234567890abcdef"}


@pytest.fixture
def start(tiny_models: Path, tmp_path: Path) -> Iterator[Callable[..., ByHand]]:
    started: list[ByHand] = []

    def begin(name: str = "llama", *, disk_bytes: int = 10**9, **options: Any) -> ByHand:
        folder = tiny_models / "tiny" / name
        if name == "gemma2":
            folder = tmp_path / "gemma2"
            if not folder.exists():
                make_gemma2(folder, tiny_models / "tiny" / "llama")
        if disk_bytes:
            options["prefix_disk"] = (tmp_path / "disk", disk_bytes)
        options = {"prefill_step_size": 256} | options
        started.append(ByHand(folder, fingerprint="one", **options))
        return started[-1]

    yield begin
    for engine in started:
        if not engine.closed:
            engine.close()


def files(folder: Path) -> list[Path]:
    return sorted((folder / "disk").glob("*.safetensors"))


def cached(engine: ByHand, number: int, prompt: list[int] = PROMPT) -> tuple[int, list[Any]]:
    """How many tokens of the prompt were there, and the answer."""
    results = engine.run(make_job(number, prompt, 5))[number]
    assert results[-1].error is None
    return results[0].cached_tokens, [result.token for result in results]


def kept(engine: ByHand, folder: Path) -> list[Any]:
    """Have the prompt on disk; its answer."""
    none, answer = cached(engine, 1)
    assert none == 0
    until_sync(lambda: len(files(folder)) == 2)
    return answer


# --- where it is kept -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_memory_alone_disk_alone_and_neither(
    start: Callable[..., ByHand], tmp_path: Path, name: str
) -> None:
    plain = start(name, disk_bytes=0)
    _, answer = cached(plain, 1)
    assert cached(plain, 2) == (0, answer)
    in_memory = start(name, disk_bytes=0, prefix_cache_bytes=10**8)
    assert cached(in_memory, 1) == (0, answer)
    assert cached(in_memory, 2) == (len(PROMPT) - 1, answer)
    assert not (tmp_path / "disk").exists()
    on_disk = start(name)
    assert kept(on_disk, tmp_path) == answer
    assert cached(on_disk, 2) == (BLOCKS, answer)
    on_disk.close()
    assert cached(start(name), 1) == (BLOCKS, answer), "after an unload"


def test_a_prompt_is_read_once_and_found_in_memory_then(
    start: Callable[..., ByHand], tmp_path: Path
) -> None:
    first = start(prefix_cache_bytes=10**8)
    answer = kept(first, tmp_path)
    first.close()
    second = start(prefix_cache_bytes=10**8)
    assert cached(second, 1) == (BLOCKS, answer)
    assert cached(second, 2) == (len(PROMPT) - 1, answer)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"prompt_lookup": True}),
        ("gemma2", {}),
        ("gemma2", {"prompt_lookup": True}),
    ],
)
def test_what_is_kept_is_as_long_as_its_key_says(
    start: Callable[..., ByHand], name: str, options: dict[str, Any]
) -> None:
    """However an answer ends: by its length, a stop id, an abort at any moment, after a failure."""
    engine = start(name, disk_bytes=0, prefix_cache_bytes=10**8, prefill_step_size=16, **options)
    seen = set()

    def check() -> None:
        for entry in engine.engine._prefixes._entries:
            assert {layer.offset for layer in entry.cache} == {len(entry.key)}
            seen.add(len(entry.key))

    numbers = iter(range(1, 1000))
    for stop_ids in (frozenset[int](), frozenset(range(256)), frozenset(range(512))):
        for length in (1, 2, 9):
            job = make_job(next(numbers), words(40), length, stop_ids=stop_ids)
            engine.run(job)
            check()
    for steps in range(11):
        engine.call(engine.engine.drop_caches)
        number, other = next(numbers), next(numbers)
        engine.add(make_job(number, words(40), 30))
        for _ in range(steps):
            engine.step()
        if steps % 3 == 1:
            engine.engine._runner = FailingRunner(engine.runner, {1})
            engine.step()
            for _ in range(steps % 5):
                engine.step()
        engine.abort(number)
        check()
        engine.run(make_job(other, words(40), 3))
        check()
    assert len(seen) >= 4


# --- a disk that fails --------------------------------------------------------------------------


def test_a_disk_that_is_full_while_serving_costs_no_answer_and_is_said_once(
    start: Callable[..., ByHand],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = threading.Event()

    def full(*args: Any) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine = start()
    _, short = cached(engine, 1, SHORT)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Folder, "write", full)
        _, answer = cached(engine, 2)
        assert tried.wait(20)
        until_sync(lambda: "No space left" in caplog.text)
        assert cached(engine, 3) == (0, answer)
    assert caplog.text.count("No space left") == 1
    assert cached(engine, 4, SHORT) == (0, short)
    monkeypatch.setattr(engine.engine._disk, "_paused_until", 0.0)  # a minute later
    assert cached(engine, 5) == (0, answer)
    until_sync(lambda: len(files(tmp_path)) == 2)
    assert cached(engine, 6) == (BLOCKS, answer)


@pytest.mark.parametrize(
    ("name", "error"), [("llama", OSError(errno.EIO, "I/O error")), ("gemma2", MemoryError())]
)
def test_a_disk_that_cannot_be_read_costs_no_answer(
    start: Callable[..., ByHand],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Exception,
) -> None:
    engine = start(name)
    answer = kept(engine, tmp_path)

    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PrefixDisk, "_load", fail)
        assert cached(engine, 2) == (0, answer)
    assert cached(engine, 3) == (BLOCKS, answer)


@pytest.mark.parametrize("place", [0, 1])
def test_a_corrupt_file_costs_no_answer_and_goes(
    start: Callable[..., ByHand], tmp_path: Path, place: int
) -> None:
    engine = start()
    answer = kept(engine, tmp_path)
    engine.close()
    broken = files(tmp_path)[place]
    content = bytearray(broken.read_bytes())
    content[-100] ^= 1
    broken.write_bytes(content)
    again = start()
    assert cached(again, 1)[1] == answer
    # What is computed is kept anew.
    until_sync(lambda: cached(again, 2) == (BLOCKS, answer))


def test_files_that_vanish_while_serving_cost_no_answer(
    start: Callable[..., ByHand], tmp_path: Path
) -> None:
    engine = start()
    answer = kept(engine, tmp_path)
    for file in files(tmp_path):
        file.unlink()
    assert cached(engine, 2) == (0, answer)
    until_sync(lambda: len(files(tmp_path)) == 2)
    assert cached(engine, 3) == (BLOCKS, answer)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prompt_that_cannot_be_kept_costs_no_answer(
    start: Callable[..., ByHand], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = start(name, disk_bytes=0, prefix_cache_bytes=10**8)
    _, answer = cached(engine, 1)

    def short_of_memory(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, "keep", short_of_memory)
        assert cached(engine, 2) == (len(PROMPT) - 1, answer)
    assert engine.engine.memory_bytes() == engine.loaded.memory_bytes
    assert cached(engine, 3) == (0, answer)


class Gate:
    """Holds back what is read until it opens."""

    def __init__(self, disk: PrefixDisk) -> None:
        self._read = disk.read
        self._held: list[tuple[Future[Any], Future[Any]]] = []

    def __call__(self, *args: Any) -> Future[Any]:
        mine: Future[Any] = Future()
        self._held.append((self._read(*args), mine))
        return mine

    def open(self) -> None:
        for found, mine in self._held:
            mine.set_result(found.result(20))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_caches_that_are_dropped_while_a_prompt_is_read_change_nothing(
    start: Callable[..., ByHand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    engine = start(name, prefix_cache_bytes=10**8)
    answer = kept(engine, tmp_path)
    engine.call(engine.engine.drop_caches)
    gate = Gate(engine.engine._disk)
    monkeypatch.setattr(engine.engine._disk, "read", gate)
    engine.add(make_job(2, PROMPT, 5))
    for _ in range(2):
        assert engine.step() == []
    engine.call(engine.engine.drop_caches)
    gate.open()
    results = engine.until(lambda: not engine.engine.busy)[2]
    assert [result.token for result in results] == answer
    assert results[0].cached_tokens == BLOCKS


def test_choices_wait_together_for_a_prompt_that_is_read(
    start: Callable[..., ByHand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    answer = kept(engine, tmp_path)
    gate = Gate(engine.engine._disk)
    monkeypatch.setattr(engine.engine._disk, "read", gate)
    engine.add(make_job(2, PROMPT, 5), make_job(3, PROMPT, 5, fork_of=2))
    for _ in range(2):
        assert engine.step() == []
    engine.abort(2)
    gate.open()
    results = engine.until(lambda: not engine.engine.busy)
    assert {number: [each.token for each in got] for number, got in results.items()} == {3: answer}
    assert results[3][0].cached_tokens == BLOCKS


def test_a_close_while_writes_wait_is_bounded(
    start: Callable[..., ByHand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    write = Folder.write

    def slow(*args: Any) -> Any:
        writing.set()
        assert go_on.wait(60)
        return write(*args)

    monkeypatch.setattr(Folder, "write", slow)
    monkeypatch.setattr(text, "_WRITING_SECONDS", 0.1)
    monkeypatch.setattr(disk_module, "_PATIENCE", 0.1)
    engine = start()
    cached(engine, 1)
    assert writing.wait(20)
    disk = engine.engine._disk
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 10
    assert not go_on.is_set()
    go_on.set()
    disk._thread.join(20)
    assert not disk._thread.is_alive()
    assert not list((tmp_path / "disk").glob("writing-*"))


# --- behind the API -----------------------------------------------------------------------------


class Restarted:
    """A server with two keys and a folder for computed prompts, which can be ended and started."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.prompts = folder / "prompts"
        self.config: dict[str, Any] = {
            "server": {"api_keys": KEYS},
            "prefix_cache": {"directory": str(self.prompts), "disk_gb": 1},
        }
        self.process = ServerProcess(folder, config=self.config, models=models)

    def client(self, name: str = "ann") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.process.url, api_key=KEYS[name], max_retries=0)

    def share(self) -> None:
        """Write it into the config, and have that read."""
        file = self.process.folder / "config.json"
        settings = json.loads(file.read_text())
        settings["prefix_cache"]["shared"] = True
        file.write_text(json.dumps(settings))
        headers = {"Authorization": f"Bearer {KEYS['ann']}"}
        answer = httpx.post(f"{self.process.base}/admin/reload", headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text

    def files(self) -> int:
        return len(list(self.prompts.glob("*.safetensors")))

    def kill(self) -> None:
        assert self.process.process is not None
        self.process.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    server = Restarted(tmp_path_factory.mktemp("server"), tiny_models)
    with server.process:
        yield server


def complete(client: openai.OpenAI, prompt: list[int]) -> tuple[int, str]:
    """How many tokens of the prompt were there, and the text."""
    with client:
        answer = client.completions.create(
            model="tiny/llama", prompt=prompt, temperature=0, max_tokens=5
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.prompt_tokens_details is not None
    tokens = answer.usage.prompt_tokens_details.cached_tokens
    assert tokens is not None
    return tokens, answer.choices[0].text


def test_usage_says_what_was_there_already(server: Restarted) -> None:
    prompt = words(40, start=1)
    messages: Any = [{"role": "user", "content": "Say what is there already. " * 20}]
    with server.client() as client:

        def whole(**more: Any) -> Any:
            return client.chat.completions.create(
                model="tiny/llama", messages=messages, temperature=0, max_tokens=5, **more
            )

        first = whole().usage
        assert first.prompt_tokens_details.cached_tokens == 0
        again = whole().usage
        assert again.prompt_tokens == first.prompt_tokens
        assert again.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1
        *_, last = whole(stream=True, stream_options={"include_usage": True})
        assert last.usage.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1
        several = whole(n=2).usage  # the prompt counts once
        assert several.prompt_tokens == first.prompt_tokens
        assert several.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1
        *_, last = client.completions.create(
            model="tiny/llama",
            prompt=prompt,
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert last.usage is not None
        assert last.usage.prompt_tokens_details is not None
        assert last.usage.prompt_tokens_details.cached_tokens == 0
    assert complete(server.client(), prompt)[0] == len(prompt) - 1


def test_one_key_never_sees_what_another_has_computed(server: Restarted) -> None:
    prompt = words(300, start=2)
    assert complete(server.client("ann"), prompt)[0] == 0
    assert complete(server.client("ann"), prompt)[0] == 299
    assert complete(server.client("bob"), prompt)[0] == 0
    assert complete(server.client("bob"), prompt)[0] == 299


def test_prompts_survive_a_server_that_is_killed_while_it_writes(server: Restarted) -> None:
    """Those of a key for that key only."""
    prompt, long = words(600, start=3), words(1500, start=4)
    before = server.files()
    none, answer = complete(server.client("ann"), prompt)
    assert none == 0
    until_sync(lambda: server.files() >= before + 2)
    none, long_answer = complete(server.client("ann"), long)
    assert none == 0
    until_sync(lambda: server.files() > before + 2)
    server.kill()
    server.process.__enter__()
    assert complete(server.client("bob"), prompt) == (0, answer)
    assert complete(server.client("ann"), prompt) == (BLOCKS, answer)
    there, again = complete(server.client("ann"), long)
    assert again == long_answer
    assert there in range(256, 1500, 256)


def test_prompts_are_shared_where_that_is_switched_on(server: Restarted) -> None:
    server.share()
    prompt = words(300, start=5)
    assert complete(server.client("ann"), prompt)[0] == 0
    assert complete(server.client("bob"), prompt)[0] == 299
