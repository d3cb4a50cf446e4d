"""mlx-router doctor: what is amiss gets a line that says how to fix it, and nothing is a crash."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_router
from mlx_router.cli.checks import machine, setup
from mlx_router.cli.checks.finding import Finding, Patient
from mlx_router.cli.main import main
from mlx_router.config import Settings
from mlx_router.domain import GIB
from mlx_router.memory.probe import FakeProbe, MemorySnapshot
from mlx_router.runtime import build
from tests.server import ServerProcess, free_port

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
PATIENT = Patient(argparse.Namespace(demo=False), Settings())
Told = dict[str, str]
Doctor = Callable[..., tuple[int, list[Told]]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with nothing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("MLX_ROUTER_", "MLX_MODEL_DIR", "XDG_")):
            monkeypatch.delenv(name)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run it without MLX, for a server on this machine alone; its exit code and findings."""

    def run(*words: str, ip: str = "127.0.0.1", port: int = 0) -> tuple[int, list[Told]]:
        code = main(["doctor", "--json", "--no-mlx", "--ip", ip, "-p", str(port), *words])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        findings: list[Told] = answer["findings"]
        levels = [finding["level"] for finding in findings]
        assert answer["problems"] == levels.count("problem")
        assert answer["warnings"] == levels.count("warning")
        assert code == (1 if "problem" in levels else 0)
        for finding in findings:
            assert finding["level"] == "ok" or finding["fix"], finding
            assert "\n" not in finding["text"] + finding["fix"]
        return code, findings

    return run


def of(findings: list[Told], name: str) -> list[tuple[str, str, str]]:
    return [(f["level"], f["text"], f["fix"]) for f in findings if f["name"] == name]


def write_config(**sections: Any) -> None:
    Path("config.json").write_text(json.dumps(sections))


def test_where_all_is_well_it_says_so_with_exit_code_0(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    code = main(["doctor", "--demo", "--ip", "127.0.0.1", "-p", str(free_port())])
    out = capsys.readouterr().out
    assert code == 0
    names = [line[8:].split("  ")[0] for line in out.splitlines() if line[:8].strip()]
    wanted = ["Python", "packages", "MLX", "memory", "config", "models", "images", "PDFs", "logs"]
    assert names[:-1] == [*wanted, "prompt cache", "state", "address", "access", "service"]
    assert "computes on " in out
    assert " is free\n" in out
    assert "✓" not in out  # for terminals


def test_a_terminal_shows_signs_and_colours() -> None:
    mine, its = pty.openpty()
    command = [sys.executable, "-m", "mlx_router", "doctor", "--no-mlx", "-p", "0"]
    with subprocess.Popen(command, stdout=its, stdin=subprocess.DEVNULL) as process:
        os.close(its)
        shown = b""
        while True:
            try:
                shown += os.read(mine, 65_536)
            except OSError:  # its end
                break
    os.close(mine)
    assert process.returncode == 0
    assert "✓ Python" in shown.decode()
    assert "! access" in shown.decode()
    assert "\x1b[33m" in shown.decode()


# --- the machine ----------------------------------------------------------------------------------


@pytest.fixture
def fake_mlx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Told]:
    """What the check says of an mlx.core with this code."""

    def check(code: str) -> Told:
        folder = tmp_path / "fake" / "mlx"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "core.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))
        (finding,) = machine.mlx(PATIENT)
        assert finding.level == "problem"
        return {"text": finding.text, "fix": finding.fix}

    return check


def test_an_mlx_that_cannot_be_imported_is_a_problem(fake_mlx: Callable[[str], Told]) -> None:
    found = fake_mlx("raise ImportError('libmlx.so: no such file')")
    assert found["text"] == "cannot compute: ImportError: libmlx.so: no such file"
    assert "install it anew: `uv sync` in the clone" in found["fix"]


def test_an_mlx_that_takes_its_process_along_is_a_problem(
    fake_mlx: Callable[[str], Told],
) -> None:
    assert fake_mlx("import os; os.abort()")["text"] == "cannot compute: exit code -6"


def test_an_mlx_that_hangs_is_a_problem(
    fake_mlx: Callable[[str], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "COMPUTE_SECONDS", 0.3)
    assert (
        "has not computed anything within 0.3 s"
        in fake_mlx("input_never_comes = open(0)\nimport threading; threading.Event().wait()")[
            "text"
        ]
    )


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        ({}, "ok", "computes on cpu (Some CPU, 60 GFLOP/s)"),
        ({"right": False}, "problem", "and wrongly"),
        ({"gflops": 1.2, "openblas": False}, "warning", "slowly: with its own BLAS"),
        ({"backend": "cuda", "gflops": 900}, "ok", "computes on cuda"),
    ],
)
def test_how_mlx_computes_is_judged(
    change: dict[str, Any], level: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "backend": "cpu",
        "device": "Some CPU",
        "right": True,
        "gflops": 60.0,
        "openblas": True,
        "memory": None,
        **change,
    }
    done = subprocess.CompletedProcess([], 0, json.dumps(found) + "\n", "")
    monkeypatch.setattr(machine, "_output", lambda *_: done)
    (finding,) = machine.mlx(PATIENT)
    assert (finding.level, said in finding.text) == (level, True)


