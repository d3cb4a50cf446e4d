"""What launchd and systemd are told about the service, from its config. Standard library only.

definition.py launchd|systemd --config FILE --install-dir DIR --version-dir DIR
definition.py address --config FILE     prints http://HOST:PORT, for this machine
definition.py health --url URL          exit code 0: MLX Router answers there
definition.py free --url URL            exit code 0: nothing listens there
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LABEL = "com.mlx-router.server"
# What the settings default to; the config is checked by MLX Router itself.
DEFAULTS = {"ip": "0.0.0.0", "port": 8800, "grace_seconds": 30.0}  # noqa: S104
THIS_MACHINE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  listened on, not asked
# After the grace time the server ends within 15 s even if something hangs.
BEYOND_GRACE_SECONDS = 20
OPEN_FILES = 8192  # launchd gives 256: too few for the connections of a busy server
RESTART_SECONDS = 10
MAX_CRASHES, WITHIN_SECONDS = 5, 600  # as in run.sh
KEPT_VARIABLES = ("MLX_MODEL_DIR", "HF_HOME", "HF_ENDPOINT")
PATHS = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")


class Unusable(Exception):
    """The config does not say where the server listens; the message says what to do."""


def server_settings(config: Path) -> dict[str, Any]:
    """The ``server`` section with defaults. Raises Unusable."""
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig"))
        server = {**DEFAULTS, **content.get("server", {})}
        server["port"], server["grace_seconds"] = (
            int(server["port"]),
            float(server["grace_seconds"]),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Unusable(f"{config}: {error}; correct it") from None
    if server["port"] == 0:
        raise Unusable(f"{config}: server.port is 0, any free one; a service needs one of its own")
    return server


def address(config: Path) -> str:
    """``http://HOST:PORT`` as it is reached from this machine. Raises Unusable."""
    server = server_settings(config)
    host = THIS_MACHINE.get(server["ip"], server["ip"])
    return f"http://[{host}]:{server['port']}" if ":" in host else f"http://{host}:{server['port']}"


def variables() -> dict[str, str]:
    """The service's environment: a service manager gives it next to none, and expands nothing."""
    home = os.environ.get("HOME") or str(Path.home())
    cache = Path(os.environ.get("HF_HOME") or Path(home, ".cache", "huggingface"), "hub")
    found = {
        "HOME": home,
        "PATH": ":".join(PATHS),
        "HF_HUB_CACHE": os.environ.get("HF_HUB_CACHE") or str(cache),
        "PYTHONUNBUFFERED": "1",
    }
    return found | {name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)}


def command(install: Path, version: Path) -> list[str]:
    python = str(version / "venv/bin/python")
    return [python, "-m", "mlx_router", "--config", str(install / "config.json")]


def stop_seconds(config: Path) -> int:
    grace: float = server_settings(config)["grace_seconds"]
    return round(grace) + BEYOND_GRACE_SECONDS


def plist(config: Path, install: Path, version: Path) -> str:
    """The agent of launchd. Raises Unusable."""
    import plistlib

    content = {
        "Label": LABEL,
        # run.sh ends with 0 when it has seen too many crashes, and then it is not restarted.
        "ProgramArguments": [str(version / "mlx-router-service"), *command(install, version)],
        "WorkingDirectory": str(install),
        "EnvironmentVariables": {**variables(), "MLX_ROUTER_CONSOLE": "warnings"},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False, "Crashed": True},
        "ThrottleInterval": RESTART_SECONDS,
        "ExitTimeOut": stop_seconds(config),
        "StandardOutPath": str(install / "mlx_router.log"),
        "StandardErrorPath": str(install / "mlx_router.error.log"),
        # Without it, macOS slows background work down.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
    }
    return plistlib.dumps(content, sort_keys=False).decode()


def unit(config: Path, install: Path, version: Path) -> str:
    """The user unit of systemd. Raises Unusable."""
    # By way of env, since systemd refuses programs whose path has a quote in it.
    words = ["/usr/bin/env", *(_quoted(w).replace("$", "$$") for w in command(install, version))]
    environment = [f"Environment={_quoted(f'{k}={v}')}" for k, v in variables().items()]
    return "\n".join(
        [
            "[Unit]",
            "Description=MLX Router",
            f"StartLimitIntervalSec={WITHIN_SECONDS}",
            f"StartLimitBurst={MAX_CRASHES}",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(words)}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            f"WorkingDirectory={str(install).replace('%', '%%')}",
            *environment,
            "Restart=on-failure",
            f"RestartSec={RESTART_SECONDS}",
            "# 2: a fault in the config; 143: ended by a second signal.",
            "RestartPreventExitStatus=2",
            "SuccessExitStatus=143",
            f"TimeoutStopSec={stop_seconds(config)}",
            f"LimitNOFILE={OPEN_FILES}",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def healthy(url: str) -> bool:
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as response:
            return "version" in json.load(response)
    except (OSError, ValueError):
        return False


def free(url: str) -> bool:
    import socket

    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2).close()
    except OSError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="Defines the service. For the install scripts.")
    parser.add_argument("action", choices=("launchd", "systemd", "address", "health", "free"))
    for name in ("--config", "--install-dir", "--version-dir"):
        parser.add_argument(name, type=Path, default=Path())
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    if given.action in ("health", "free"):
        return 0 if (healthy if given.action == "health" else free)(given.url) else 1
    try:
        if given.action == "address":
            print(address(given.config))
        else:
            define = plist if given.action == "launchd" else unit
            print(define(given.config, given.install_dir, given.version_dir), end="")
    except Unusable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
