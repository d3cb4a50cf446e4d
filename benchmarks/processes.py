"""Processes that are started, awaited, measured and stopped; nothing outlives its ``with``."""

from __future__ import annotations

import contextlib
import ctypes.util
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0
STOP_SECONDS = 10.0
_IDLE_SECONDS = 20.0
_IDLE_SHARE = 0.25  # of a core; CPU times come in steps of 10 ms
_TAIL_LINES = 15

NO_OPENBLAS = """\
OpenBLAS was not found
MLX's own BLAS on Linux is some 40 times slower, and shows nothing of how
batching scales. On Debian and Ubuntu: apt-get install libopenblas0-pthread
--openblas FILE names the library where it lies elsewhere; --openblas none goes without."""


class ProcessFailed(Exception):
    """A process did not do what it was started for; the message ends with its last output."""


def find_openblas(choice: str | None) -> str | None:
    """The library to preload; None if there is nothing to preload here. ``choice`` is a file,
    ``none``, or None to look for it. Raises ProcessFailed if there is no OpenBLAS."""
    if choice == "none" or (choice is None and sys.platform != "linux"):
        return None
    found = choice or ctypes.util.find_library("openblas")
    if found is None or (choice is not None and not Path(choice).is_file()):
        raise ProcessFailed(NO_OPENBLAS if choice is None else f"there is no file {choice}")
    return str(Path(found).absolute()) if choice else found


def environment(folder: Path, openblas: str | None = None) -> dict[str, str]:
    """The same for every process that is compared; ``folder`` is for temporary files."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLX_ROUTER_", "MLX_MODEL_DIR", "LD_PRELOAD"))
    }
    kept |= {
        "MLX_DISABLE_COMPILE": "1",  # MLX's CPU backend would run g++ for every kernel
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }
    if openblas is not None:
        kept["LD_PRELOAD"] = openblas
    return kept


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """``python ARGUMENTS`` in a process group of its own, for a ``with`` block. Its output goes to
    a file; with ``json_lines`` standard input and output are for :meth:`ask_json` instead."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        env: Mapping[str, str],
        folder: Path,
        *,
        json_lines: bool = False,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE if json_lines else subprocess.DEVNULL,
                stdout=subprocess.PIPE if json_lines else output,
                stderr=output,
                env=dict(env),
                cwd=ROOT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def failure(self, what: str) -> ProcessFailed:
        lines = self._log.read_text(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        code = self._child.poll()
        ended = "" if code is None else f" (it ended with code {code})"
        said = "\n".join(["; it said last:", *lines]) if lines else "; it said nothing"
        return ProcessFailed(f"{self.name}: {what}{ended}{said}")

    def wait_until_healthy(self, port: int) -> None:
        """Until GET /health gives 200. Raises ProcessFailed."""
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(port):
            if self._child.poll() is not None:
                raise self.failure("it did not start")
            if time.monotonic() > deadline:
                raise self.failure(f"not healthy after {START_SECONDS:g} s")
            time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """CPU time of this process so far, user and system, all threads, without children."""
        times = psutil.Process(self._child.pid).cpu_times()
        return times.user + times.system

    def wait_until_idle(self) -> None:
        """Until it computes nothing any more: a model runs on for a step after its last token.
        Raises ProcessFailed."""
        deadline = time.monotonic() + _IDLE_SECONDS
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = self.cpu_seconds()
            if now - before < _IDLE_SHARE * 0.1:
                return
            before = now
        raise self.failure(f"still computing {_IDLE_SECONDS:g} s after its answer")

    def check_openblas(self, openblas: str | None) -> None:
        """Raises ProcessFailed if the process should compute with OpenBLAS and does not."""
        maps = Path(f"/proc/{self._child.pid}/maps")
        if openblas is not None and maps.exists() and "openblas" not in maps.read_text():
            raise self.failure("OpenBLAS is not loaded into it")

    def read_json(self, timeout: float) -> Any:
        """The next line of its output. Raises ProcessFailed."""
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout)
        line = self._child.stdout.readline() if ready else b""
        if not line:
            raise self.failure("no answer" if ready else f"no answer within {timeout:g} s")
        return json.loads(line)

    def ask_json(self, value: Any, timeout: float) -> Any:
        """Send a line of JSON and read one. Raises ProcessFailed."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise self.failure("it does not listen") from None
        return self.read_json(timeout)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