def test_old_missing_and_unsupported_packages_are_named(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "orjson":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "uvicorn" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(machine, "PYTHONS", ((3, 90), (3, 91)))
    code, findings = doctor()
    assert code == 1
    ((level, text, fix),) = of(findings, "packages")
    assert level == "problem"
    assert "uvicorn is 0.1, not >=" in text
    assert "orjson is missing" in text
    assert "uv sync" in fix
    ((level, text, fix),) = of(findings, "Python")
    assert (level, "is not supported" in text) == ("problem", True)
    assert "use Python 3.90 to 3.91" in fix


def test_without_an_installation_versions_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (finding,) = machine.packages(PATIENT)
    assert (finding.level, "not checked" in finding.text) == ("warning", True)


def test_short_memory_is_a_warning_with_the_limit(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = FakeProbe(MemorySnapshot(total=16 * GIB, available=GIB, swap_total=GIB))
    monkeypatch.setattr(build, "SystemProbe", lambda: short)
    ((level, text, fix),) = of(doctor()[1], "memory")
    assert (level, text) == (
        "warning",
        "16.0 GB, 1.0 GB available, swap 0 kB of 1.0 GB: critical pressure",
    )
    assert "pressure begins below 8.0 GB available (defaults.memory_threshold_gb" in fix


def test_what_macos_lets_the_gpu_have_is_read_and_never_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], _: float) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, answers.pop(0), "")

    monkeypatch.setattr(machine, "_output", answer)
    answers = ["0\n", "49152\n", "nonsense"]
    texts = [[finding.text for finding in machine._wired_limit()] for _ in range(3)]
    assert texts == [
        ["the system's own limit (iogpu.wired_limit_mb 0)"],
        ["48.0 GB at most (iogpu.wired_limit_mb 49152)"],
        [],
    ]
    assert asked == [["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]] * 3


def test_what_images_and_pdfs_need_is_looked_for(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"mlx_vlm", "PIL"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    ((level, text, fix),) = of(doctor()[1], "images")
    assert (level, text) == ("ok", "mlx-vlm, pillow not installed: text only")
    assert "--extra vision" in fix
    missing = {"pdf2image"}
    assert of(doctor()[1], "PDFs") == [("ok", "drawn by pypdfium2", "")]
    missing = {"pdf2image", "pypdfium2"}
    ((level, text, fix),) = of(doctor()[1], "PDFs")
    assert (level, text) == ("warning", "cannot be drawn")
    assert "brew install poppler" in fix


# --- the set-up -----------------------------------------------------------------------------------


def test_faults_of_the_config_are_problems_and_the_rest_is_looked_at(doctor: Doctor) -> None:
    write_config(server={"prot": 1}, defaults={"timeout": "long"})
    code, findings = doctor()
    assert code == 1
    texts = [text for _, text, _ in of(findings, "config")]
    assert "config.json: server.prot: is no setting; did you mean port?" in texts
    assert any("defaults.timeout" in text for text in texts)
    assert of(findings, "service")
    code, findings = doctor("--config", "none.json")
    ((level, text, _),) = of(findings, "config")
    assert (level, text) == ("problem", "none.json: there is no such file; check --config")
    write_config(models={"a": {}})
    assert of(doctor()[1], "config") == [("ok", "config.json (1 model entry)", "")]


def test_model_folders_that_are_missing_or_none_are_told(doctor: Doctor) -> None:
    found = of(doctor()[1], "models")
    assert found[0][:2] == ("warning", "the model directory ~/models does not exist")
    assert "`mkdir -p ~/models`" in found[0][2]
    assert found[1][:2] == ("warning", "none that can be used in ~/models")
    assert "mlx-router pull" in found[1][2]
    assert len(found) == 2
    Path("file").write_text("")
    code, findings = doctor("--model-dir", "file")
    assert (code, of(findings, "models")[0][1]) == (1, "the model directory ~/file is no folder")


def test_models_that_cannot_be_used_are_named_with_the_reason(
    doctor: Doctor, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(DEMO, folder / "good")
    shutil.copytree(DEMO, folder / "bad")
    (folder / "bad" / "model.safetensors").unlink()
    code, findings = doctor()
    assert code == 0
    good, bad = of(findings, "models")
    assert good[0] == "ok"
    assert good[1].startswith("1 usable (")
    assert bad[0] == "warning"
    assert bad[1].startswith("tiny/bad cannot be used: ")


def test_a_model_is_to_be_fetched_again_only_where_that_helps(
    doctor: Doctor, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "tiny"
    for name in ("cut", "linked", "unknown"):
        shutil.copytree(DEMO, (tmp_path if name == "linked" else folder) / name)
    os.truncate(folder / "cut" / "model.safetensors", 1000)
    (tmp_path / "linked" / "model.safetensors").unlink()
    (folder / "linked").mkdir()
    for file in (tmp_path / "linked").iterdir():
        (folder / "linked" / file.name).symlink_to(file)
    write_config(defaults={"model_directory": [str(tmp_path / "models"), str(tmp_path / "linked")]})
    config = (DEMO / "config.json").read_text().replace('"qwen3"', '"not_yet_known"')
    (folder / "unknown" / "config.json").write_text(config)
    fixes = {text.split()[0]: fix for _, text, fix in of(doctor()[1], "models")}
    assert fixes["tiny/cut"].startswith("fetch it again with `mlx-router pull tiny/cut`")
    assert fixes["tiny/linked"].startswith("it is linked from another program")
    assert fixes["tiny/unknown"].startswith("there is nothing to fetch: update MLX Router")


def test_a_folder_that_may_not_be_read_is_a_problem(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    may = os.access
    denied = str(tmp_path / "models")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != denied and may(path, mode))
    code, findings = doctor()
    assert code == 1
    assert of(findings, "models")[0][1] == "the model directory ~/models may not be read"


def test_folders_to_write_to_are_checked_and_not_made(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    kept = {"directory": "~/prompts"}
    write_config(server={"log_dir": "file/logs"}, prefix_cache=kept)
    code, findings = doctor()
    assert code == 1
    ((level, text, fix),) = of(findings, "logs")
    assert (level, text) == ("problem", "~/file/logs may not be written")
    assert "server.log_dir" in fix
    assert not Path("prompts").exists()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9 * GIB, 8 * GIB, GIB))
    ((level, text, fix),) = of(doctor()[1], "prompt cache")
    assert (level, text) == ("warning", "~/prompts, 1.0 GB free")
    assert "set prefix_cache.disk_gb lower" in fix


def test_a_port_that_a_stranger_has_is_a_problem(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "ANSWER_SECONDS", 0.2)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        port = stranger.getsockname()[1]
        stranger.listen()
        code, findings = doctor(port=port)
    assert code == 1
    ((level, text, fix),) = of(findings, "address")
    assert (level, text) == ("problem", f"port {port} is in use by another program")
    assert "choose another port: -p " in fix
    ((level, text, fix),) = of(doctor(ip="192.0.2.7", port=port)[1], "address")
    assert (level, text) == ("problem", "192.0.2.7 is not an address of this machine")
    assert fix == "use --ip 127.0.0.1 or --ip 0.0.0.0"


def test_a_port_that_an_mlx_router_serves_on_is_fine(
    doctor: Doctor, scripted_server: ServerProcess
) -> None:
    port = scripted_server.port
    code, findings = doctor(port=port)
    assert code == 0
    ((level, text, _),) = of(findings, "address")
    assert level == "ok"
    assert text.startswith("an MLX Router ")
    assert f"serves on port {port}: " in text


def test_a_server_that_everybody_may_use_is_a_warning(doctor: Doctor) -> None:
    for ip in ("0.0.0.0", "::", "192.168.1.2"):
        ((level, text, fix),) = of(doctor(ip=ip)[1], "access")
        assert level == "warning"
        assert f"listens on {ip}" in text
        assert "server.api_keys" in fix
    for ip in ("127.0.0.1", "::1", "localhost"):
        assert of(doctor(ip=ip)[1], "access")[0][0] == "ok"
    write_config(server={"api_keys": ["secret"]})
    ((level, text, fix),) = of(doctor(ip="0.0.0.0")[1], "access")
    assert (level, text, fix) == ("ok", "with the API key", "")


@pytest.fixture
def manager_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Puts programs in place that answer for launchd and systemd."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def answer(code: int) -> None:
        for name in ("launchctl", "systemctl"):
            program = folder / name
            program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit {code}\n')
            program.chmod(0o755)

    return answer


@pytest.mark.parametrize(
    ("platform", "definition", "asked"),
    [
        ("linux", f".config/systemd/user/{setup.UNIT}", f"--user is-active --quiet {setup.UNIT}"),
        (
            "darwin",
            f"Library/LaunchAgents/{setup.LABEL}.plist",
            f"print gui/{os.getuid()}/{setup.LABEL}",
        ),
    ],
)
def test_an_installed_service_that_does_not_run_is_a_warning(
    platform: str,
    definition: str,
    asked: str,
    manager_says: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)

    def found() -> Finding:
        (finding,) = setup.service(PATIENT)
        return finding

    assert found().text.startswith("not installed (")
    (tmp_path / definition).parent.mkdir(parents=True)
    (tmp_path / definition).write_text("")
    manager_says(0)
    assert (found().level, found().text) == ("ok", f"installed and loaded (~/{definition})")
    manager_says(3)
    assert found().level == "warning"
    assert "says why" in found().fix
    assert (tmp_path / "bin" / "asked").read_text().splitlines()[0] == asked


def test_a_check_that_crashes_is_a_finding_and_the_others_go_on(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(patient: object) -> Iterator[object]:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(setup, "access", crash)
    code, findings = doctor()
    assert code == 1
    assert of(findings, "access") == [
        ("problem", "this check failed: ZeroDivisionError: of all things", "please report it")
    ]
    assert of(findings, "service")
