"""Files and addresses made to take a server: it refuses them, and serves everybody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.media_support import data_uri, encoded, gradient, page_of, pdf
from tests.server import ServerProcess
from tests.test_media_hostile_images import DAMAGED, MISSHAPEN, OTHER_KINDS, TOO_LARGE, jpeg
from tests.test_media_pdf import BROKEN
from tests.waiting import until_sync

MB = 1_000_000
GAP = 3.0  # seconds without an answer of /health, on a busy machine that sends the files as well
POOLED = 8  # threads that its pools may still have to start

ADDRESSES = [
    *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0"),
    *("[::1]", "[::ffff:127.0.0.1]", "[::]", "[64:ff9b::7f00:1]", "169.254.169.254"),
    *("[fd00:ec2::254]", "10.0.0.1", "192.168.1.1", "user:secret@127.0.0.1", "a\\@127.0.0.1"),
]
URLS = {
    **{f"address-{host}": f"http://{host}/a.png" for host in ADDRESSES},
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1/",
    "bare-path": "/etc/passwd",
    "long-url": "https:" + "a" * 30 * MB,
}
IMAGES = {**TOO_LARGE, **MISSHAPEN, **DAMAGED, **OTHER_KINDS}
PDFS = {
    **BROKEN,
    "encrypted": pdf(1, owner_password="owner", user_password="user"),
    "line": page_of(b"", box=b"0 0 100000 10"),
}
INLINE = {
    "escapes": "data:image/png," + "%41" * 14 * MB,
    "escaped-base64": "data:image/png;base64," + "%41" * 14 * MB,
    "bare-base64": "A" * 42 * MB,
    "not-base64": "data:image/png;base64," + "A" * 42 * MB + "@",
    "padding": "data:image/png;base64," + "=" * 42 * MB,
    "spaces": "data:image/png;base64," + " " * 42 * MB,
    "fill-of-a-scan": data_uri(b"\xff\xd8\xff\xda\0\2" + b"\xff\xff\0" * 10 * MB),
    "fill-of-a-jpeg": data_uri(jpeg()[:100] + b"\xff" * 30 * MB),
}
LONG_PDF = data_uri(pdf(30), "application/pdf")


def hostile() -> Iterator[tuple[str, dict[str, Any]]]:
    """A name of each, and the ``image_url``."""
    for name, url in {**URLS, **INLINE}.items():
        yield name, {"url": url}
    for name, content in {**IMAGES, **PDFS}.items():
        yield name, {"url": data_uri(content)}
    for pages in ("0", "9-1", "31", "1-" * 500, "1,2,x"):
        yield f"pages-{pages[:10]}", {"url": LONG_PDF, "pages": pages}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    config = {"media": {"pdf_timeout": 8.0, "fetch_timeout": 2.0}}
    with ServerProcess(folder, "--engine", "scripted", config=config, models=folder) as server:
        yield server


def ask(server: ServerProcess, image: Mapping[str, Any]) -> httpx.Response:
    parts = [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": image}]
    body = {"model": "scripted-vision", "messages": [{"role": "user", "content": parts}]}
    return httpx.post(f"{server.url}/chat/completions", json=body, timeout=60)


def refusal(server: ServerProcess, name: str, image: Mapping[str, Any]) -> str | None:
    """What is wrong with the answer to this; None if it is the error that it should be."""
    answer = ask(server, image)
    if not 400 <= answer.status_code < 500:
        return f"{name}: {answer.status_code}"
    error = answer.json()["error"]
    well = {"message", "type", "param", "code"} <= error.keys() and "content.1" in error["param"]
    return None if well and len(error["message"]) < 400 else f"{name}: {error}"


class Polls:
    """Asks for /health, over and over, while the block runs. ``gap``: the longest time in seconds
    from one answer to the next; ``failures``: what was no good answer."""

    def __init__(self, base: str) -> None:
        self.gap, self.count = 0.0, 0
        self.failures: list[str] = []
        self._url, self._end = f"{base}/health", threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Polls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _poll(self) -> None:
        with httpx.Client(timeout=30) as client:
            last = time.monotonic()
            while not self._end.wait(0.01):
                try:
                    if (status := client.get(self._url).status_code) != 200:
                        self.failures.append(str(status))
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now
                self.count += 1


def good(server: ServerProcess) -> None:
    for content in (encoded(gradient()), pdf(2)):
        answer = ask(server, {"url": data_uri(content)})
        assert answer.status_code == 200, answer.text
        assert "I see" in answer.json()["choices"][0]["message"]["content"]


def test_hostile_files_are_refused_while_everybody_else_is_served(server: ServerProcess) -> None:
    assert server.process is not None
    good(server)
    assert not any(refusal(server, name, {"url": url}) for name, url in URLS.items())
    items = list(hostile())[::3]  # each of them is refused in tests of the loader
    before = server.usage()
    with Polls(server.base) as polls, ThreadPoolExecutor(2) as clients:
        wrong = list(clients.map(lambda item: refusal(server, *item), items))
        good(server)
    assert not [one for one in wrong if one]
    assert not polls.failures
    assert polls.count > 20
    assert polls.gap < GAP
    until_sync(lambda: server.usage().descriptors <= before.descriptors)
    until_sync(lambda: server.usage().threads <= before.threads + POOLED)
    until_sync(lambda: server.usage().memory <= before.memory + 300 * MB)
    assert not psutil.Process(server.process.pid).children(recursive=True)
    good(server)
