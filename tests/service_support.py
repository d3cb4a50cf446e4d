"""A pretended Mac, or Linux machine with systemd, for the scripts that install the service.

What the scripts find on ``PATH`` first is made here: ``uname``, ``launchctl``, Python, uv. Nothing
is downloaded: a "virtual environment" hands on to this one, or to a small server that stands in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx

from tests.server import free_port

ROOT = Path(__file__).parent.parent
INSTALL, UNINSTALL = "install-launchd.sh", "uninstall-launchd.sh"
SCRIPTS = (
    INSTALL,
    UNINSTALL,
    "helper_tools/install-systemd.sh",
    "helper_tools/uninstall-systemd.sh",
)
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
LABEL = "com.mlx-router.server"
STRANGE = 'my apps & "it\'s" <50%> $HOME'  # a folder whose name needs every kind of quoting
PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))

# Stands in for the server: answers /health on the port of its config. What it is told beyond that
# is in the config's "_stand_in".
SERVER = """
import json, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
config = json.loads(pathlib.Path(sys.argv[-1]).read_text())
if config.get("_stand_in") == "hangs":
    time.sleep(60)
if config.get("_stand_in", VERSION) != VERSION:
    sys.exit("the stand-in of version " + VERSION + " crashes, as it was told")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "healthy", "version": VERSION}).encode())
    def log_message(self, *_): pass
