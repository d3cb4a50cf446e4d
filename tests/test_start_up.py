"""What a command imports before it answers: nothing that only a model needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from mlx_router.domain import ModelCard
from mlx_router.engine.scripted import ScriptedEngine, ScriptedFactory
from mlx_router.runtime.manager import MLXModelManager
from tests.server import ServerProcess, free_port
from tests.waiting import until_sync

# Each takes from a tenth of a second to several seconds to import.
OF_MODELS = {
    *("mlx", "mlx_lm", "mlx_vlm", "numpy", "transformers", "tokenizers", "torch", "pandas"),
    *("scipy", "PIL", "pypdfium2", "jinja2", "llguidance", "huggingface_hub", "matplotlib"),
}
OF_SERVERS = {"fastapi", "starlette", "pydantic", "uvicorn", "asyncio", "ssl", "psutil"}

# The command in a process of its own; its last line says what was imported when it was through.
# What is imported for models once the port is open is left out: it would be there or not.
PROGRAM = """
import json, sys
import mlx_router.cli.serve
mlx_router.cli.serve._prepare_process = lambda: None
from mlx_router.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, env={**os.environ}
    )


def imported(process: subprocess.Popen[bytes]) -> set[str]:
    """The modules of a process that ends well."""
    output, _ = process.communicate(timeout=60)
    code, modules = json.loads(output.splitlines()[-1])
    assert code == 0
    return set(modules)


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_version_and_help_import_next_to_nothing(flag: str) -> None:
    modules = imported(start(flag))
    assert not modules & (OF_MODELS | OF_SERVERS)
    assert len(modules) < 160


def test_a_server_answers_before_anything_of_models_is_imported(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "config.json"
    settings = {
        "server": {"log_dir": str(tmp_path / "logs")},
        "defaults": {"state_directory": str(tmp_path / "state"), "hf_cache": False},
    }
    file.write_text(json.dumps(settings))
    words = ("--config", str(file), "--ip", "127.0.0.1", "-p", str(port))
    process = start(*words, "--model-dir", str(tmp_path))
    try:
        until_sync(lambda: answers(port), 60)
        process.send_signal(signal.SIGTERM)
        modules = imported(process)
    finally:
        process.kill()
        process.wait()
    assert "fastapi" in modules
    assert not modules & OF_MODELS
    assert "prometheus_client" not in modules  # before the first scrape
    assert len(modules) < 800


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_that_preloads_answers_within_seconds(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--demo", models=tmp_path) as server:
        assert server.process is not None
        times = psutil.Process(server.process.pid).cpu_times()
        # Three times what is promised, and its own time only: machines are busy.
        assert times.user + times.system < 6


def test_an_engine_is_made_on_its_own_thread() -> None:
    makers = []

    class Factory(ScriptedFactory):
        def engine(self, card: ModelCard) -> ScriptedEngine:
            makers.append(threading.current_thread().name)
            return super().engine(card)

    with MLXModelManager(engine="scripted", factory=Factory()) as manager:
        manager.load("scripted")
    assert makers == ["engine scripted"]
