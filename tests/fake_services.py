"""Stand-ins for ``launchctl`` and ``systemctl``, which really run the service they are given.

    python fake_services.py STATE launchctl|systemctl WORD...

``STATE`` is a folder; its file ``loaded`` is there while a service is, with the supervisor's pid.
As launchd does, the supervisor starts the program with the variables of its definition and no
others, and again if it has ended with another code than 0. Standard library only, and what needs
none of it is in the shell script that calls this: both for a quick start.
"""

from __future__ import annotations

import os
import plistlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def supervise(service: dict[str, Any]) -> None:
    process: subprocess.Popen[bytes] | None = None
    stopping: list[bool] = []

    def stop(*_: object) -> None:
        stopping.append(True)
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        with open(service["out"], "ab") as out, open(service["err"], "ab") as err:
            process = subprocess.Popen(
                service["command"], env=service["env"], cwd=service["cwd"], stdout=out, stderr=err
            )
        if stopping:
            process.terminate()
        if process.wait() == 0:
            return


def of_plist(file: Path) -> dict[str, Any]:
    content = plistlib.loads(file.read_bytes())
    return {
        "command": content["ProgramArguments"],
        "env": content["EnvironmentVariables"],
        "cwd": content["WorkingDirectory"],
        "out": content["StandardOutPath"],
        "err": content["StandardErrorPath"],
    }


def of_unit(file: Path, journal: Path) -> dict[str, Any]:
    """As systemd reads it: backslashes and %% everywhere, $$ in the command."""
    import shlex

    lines = [line.split("=", 1) for line in file.read_text().splitlines() if "=" in line]
    values = {key: value.replace("%%", "%") for key, value in lines}
    command = [word.replace("$$", "$") for word in shlex.split(values["ExecStart"])]
    variables = [shlex.split(v.replace("%%", "%"))[0] for k, v in lines if k == "Environment"]
    return {
        "command": command,
        "env": dict(variable.split("=", 1) for variable in variables),
        "cwd": values["WorkingDirectory"],
        "out": journal,
        "err": journal,
    }


class Manager:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.loaded = state / "loaded"

    def start(self, service: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            supervise(service)
            os._exit(0)
        self.loaded.write_text(str(pid))

    def stop(self) -> None:
        pid = int(self.loaded.read_text())
        try:
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                time.sleep(0.01)
        except OSError:  # it has ended by itself
            pass
        self.loaded.unlink()

    def launchctl(self, words: list[str]) -> int:
        match words:
            case ["bootstrap", _, file]:
                self.start(of_plist(Path(file)))
            case ["bootout", _] if self.loaded.exists():
                self.stop()
            case _:
                return 64
        return 0

    def systemctl(self, words: list[str]) -> int:
        folder = Path(os.environ["HOME"], ".config/systemd/user")
        match words:
            case ["start", unit]:
                self.start(of_unit(folder / unit, self.state / "journal"))
            case ["stop", _] if self.loaded.exists():
                self.stop()
            case ["enable", unit]:
                wants = folder / "default.target.wants"
                wants.mkdir(exist_ok=True)
                (wants / unit).unlink(missing_ok=True)
                (wants / unit).symlink_to(folder / unit)
        return 0


def main() -> int:
    state, name, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    manager = Manager(state)
    if name == "launchctl":
        return manager.launchctl(words)
    return manager.systemctl([word for word in words if word != "--user"])


if __name__ == "__main__":
    sys.exit(main())
