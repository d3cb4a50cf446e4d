"""What README.md and docs/api.md tell a reader to type works, on the demo model."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, Block, blocks, commands, examples
from tests.server import ServerProcess

# Commands that are only asked for their help, and why.
HELP_ONLY = {
    "uv run mlx-router pull mlx-community/Qwen3-4B-Instruct-2507-4bit": "downloads",
    "./install-launchd.sh": "changes the user's account; tests/test_service_scripts.py runs it",
    "helper_tools/install-systemd.sh": "the same",
}
# Commands that are not run at all, and why; that bash can read them is checked for all documents.
NOT_RUN = {
    "pip install uv": "installs",
    "uv run mlx-router": "serves until it is ended; every test with a server runs it",
    "uv run mlx-router --demo": "the same: it is how demo_server is started",
}
# What a curl of docs/api.md is known by, and why it is not run.
NOT_ASKED = {
    "Qwen3-VL-4B": "needs a model that sees; tests/test_vision_model.py has docs/vision.md",
    "report.pdf": "the same",
    "Qwen3-Embedding": "needs an embedding model; tests/test_embeddings_api.py",
    "/hub/events": "never ends; tests/test_hub_api.py",
    "/admin/": "changes the server that other tests use; tests/test_admin_api.py",
}
README = ROOT / "README.md"
TYPED = [command for block in blocks(README, "sh") for command in commands(block.text)]
CURLS = [block for file in (README, ROOT / "docs/api.md") for block in blocks(file, "sh")]
CURLS = [block for block in CURLS if "curl" in block.text]
PYTHON = [e for document in ("README.md", "docs/api.md") for e in examples(document)]


@pytest.fixture
def environment(demo_server: ServerProcess, tmp_path: Path) -> dict[str, str]:
    """A reader's: their commands find the demo server, and an empty home."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("MLX_")}
    server = {"MLX_ROUTER_IP": "127.0.0.1", "MLX_ROUTER_PORT": str(demo_server.port)}
    return {**ours, **server, "HOME": str(tmp_path)}


def without_comment(command: str) -> str:
    return re.sub(r"\s+# .*", "", command)


@pytest.mark.parametrize(
    "command",
    [c for c in map(without_comment, TYPED) if not c.startswith("curl") and c not in NOT_RUN],
)
def test_commands_of_the_readme_run(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    line = command + (" --help" if command in HELP_ONLY else "")
    line = line.replace("uv run mlx-router", f"{sys.executable} -m mlx_router")
    line = re.sub(r"^(?:\./)?((?:helper_tools/)?install-)", rf"{ROOT}/\1", line)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_what_is_not_run_is_still_there() -> None:
    typed = set(map(without_comment, TYPED))
    assert NOT_RUN.keys() | HELP_ONLY.keys() <= typed
    assert len(typed - NOT_RUN.keys() - HELP_ONLY.keys()) >= 5


@pytest.mark.parametrize("block", CURLS, ids=lambda block: block.where)
def test_curls_are_answered(
    block: Block, demo_server: ServerProcess, environment: dict[str, str]
) -> None:
    asked = 0
    for command in commands(block.text) if "printf" not in block.text else [block.text]:
        if any(part in command for part in NOT_ASKED):
            continue
        command = re.sub(r"http://(?:localhost|127\.0\.0\.1):8800", demo_server.base, command)
        command = command.replace("mlx-community/Qwen3-4B-4bit", "demo")
        command = command.replace("[9707, 11, 1879, 0]", "[97, 11, 18, 0]")
        command = command.replace("curl ", "curl -sS --fail-with-body --max-time 60 ")
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip()
        asked += 1
    assert asked or any(part in block.text for part in NOT_ASKED)


def test_there_are_curls() -> None:
    text = "".join(block.text for block in CURLS)
    assert all(part in text for part in NOT_ASKED)
    assert text.count("curl ") - sum(text.count(part) for part in NOT_ASKED) >= 10


@pytest.mark.parametrize(("where", "code"), PYTHON, ids=[where for where, _ in PYTHON])
def test_programs_run(
    where: str,
    code: str,
    demo_server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "base_url" in code:
        code = re.sub(r'base_url="[^"]+"', f'base_url="{demo_server.url}"', code)
        code = re.sub(r'model="[^"]+"', 'model="demo"', code)
    file = tmp_path / "example.py"
    file.write_text(code)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(file), run_name="example")
    assert capsys.readouterr().out.strip()


def test_there_are_programs() -> None:
    code = "".join(code for _, code in PYTHON)
    assert "MLXModelManager" in code
    assert code.count("base_url") >= 2