print("stand-in", VERSION, flush=True)
HTTPServer(("127.0.0.1", config["server"]["port"]), Handler).serve_forever()
"""


class Machine:
    """A home, a clone of the repository and the commands of a system, all under ``folder``.

    ``real``: the installed service is MLX Router itself, else the stand-in.
    """

    def __init__(self, folder: Path, system: str = "Darwin", *, real: bool = False) -> None:
        self.folder, self.real = folder, real
        self.home, self.clone = folder / "home", folder / "the clone"
        self.bin, self.state, self.brew = folder / "bin", folder / "state", folder / "brew"
        for made in (self.home, self.bin, self.state, self.brew, self.clone / "helper_tools"):
            made.mkdir(parents=True)
        self.install = self.home / "mlx_router_app"
        self.port = free_port()
        self.version = "1"
        self.environment: dict[str, str] = {}
        self._copy_clone()
        self.stub("uname", f'case "$1" in -s) echo {system} ;; -m) echo arm64 ;; esac')
        self.stub("sw_vers", "echo 15.6.1")
        self.stub("sleep", "exec /bin/sleep 0.1")
        self.stub("sysctl", "echo 34359738368")
        self.stub("journalctl", f'cat "{self.state}/journal"')
        fake = f'exec {PYTHON} -I -S {ROOT}/tests/fake_services.py "{self.state}"'
        note = f'echo "${{0##*/}} $*" >>"{self.state}/calls"'
        loaded = f'[ -f "{self.state}/loaded" ]; exit'
        self.stub(
            "launchctl",
            f'{note}\ncase "$1" in print | list) {loaded} ;; enable | kickstart) exit ;; esac\n'
            f'{fake} launchctl "$@"',
        )
        self.stub(
            "systemctl",
            f'{note}\ncase "$2" in is-failed) exit 1 ;; is-active)\n'
            f'  [ -f "{self.state}/loaded" ] || {{ echo inactive; exit 3; }}\n'
            f'  [ ! -f "{self.state}/crash-loop" ] || {{ echo activating; exit 3; }}\n'
            f"  echo active; exit ;;\nesac\n"
            f'case "$2" in start | stop | enable) {fake} systemctl "$@" ;; esac',
        )
        self.stub_python("python3.13", "3.13.1")
        self.use_uv()

    # -- what there is ---------------------------------------------------------------------------

    def _copy_clone(self) -> None:
        for name in FILES:
            shutil.copy(ROOT / name, self.clone)
        for name in SCRIPTS:
            text = (ROOT / name).read_text()
            # What is installed on the machine of this test stays out of it.
            text = text.replace("/opt/homebrew/bin:/usr/local/bin", str(self.brew))
            target = self.clone / name
            target.write_text(text)
            target.chmod(0o755)
        shutil.copytree(ROOT / "helper_tools/service", self.clone / "helper_tools/service")
        (self.clone / "mlx_router").symlink_to(ROOT / "mlx_router")
        self.write_defaults()

    def write_defaults(self, **more: Any) -> None:
        """The config.json of the clone."""
        content = json.loads((ROOT / "config.json").read_text())
        content["server"].update(ip="127.0.0.1", port=self.port)
        content["models"] = {"demo": {"path": str(ROOT / "mlx_router/demo/model")}}
        (self.clone / "config.json").write_text(json.dumps({**content, **more}, indent=2))

    def stub(self, name: str, body: str) -> Path:
        file = self.bin / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
        return file

    def stub_python(self, name: str, version: str, machine: str = "arm64") -> None:
        """A Python of that version; all but the installer's question is answered by this one's."""
        fits = version.startswith(("3.11", "3.12", "3.13")) and machine == "arm64"
        suffix = "" if machine == "arm64" else f" for {machine}"
        self.stub(
            name,
            f'if [ "$1" = -c ]; then echo "{version}{suffix}"; exit {0 if fits else 1}; fi\n'
            f'if [ "$2" = venv ]; then exec "{self.bin}/make-venv" "$3"; fi\n'
            f'exec {PYTHON} "$@"',
        )

    def use_uv(self) -> None:
        """uv is there; it says what it was asked for in ``state/calls``."""
        self.stub(
            "uv",
            f'echo "uv $*" >>"{self.state}/calls"\n'
            f'[ ! -f "{self.state}/no-network" ] || {{ echo "no network" >&2; exit 2; }}\n'
            f'if [ "$1" = venv ]; then exec "{self.bin}/make-venv" "${{@: -1}}"; fi',
        )
        self.write_venv()

    def write_venv(self) -> None:
        """What "virtual environments" made from now on hold."""
        python = f"exec {sys.executable}"
        if not self.real:
            (self.bin / f"server{self.version}.py").write_text(
                f"VERSION = {self.version!r}\n{SERVER}"
            )
            serve = f'exec {PYTHON} -I -S "{self.bin}/server{self.version}.py" "$@"'
            pip = f'echo "pip $*" >>"{self.state}/calls"'
            python = f'case "$2" in mlx_router) {serve} ;; pip) {pip} ;; esac'
        check = f'[ ! -f "{self.state}/bad-config" ] || {{ echo "server.prot: unknown"; exit 2; }}'
        commands = self.bin / f"commands{self.version}"
        commands.mkdir(exist_ok=True)
        scripts = {
            "python": f'{python} "$@"' if self.real else python,
            "mlx-router": f'exec {sys.executable} -m mlx_router "$@"' if self.real else check,
        }
        for name, body in scripts.items():
            file = commands / name
            file.write_text(f"#!/bin/bash\n{body}\n")
            file.chmod(0o755)
        self.stub("make-venv", f'mkdir -p "$1"\ncp -R "{commands}" "$1/bin"')

    def update(self) -> None:
        """The clone has a newer version from now on."""
        self.version = str(int(self.version) + 1)
        self.write_venv()

    # -- what is done ----------------------------------------------------------------------------

    def run(
        self, script: str, *words: str, code: int = 0, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the clone, which must end with ``code``."""
        done = subprocess.run(
            [str(self.clone / script), *words],
            env={
                "HOME": str(self.home),
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "INSTALL_DIR": str(self.install),
                **self.environment,
            },
            cwd=self.folder,
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def set_up(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run(INSTALL, *words, code=code)

    @property
    def plist(self) -> Path:
        return self.home / "Library/LaunchAgents" / f"{LABEL}.plist"

    @property
    def config(self) -> Path:
        return self.install / "config.json"

    def edit_config(self, **server: Any) -> None:
        content = json.loads(self.config.read_text())
        content["server"].update(server)
        self.config.write_text(json.dumps(content))

    def calls(self) -> str:
        file = self.state / "calls"
        return file.read_text() if file.exists() else ""

    def versions(self) -> list[Path]:
        return sorted((self.install / "versions").glob("*"))

    def is_running(self) -> bool:
        return (self.state / "loaded").exists()

    def health(self) -> str:
        """The version that the server says."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/health")
        version: str = answer.json()["version"]
        return version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running():
            fake = [sys.executable, str(ROOT / "tests/fake_services.py"), str(self.state)]
            subprocess.run([*fake, "launchctl", "bootout", "all"], check=True, env=os.environ)
