"""The installed service: its brake on crashes, MLX Router itself in it, systemd, the shell code.

The stand-ins are those of :mod:`tests.service_support`. Nothing here ran on macOS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service_support import ROOT, SCRIPTS, STRANGE, UNINSTALL, Machine
from tests.waiting import until_sync


def shell_files() -> list[str]:
    service = (ROOT / "helper_tools/service").glob("*.sh")
    return [*SCRIPTS, *(str(file.relative_to(ROOT)) for file in service)]


# ---- the brake -----------------------------------------------------------------------------------


def brake(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "helper_tools/service/run.sh"), *command],
        cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=20,
    )  # fmt: skip


def test_five_crashes_in_ten_minutes_end_the_restarts(tmp_path: Path) -> None:
    crash = ("sh", "-c", "kill -SEGV $$")
    assert [brake(tmp_path, *crash).returncode for _ in range(4)] == [139] * 4
    last = brake(tmp_path, *crash)
    assert last.returncode == 0
    assert "has crashed 5 times within 10 minutes" in last.stderr
    assert "left off" in last.stderr
    assert brake(tmp_path, *crash).returncode == 139  # started by hand, it may try again


def test_old_crashes_and_those_before_a_good_end_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".crashes").write_text("1700000000\n0899999999\nnonsense\n\n" * 9)
    assert [brake(tmp_path, "false").returncode for _ in range(4)] == [1] * 4
    assert brake(tmp_path, "true").returncode == 0
    assert [brake(tmp_path, "false").returncode for _ in range(4)] == [1] * 4


def test_a_config_with_a_fault_is_not_tried_again(tmp_path: Path) -> None:
    done = brake(tmp_path, "sh", "-c", "exit 2")
    assert done.returncode == 0
    assert "Correct the config" in done.stderr


def test_a_program_that_is_gone_is_braked_too(tmp_path: Path) -> None:
    codes = [brake(tmp_path, str(tmp_path / "gone")).returncode for _ in range(5)]
    assert codes == [127, 127, 127, 127, 0]


def test_signals_reach_the_server_and_a_stop_is_no_crash(tmp_path: Path) -> None:
    program = (
        "trap 'echo hup >>seen' HUP; trap 'echo term >>seen; exit 1' TERM\n"
        "echo ready >seen; while :; do sleep 0.05; done"
    )
    seen = tmp_path / "seen"
    process = subprocess.Popen(
        [str(ROOT / "helper_tools/service/run.sh"), "bash", "-c", program],
        cwd=tmp_path,
        start_new_session=True,
    )

    def has_reloaded() -> bool:
        process.send_signal(signal.SIGHUP)  # the first may come before the server is waited for
        return "hup" in seen.read_text()

    try:
        until_sync(lambda: seen.exists() and "ready" in seen.read_text())
        until_sync(has_reloaded)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert seen.read_text().split()[-1] == "term"
    assert not (tmp_path / ".crashes").exists()


# ---- MLX Router itself ---------------------------------------------------------------------------


@pytest.fixture
def real_mac(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "mac", real=True) as mac:
        yield mac


def test_the_installed_service_answers_a_chat(real_mac: Machine) -> None:
    """launchd's stand-in gives the program the plist's variables and no others."""
    mac = real_mac
    mac.install = mac.home / "my apps & more"
    done = mac.set_up()
    assert "config.json: fine" in done.stdout
    answer = httpx.post(
        f"http://127.0.0.1:{mac.port}/v1/chat/completions",
        json={"model": "demo", "messages": [{"role": "user", "content": "Hello"}]},
        timeout=60,
    ).json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert (mac.home / ".local/state/mlx-router").is_dir()
    mac.run(UNINSTALL, "--yes")
    assert "shutting down" in (mac.install / "logs/mlx_router.log").read_text()
    assert f"http://127.0.0.1:{mac.port}" in (mac.install / "mlx_router.log").read_text()
    assert " INFO " not in (mac.install / "mlx_router.error.log").read_text()


# ---- systemd -------------------------------------------------------------------------------------


@pytest.fixture
def linux(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "linux", "Linux") as linux:
        yield linux


def test_the_service_of_systemd_is_installed_updated_and_removed(linux: Machine) -> None:
    linux.install = linux.folder / STRANGE
    linux.run("helper_tools/install-systemd.sh")
    unit = linux.home / ".config/systemd/user/mlx-router.service"
    lines = unit.read_text().splitlines()
    assert {
        *("Restart=on-failure", "RestartPreventExitStatus=2", "StartLimitBurst=5"),
        *("StartLimitIntervalSec=600", "TimeoutStopSec=50", "WantedBy=default.target"),
    } <= set(lines)
    assert lines.index("StartLimitBurst=5") < lines.index("[Service]")
    if verify := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [verify, "--user", "--man=no", "verify", str(unit)],
            env={**os.environ, "HOME": str(linux.home), "XDG_RUNTIME_DIR": str(linux.state)},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert "mlx-router.service" not in done.stderr
    linux.edit_config(max_queue=3)
    linux.update()
    linux.run("helper_tools/install-systemd.sh")
    assert linux.health() == "2"
    assert json.loads(linux.config.read_text())["server"]["max_queue"] == 3
    linux.run("helper_tools/uninstall-systemd.sh", "--yes", "--purge")
    assert not linux.is_running()
    assert not linux.install.exists()
    assert not [path for path in unit.parent.rglob("*") if not path.is_dir()]


def test_a_service_that_waits_for_its_restart_is_stopped_before_it_is_removed(
    linux: Machine,
) -> None:
    linux.run("helper_tools/install-systemd.sh")
    (linux.state / "crash-loop").touch()  # systemctl calls it "activating"
    linux.run("helper_tools/uninstall-systemd.sh", "--yes")
    assert not linux.is_running()


# ---- the scripts themselves ----------------------------------------------------------------------


def test_shellcheck_finds_nothing() -> None:
    command = shutil.which("shellcheck")
    assert command, "install the package shellcheck"
    done = subprocess.run(
        [command, "--external-sources", *shell_files()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_nothing_is_used_that_the_bash_of_macos_lacks() -> None:
    newer = re.compile(
        r"\$\{\w+(,,?|\^\^?|@\w)\}|\b(mapfile|readarray|coproc)\b|(declare|local|typeset) -[An]\b"
        r"|\bwait -n\b|&>>|\|&|;&|printf '%\(|\[\[ -v\b|EPOCHSECONDS|read -t 0?\.|sed -i"
    )
    for file in shell_files():
        code = [line for line in (ROOT / file).read_text().splitlines() if line[:1] != "#"]
        assert [line for line in code if newer.search(line)] == []


def test_the_definition_assumes_what_the_settings_default_to() -> None:
    from mlx_router.config.settings import ServerSettings

    text = (ROOT / "helper_tools/service/definition.py").read_text()
    server = ServerSettings()
    defaults = (
        f'"ip": "{server.ip}", "port": {server.port}, "grace_seconds": {server.grace_seconds}'
    )
    assert f"DEFAULTS = {{{defaults}}}" in text
