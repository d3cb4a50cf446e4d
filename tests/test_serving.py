"""How the server ends: nothing is cut off that had the time to finish, and nothing hangs.

Each test runs a process with the real server loop, and an app and a manager made for the test.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

SCRIPT = """
import asyncio, sys
from mlx_router.cli.address import bind, urls
from mlx_router.cli.serving import serve_app

MODE, GRACE = sys.argv[1], float(sys.argv[2])

class Manager:
    stopping = False
    def __init__(self):
        self.released, self.ended = asyncio.Event(), asyncio.Event()
    def begin_shutdown(self):
        self.stopping = True
        if MODE == "broken":
            raise RuntimeError("a fault in begin_shutdown")
    async def aclose(self):
        if not self.ended.is_set():
            try:
                await asyncio.open_connection(*ADDRESS)
            except ConnectionRefusedError:
                print("closed", flush=True)
        self.ended.set()
        if MODE == "stuck-close":
            await asyncio.Event().wait()

manager = Manager()

async def lifespan(receive, send):
    await receive()
    if MODE == "stuck-start":
        print("starting", flush=True)
        await asyncio.Event().wait()
    if MODE == "failing-start":
        raise RuntimeError("no")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await manager.aclose()
    await send({"type": "lifespan.shutdown.complete"})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    async def start(status):
        await send({"type": "http.response.start", "status": status, "headers": []})
    async def body(data, more):
        await send({"type": "http.response.body", "body": data, "more_body": more})
    if scope["path"] == "/stream":
        await start(200)
        await body(b"first ", True)
        if MODE != "deaf":
            waits = [asyncio.ensure_future(e.wait()) for e in (manager.released, manager.ended)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.Event().wait()
        await body(b"cut " if manager.ended.is_set() else b"last ", True)
        await body(b"[DONE]", False)
        return
    if scope["path"] == "/release":
        manager.released.set()
    await start(503 if manager.stopping else 200)
    await body(b"x", False)

listener = bind("127.0.0.1", 0)
ADDRESS = listener.getsockname()
print(urls(listener)[0], flush=True)
ready = lambda: print("ready", flush=True)
sys.exit(serve_app(app, manager, listener, grace_seconds=GRACE, on_ready=ready))
"""


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, seconds: float = 20) -> int:
        return self.process.wait(timeout=seconds)

    def wait_for_503(self) -> None:
        end = time.monotonic() + 10
        while httpx.get(f"{self.url}/").status_code != 503:
            assert time.monotonic() < end, "new requests are not refused"


@contextmanager
def server(mode: str = "", grace: float = 30, *, until: str = "ready") -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        running = Running(process, process.stdout.readline().strip())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", running.url), process.communicate()
        assert running.line() == until
        yield running
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_with_code_0_and_closes_the_manager(
    number: signal.Signals,
) -> None:
    with server() as running:
        assert httpx.get(running.url).status_code == 200
        began = time.monotonic()
        running.send(number)
        assert running.exit_code() == 0
        assert time.monotonic() - began < 2
        assert running.line() == "closed"


def test_a_running_answer_finishes_while_new_requests_get_503() -> None:
    with server() as running, httpx.stream("GET", f"{running.url}/stream") as answer:
        parts = answer.iter_text()
        assert next(parts) == "first "
        running.send(signal.SIGTERM)
        running.wait_for_503()
        httpx.get(f"{running.url}/release")
        assert "".join(parts) == "last [DONE]"
        assert running.exit_code() == 0


def test_past_the_grace_time_an_answer_is_ended_properly_and_the_code_is_still_0() -> None:
    with server(grace=0.2) as running, httpx.stream("GET", f"{running.url}/stream") as answer:
        parts = answer.iter_text()
        assert next(parts) == "first "
        running.send(signal.SIGTERM)
        assert "".join(parts) == "cut [DONE]"
        assert running.exit_code() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(number: signal.Signals, code: int) -> None:
    with server() as running, httpx.stream("GET", f"{running.url}/stream") as answer:
        assert next(answer.iter_text()) == "first "
        running.send(number)
        running.wait_for_503()
        began = time.monotonic()
        running.send(number)
        assert running.exit_code() == code
        assert time.monotonic() - began < 1


def test_a_load_during_start_does_not_hold_up_the_exit() -> None:
    with server("stuck-start", until="starting") as running:
        began = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.exit_code() == 0
        assert time.monotonic() - began < 2.5


def test_a_manager_that_does_not_close_does_not_hold_up_the_exit() -> None:
    with server("stuck-close") as running:
        began = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.exit_code() == 0
        assert time.monotonic() - began < 2.5


def test_an_answer_that_cannot_be_ended_does_not_hold_up_the_exit() -> None:
    with (
        server("deaf", grace=0.1) as running,
        httpx.stream("GET", f"{running.url}/stream") as answer,
    ):
        assert next(answer.iter_text()) == "first "
        running.send(signal.SIGTERM)
        assert running.exit_code(15) == 0


def test_a_fault_while_shutting_down_still_ends_the_server() -> None:
    with server("broken") as running:
        running.send(signal.SIGTERM)
        assert running.exit_code() == 0


def test_a_start_that_fails_has_code_1() -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, "failing-start", "1"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert process.returncode == 1
    assert "ready" not in process.stdout
