"""What the scripts promise that remove the service, on a pretended Mac; nothing ran on macOS."""

from __future__ import annotations

import json
import plistlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_support import PYTHON, ROOT, STRANGE, UNINSTALL, Machine


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
        mac.set_up()
        yield mac


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_uninstalling_asks_first(installed: Machine) -> None:
    before = tree(installed.install)
    for answer in ("", "\n", "n\n"):
        done = installed.run(UNINSTALL, answer=answer, code=1)
        assert "nothing was removed" in done.stderr
    shown = installed.run(UNINSTALL, "--purge", "--dry-run").stdout
    assert "would run: rm -rf" in shown
    assert tree(installed.install) == before
    assert installed.health()


def test_uninstalling_keeps_config_and_logs_and_a_new_install_finds_them(mac: Machine) -> None:
    assert "Nothing to remove" in mac.run(UNINSTALL, "--yes").stdout
    mac.set_up()
    mac.edit_config(max_queue=9)
    mac.plist.write_text(mac.plist.read_text() + "<!-- edited -->")
    done = mac.run(UNINSTALL, answer="y\n")
    assert "Done" in done.stdout
    assert not mac.is_running()
    assert not mac.plist.exists()
    left = {path.name for path in mac.install.iterdir()}
    assert left == {
        *("config.json", "mlx_router.log", "mlx_router.error.log", ".mlx-router-install")
    }
    mac.set_up()
    assert json.loads(mac.config.read_text())["server"]["max_queue"] == 9

    (mac.install / "mine.txt").touch()
    done = mac.run(UNINSTALL, "--yes", "--purge")
    assert [path.name for path in mac.install.iterdir()] == ["mine.txt"]
    assert "did not make" in done.stdout


def test_the_service_of_another_folder_is_not_removed_but_that_folder_named(
    installed: Machine,
) -> None:
    mine, other = installed.install, installed.folder / "other"
    (other / "current").mkdir(parents=True)
    for name in (".mlx-router-install", "current/definition"):
        (other / name).write_text("another install")
    for wrong in (other, installed.folder / "missing", installed.bin):
        installed.install = wrong
        done = installed.run(UNINSTALL, "--yes", code=3)
        assert f"was installed to {mine}, not to {wrong}" in done.stderr
    installed.install = mine
    hint = done.stderr.split("remove that one: ")[1].strip()
    assert (other / "current/definition").exists()
    assert installed.health()
    shown = subprocess.run(
        ["bash", "-c", f"{hint} --dry-run"],
        env={"HOME": str(installed.home), "PATH": f"{installed.bin}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert f"the program in {mine}" in shown.stdout


def edits(kind: str, definition: str) -> list[str]:
    """What may become of a definition in an editor."""
    if kind == "systemd":
        kept = [line for line in definition.splitlines() if "WorkingDirectory" not in line]
        return [
            definition + "\nEnvironment=MORE=1\n",
            definition.replace("WorkingDirectory=", "  WorkingDirectory = "),
            "\n".join(kept),
        ]
    content = plistlib.loads(definition.encode())
    short = {key: content[key] for key in ("ProgramArguments", "Label")}
    return [
        plistlib.dumps({**content, "Nice": 5}).decode(),
        definition.replace("</key>\n\t<", "</key> <"),
        plistlib.dumps(short).decode(),
    ]


@pytest.mark.parametrize("kind", ["launchd", "systemd"])
def test_an_edited_definition_still_says_whose_it_is(kind: str, tmp_path: Path) -> None:
    service, folder = ROOT / "helper_tools/service", tmp_path / STRANGE
    command = [PYTHON, f"{service}/definition.py", kind, "--config", f"{ROOT}/config.json"]
    written = subprocess.run(
        [*command, "--install-dir", str(folder), "--version-dir", f"{folder}/versions/1"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    program = f". {service}/{kind}.sh; DEFINITION=$1; installed_folder"
    file = tmp_path / "definition"
    for text in (written, *edits(kind, written)):
        file.write_text(text)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", program, "x", file], capture_output=True, text=True
        )
        assert done.stdout == f"{folder}\n", text


def test_a_definition_that_names_no_folder_is_left_alone(mac: Machine) -> None:
    mac.plist.parent.mkdir(parents=True)
    mac.plist.write_text("nonsense")
    said = mac.run(UNINSTALL, "--yes", code=3).stderr
    assert f"{mac.plist} names no folder" in said
    assert mac.plist.exists()
