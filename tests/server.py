"""A real server process on a free port, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds: bytes of physical memory, threads of the system, and descriptors."""

    memory: int
    threads: int
    descriptors: int


class ServerProcess:
    """``python -m mlx_router`` with a config of its own. Use it in a ``with`` block: it is healthy
    inside, and ended by SIGTERM after, which must give exit code 0."""

    def __init__(
        self, folder: Path, *flags: str, config: dict[str, Any] | None = None, models: Path
    ) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.base}/v1"
        self.folder = folder
        self.log = folder / "output.txt"
        settings = {"server": {"log_dir": str(folder / "logs")}, **(config or {})}
        settings["server"] = {"log_dir": str(folder / "logs"), **settings["server"]}
        settings["defaults"] = {
            "state_directory": str(folder / "state"),
            **settings.get("defaults", {}),
        }
        kept = {"directory": str(folder / "prompts"), **settings.get("prefix_cache", {})}
        settings["prefix_cache"] = kept
        file = folder / "config.json"
        file.write_text(json.dumps(settings))
        self._command = [sys.executable, "-m", "mlx_router", "--config", str(file)]
        self._command += ["--ip", "127.0.0.1", "-p", str(self.port), "--model-dir", str(models)]
        self._command += flags
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ}
            )
        self._wait_until_healthy()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            code = self.stop()
            assert code == 0, f"exit code {code}\n{self.output()}"

    def stop(self, signal_number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"did not end within {timeout} s\n{self.output()}") from None

    def usage(self) -> Usage:
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        with process.oneshot():
            memory: int = process.memory_info().rss
            return Usage(memory, process.num_threads(), process.num_fds())

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def _wait_until_healthy(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}\n{self.output()}")
            try:
                if httpx.get(f"{self.base}/health", timeout=1.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self._kill()
        raise AssertionError(f"not healthy after {START_SECONDS} s\n{self.output()}")

    def _kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
