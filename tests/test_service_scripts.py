"""What the scripts promise that install MLX Router as a service, on a pretended Mac.

launchd is a stand-in that really starts what the plist says. Nothing here ran on macOS.
"""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_support import LABEL, ROOT, SCRIPTS, STRANGE, Machine


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Machine]:
    """A Mac on which nothing is installed."""
    with Machine(tmp_path / "mac") as mac:
        yield mac


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Mac with the service, in a folder whose name needs every kind of quoting."""
    with Machine(tmp_path_factory.mktemp("mac")) as mac:
        mac.install = mac.folder / STRANGE
        mac.environment = {"MLX_MODEL_DIR": "/Volumes/Big & fast/models"}
        mac.set_up()
        yield mac


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# ---- installing ----------------------------------------------------------------------------------


def test_the_plist_says_what_launchd_needs(installed: Machine) -> None:
    plist = plistlib.loads(installed.plist.read_bytes())
    folder, version = installed.install, installed.versions()[-1]
    assert installed.plist.name == f"{LABEL}.plist"
    assert plist["Label"] == LABEL
    assert plist["ProgramArguments"] == [
        str(version / "mlx-router-service"),
        str(version / "venv/bin/python"),
        *("-m", "mlx_router", "--config", str(folder / "config.json")),
    ]
    assert plist["WorkingDirectory"] == str(folder)
    assert plist["RunAtLoad"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False, "Crashed": True}
    assert plist["ThrottleInterval"] >= 10
    assert plist["StandardOutPath"] == str(folder / "mlx_router.log")
    assert plist["StandardErrorPath"] == str(folder / "mlx_router.error.log")
    variables = plist["EnvironmentVariables"]
    assert variables["PATH"].startswith("/opt/homebrew/bin:")
    assert variables["HOME"] == str(installed.home)
    assert variables["HF_HUB_CACHE"] == str(installed.home / ".cache/huggingface/hub")
    assert variables["MLX_MODEL_DIR"] == "/Volumes/Big & fast/models"
    grace = json.loads(installed.config.read_text())["server"]["grace_seconds"]
    assert plist["ExitTimeOut"] > grace + 15


def test_the_packages_have_the_versions_that_were_tested(installed: Machine) -> None:
    line = next(line for line in installed.calls().splitlines() if "pip install" in line)
    assert "--constraint constraints.txt" in line
    assert line.endswith(" .[vision]")


def test_the_command_knows_the_config_of_the_install(installed: Machine) -> None:
    launcher = (installed.install / "mlx-router").read_text()
    shown = launcher.replace("exec ", "echo $MLX_ROUTER_CONFIG; echo ")
    done = subprocess.run(["bash", "-c", shown, "x", "status"], capture_output=True, text=True)
    command = installed.install / "current/venv/bin/mlx-router"
    assert done.stdout.splitlines() == [str(installed.config), f"{command} status"]


def test_the_config_is_for_its_owner_only_and_completes_in_an_editor(installed: Machine) -> None:
    schema = json.loads(installed.config.read_text())["$schema"]
    assert json.loads((installed.install / schema).read_text())["$defs"]
    assert installed.config.stat().st_mode & 0o777 == 0o600


def test_an_update_keeps_an_edited_config(installed: Machine) -> None:
    installed.edit_config(max_queue=7)
    edited = installed.config.read_text()
    installed.write_defaults(_comment="of the next version")
    installed.update()
    with installed.plist.open("a") as plist:
        plist.write("<!-- edited -->")
    done = installed.set_up()
    assert "or edited. It is replaced" in done.stdout
    assert installed.config.read_text() == edited
    assert "of the next version" in (installed.install / "config.json.new").read_text()
    assert "config.json.new" in done.stdout
    assert installed.health() == installed.version
    assert len(installed.versions()) == 1


def test_a_config_that_was_not_edited_follows_the_defaults(installed: Machine) -> None:
    shutil.copy(installed.install / "current/config.json", installed.config)
    installed.write_defaults(_comment="even newer")
    installed.update()
    installed.set_up()
    assert "even newer" in installed.config.read_text()
    assert not (installed.install / "config.json.new").exists()


def test_a_failed_download_leaves_the_running_version_alone(installed: Machine) -> None:
    before, plist = tree(installed.install), installed.plist.read_bytes()
    no_network = installed.state / "no-network"
    no_network.touch()
    installed.update()
    done = installed.set_up(code=1)
    no_network.unlink()
    assert "packages could not be installed" in done.stderr
    assert "no network" in done.stderr
    assert tree(installed.install) == before
    assert installed.plist.read_bytes() == plist
    assert installed.health() != installed.version


def test_a_config_with_a_fault_leaves_the_running_version_alone(installed: Machine) -> None:
    installed.edit_config(prot=1)
    fault = installed.state / "bad-config"
    fault.touch()
    before = tree(installed.install)
    done = installed.set_up(code=1)
    fault.unlink()
    assert "server.prot" in done.stdout
    assert "Correct" in done.stderr
    assert tree(installed.install) == before
    assert installed.health()


def test_a_version_that_does_not_answer_makes_way_for_the_one_before(installed: Machine) -> None:
    running = installed.health()
    content = json.loads(installed.config.read_text())
    installed.config.write_text(json.dumps({**content, "_stand_in": running}))
    versions = installed.versions()
    installed.update()
    done = installed.set_up(code=4)
    assert f"the stand-in of version {installed.version} crashes" in done.stderr
    assert "putting the version before back" in done.stderr
    assert installed.health() == running
    assert installed.versions() == versions
    assert plistlib.loads(installed.plist.read_bytes())["ProgramArguments"][0].startswith(
        str(versions[0])
    )


def test_a_service_that_crashes_at_once_is_braked_and_its_log_is_shown(mac: Machine) -> None:
    mac.write_defaults(_stand_in="none")
    done = mac.set_up(code=4)  # and does not wait for long
    log = (mac.install / "mlx_router.error.log").read_text()
    assert log.count("crashes, as it was told") == 5
    assert "has crashed 5 times within 10 minutes" in log
    assert "launchctl kickstart gui/" in log
    assert "the stand-in of version 1 crashes" in done.stderr
    assert str(mac.config) in done.stderr
    mac.write_defaults()  # what was at fault is put right, and the same command goes on
    mac.set_up()
    assert mac.health() == "1"


def test_a_service_that_does_not_answer_in_time_is_left_for_looking_into(mac: Machine) -> None:
    mac.write_defaults(_stand_in="hangs")
    done = mac.set_up("--wait", "0", code=4)
    assert f"does not answer at http://127.0.0.1:{mac.port}/health" in done.stderr
    assert "--wait 300" in done.stderr
    assert mac.is_running()


def test_a_port_in_use_is_named(mac: Machine) -> None:
    with socket.create_server(("127.0.0.1", mac.port)):
        done = mac.set_up(code=1)
    assert f"127.0.0.1:{mac.port} is in use" in done.stderr
    assert "server.port" in done.stderr
    assert not mac.is_running()


@pytest.mark.parametrize(
    ("refused", "by_load", "code", "expected"),
    [
        (2, "", 0, ["bootstrap gui/0 x", "bootstrap gui/0 x", "bootstrap gui/0 x", "kickstart"]),
        (9, "touch loaded", 0, ["bootstrap gui/0 x"] * 3 + ["load -w x"]),
        (9, "", 1, ["bootstrap gui/0 x"] * 3 + ["load -w x", "125: Domain does not", "ssh"]),
    ],
    ids=["not ready", "an old launchctl", "no screen"],
)
def test_launchd_that_refuses_is_asked_again_and_in_the_old_way_and_then_explained(
    refused: int, by_load: str, code: int, expected: list[str], tmp_path: Path
) -> None:
    program = f"""
    set -euo pipefail
    INSTALL_DIR=. EXIT_FAILED=1 left={refused}
    . {ROOT}/helper_tools/service/launchd.sh
    DEFINITION=x DOMAIN=gui/0
    sleep() {{ :; }}
    launchctl() {{
      case "$1" in
        bootstrap)
          echo "$*" >>calls
          [ "$(wc -l <calls)" -gt {refused} ] || {{ echo "125: Domain does not"; return 125; }} ;;
        load) echo "$*" >>calls; {by_load} ;;
        print | list) [ -f loaded ] ;;
        kickstart) echo kickstart >>calls ;;
      esac
    }}
    start_service
    """
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == code
    said = (tmp_path / "calls").read_text() + done.stderr
    for part in expected:
        assert part in said
        said = said[said.index(part) + len(part) :]


def test_pip_is_used_where_there_is_no_uv(mac: Machine) -> None:
    (mac.bin / "uv").unlink()
    mac.set_up("--no-vision")
    assert re.search(r"pip .*-m pip install .*--constraint constraints.txt \.\n", mac.calls())
    assert mac.is_running()


# ---- what does not fit ---------------------------------------------------------------------------


def test_the_newest_python_that_fits_is_taken(mac: Machine) -> None:
    mac.stub_python("python3.13", "3.13.0", machine="x86_64")
    mac.stub_python("python3.12", "3.12.9")
    mac.stub_python("python3.11", "3.11.9")
    assert f"Python 3.12.9: {mac.bin}/python3.12" in mac.set_up("--dry-run").stdout
    for name in ("python3.12", "python3.11"):
        mac.stub(name, "exit 127")
    mac.stub_python("python3", "3.11.2")
    assert f"Python 3.11.2: {mac.bin}/python3\n" in mac.set_up("--dry-run").stdout


@pytest.mark.parametrize(
    ("version", "processor"), [("3.9.6", "arm64"), ("3.14.0", "arm64"), ("3.12.1", "x86_64")]
)
def test_a_python_that_does_not_fit_is_named_with_how_to_get_one(
    version: str, processor: str, mac: Machine
) -> None:
    for name in ("python3.13", "python3.12", "python3.11"):
        mac.stub(name, "exit 127")
    mac.stub_python("python3", version, processor)
    done = mac.set_up(code=3)
    assert "no Python 3.11, 3.12 or 3.13" in done.stderr
    assert f"{mac.bin}/python3 ({version}" in done.stderr
    assert "brew install python@3.12" in done.stderr
    assert not mac.install.exists()


@pytest.mark.parametrize(
    ("stub", "body", "expected"),
    [
        ("uname", "echo Linux", "helper_tools/install-systemd.sh"),
        ("uname", 'case "$1" in -s) echo Darwin ;; *) echo i386 ;; esac', "Apple silicon"),
        ("sw_vers", "echo 13.7", "macOS 13.7, and MLX needs 14"),
        ("sw_vers", "echo", "sw_vers says"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused(
    stub: str, body: str, expected: str, mac: Machine
) -> None:
    mac.stub(stub, body)
    assert expected in mac.set_up(code=3).stderr
    assert not mac.install.exists()


def test_a_shell_under_rosetta_is_told_what_to_do(mac: Machine) -> None:
    mac.stub("uname", 'case "$1" in -s) echo Darwin ;; *) echo x86_64 ;; esac')
    mac.stub("sysctl", "echo 1")
    assert "arch -arm64 /bin/bash" in mac.set_up(code=3).stderr


def test_sudo_is_refused(mac: Machine) -> None:
    mac.environment = {"SUDO_USER": "me"}
    assert "without sudo" in mac.set_up(code=3).stderr


def test_no_folder_but_one_of_its_own_is_installed_to(mac: Machine) -> None:
    other = mac.folder / "photos"
    other.mkdir()
    (other / "cat.jpg").touch()
    for folder in (other, other / "cat.jpg", mac.home, mac.clone, Path("/")):
        mac.install = folder
        for script in SCRIPTS[:2]:
            assert str(folder) in mac.run(script, code=3).stderr
    assert tree(other) == [other / "cat.jpg"]


def test_a_clone_that_is_not_whole_is_refused(mac: Machine) -> None:
    (mac.clone / "constraints.txt").unlink()
    assert "constraints.txt is missing" in mac.set_up(code=3).stderr


# ---- dry runs, help ------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_shows_everything(mac: Machine) -> None:
    before = tree(mac.folder)
    shown = mac.set_up("--dry-run").stdout
    assert tree(mac.folder) == before
    assert "would run: uv pip install" in shown
    plist = plistlib.loads(shown[shown.index("<?xml") : shown.index("</plist>") + 8].encode())
    assert plist["Label"] == LABEL


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_use(script: str, mac: Machine) -> None:
    assert "exit codes:" in mac.run(script, "--help").stdout
    done = mac.run(script, "--purgge", code=2)
    assert "unknown option '--purgge'" in done.stderr


def test_a_wait_must_be_a_number(mac: Machine) -> None:
    assert "not 'soon'" in mac.set_up("--wait", "soon", code=2).stderr
    assert "not '123456'" in mac.set_up("--wait", "123456", code=2).stderr
    assert "--wait needs" in mac.set_up("--wait", code=2).stderr


@pytest.mark.parametrize(("given", "seconds"), [("08", 8), ("090", 90), ("00", 0)])
def test_a_wait_with_leading_zeros_is_decimal_and_still_waited(given: str, seconds: int) -> None:
    program = f"""
    set -euo pipefail
    . {ROOT}/helper_tools/service/install.sh
    PYTHON=false DEFINE=x URL=x
    has_given_up() {{ :; }}
    parse_options --wait {given}
    wait_until_healthy || echo unhealthy
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert f"at most {seconds} s  no answer\nunhealthy" in done.stdout, done.stderr
