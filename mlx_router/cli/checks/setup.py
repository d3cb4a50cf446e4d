"""What the router is told: config, models, folders, address, access, service."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mlx_router.cli.address import AddressUnusable, asked_at, base_url, bind
from mlx_router.cli.checks.finding import Finding, Level, Patient
from mlx_router.cli.copies import is_incomplete, is_linked
from mlx_router.cli.summary import short
from mlx_router.cli.terminal import gigabytes
from mlx_router.domain import GIB, ModelCard

SHOWN = 10  # models with problems
LOG_BYTES = 100 * 2**20
ANSWER_SECONDS = 2.0
LABEL = "com.mlx-router.server"  # of launchd
UNIT = "mlx-router.service"  # of systemd


def config(patient: Patient) -> Iterator[Finding]:
    for line in patient.faults:
        yield Finding("config", Level.PROBLEM, line, "correct it; the other checks use defaults")
    if not patient.faults and patient.config is None:
        yield Finding("config", Level.OK, "defaults (no ./config.json, no MLX_ROUTER_CONFIG)")
    elif not patient.faults:
        count = len(patient.settings.models)
        entries = f"{count} model {'entry' if count == 1 else 'entries'}"
        yield Finding("config", Level.OK, f"{patient.config} ({entries})")


def models(patient: Patient) -> Iterator[Finding]:
    """The model directories, and what is in them."""
    folders = patient.settings.defaults.model_directories()
    for folder in folders:
        name = f"the model directory {short(folder)}"
        if not os.path.exists(folder):
            fix = f"`mkdir -p {short(folder)}`, or name another one with --model-dir"
            yield Finding("models", Level.WARNING, f"{name} does not exist", fix)
        elif not os.path.isdir(folder):
            fix = "name a folder in defaults.model_directory or with --model-dir"
            yield Finding("models", Level.PROBLEM, f"{name} is no folder", fix)
        elif not os.access(folder, os.R_OK | os.X_OK):
            fix = f"`chmod u+rx {short(folder)}`; on macOS allow it in Privacy & Security"
            yield Finding("models", Level.PROBLEM, f"{name} may not be read", fix)
    cards = patient.catalog.cards()
    usable, unusable = [c for c in cards if c.usable], [c for c in cards if not c.usable]
    listed = ", ".join(map(short, folders))
    if usable:
        size = gigabytes(sum(card.size_bytes for card in usable))
        yield Finding("models", Level.OK, f"{len(usable)} usable ({size}) in {listed}")
    else:
        fix = "`mlx-router pull mlx-community/Qwen3-4B-Instruct-2507-4bit`, or try --demo"
        yield Finding("models", Level.WARNING, f"none that can be used in {listed}", fix)
    for card in unusable[:SHOWN]:
        text = f"{card.id} cannot be used: {card.problem}".rstrip(".")
        yield Finding("models", Level.WARNING, text, _remedy(card))
    if len(unusable) > SHOWN:
        text = f"{len(unusable) - SHOWN} more cannot be used"
        yield Finding("models", Level.WARNING, text, "`mlx-router models` has the reasons")
    notes = [note for note in patient.catalog.notes if not note.startswith("model directory ")]
    for note in notes[:SHOWN]:
        yield Finding("models", Level.WARNING, note.rstrip("."), "correct it, or remove the folder")


def _remedy(card: ModelCard) -> str:
    """What helps against a model's problem."""
    problem = card.problem or ""
    if is_linked(card.path):
        return "it is linked from another program: complete it there, or remove the links"
    if is_incomplete(problem):
        return f"fetch it again with `mlx-router pull {card.id}`, or remove its folder"
    if "does not support" in problem:
        return f"there is nothing to fetch: update MLX Router, or remove {short(card.path)}"
    return f"correct it, or remove {short(card.path)}"


def folders(patient: Patient) -> Iterator[Finding]:
    """The folders that the server writes to."""
    settings = patient.settings
    disk = int(settings.prefix_cache.disk_gb * GIB)
    yield _writable("logs", settings.server.log_directory(), LOG_BYTES, "server.log_dir")
    if disk:
        place = settings.prefix_cache.folder()
        yield _writable("prompt cache", place, disk, "prefix_cache.directory")
    place = settings.defaults.state_folder()
    yield _writable("state", place, LOG_BYTES, "defaults.state_directory")


def _writable(name: str, folder: Path, needed: int, setting: str) -> Finding:
    """``needed``: bytes that should be free."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        fix = f"`chmod u+rwx {short(there)}`, or name another folder in {setting}"
        return Finding(name, Level.PROBLEM, f"{short(folder)} may not be written", fix)
    free = shutil.disk_usage(there).free
    text = f"{short(folder)}, {gigabytes(free)} free"
    if free < needed:
        lower = ", or set prefix_cache.disk_gb lower" if setting.startswith("prefix") else ""
        fix = f"make room, {gigabytes(needed)} in all{lower}"
        return Finding(name, Level.WARNING, text, fix)
    return Finding(name, Level.OK, text)


def address(patient: Patient) -> Iterator[Finding]:
    """Whether the server could listen, or does."""
    from mlx_router.cli.remote import Remote, ServerRefused

    ip, port = patient.settings.server.ip, patient.settings.server.port
    if port == 0:
        yield Finding("address", Level.OK, f"{ip}, a free port at each start")
        return
    try:
        bind(ip, port).close()
    except AddressUnusable as unusable:
        said, fix = unusable.message.partition("; ")[::2]
    else:
        yield Finding("address", Level.OK, f"{ip} port {port} is free")
        return
    try:
        health = Remote(base_url(asked_at(ip), port)).get("/health", timeout=ANSWER_SECONDS)
    except ServerRefused:
        health = None
    if isinstance(health, dict) and {"status", "version", "current_model"} <= health.keys():
        text = f"an MLX Router {health['version']} serves on port {port}: {health['status']}"
        yield Finding("address", Level.OK, text)
    elif "in use" in said:
        text = f"port {port} is in use by another program"
        fix = f"`lsof -nP -iTCP:{port}` names it; or choose another port: -p {port % 65535 + 1}"
        yield Finding("address", Level.PROBLEM, text, fix)
    else:
        yield Finding("address", Level.PROBLEM, said, fix)


def access(patient: Patient) -> Iterator[Finding]:
    """Who may use the server."""
    server = patient.settings.server
    if server.api_keys:
        count = len(server.api_keys)
        text = f"with one of {count} API keys" if count > 1 else "with the API key"
        yield Finding("access", Level.OK, text)
    elif _is_loopback(server.ip):
        yield Finding("access", Level.OK, "this machine only, without an API key")
    else:
        text = f"everybody in the network may use it: no API key, and it listens on {server.ip}"
        fix = "set server.api_keys, or server.ip to 127.0.0.1, unless you trust the network"
        yield Finding("access", Level.WARNING, text, fix)


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"


def service(patient: Patient) -> Iterator[Finding]:
    """Whether it is installed as a service of this user, and runs."""
    home = Path.home()
    if sys.platform == "darwin":
        definition = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        question = ["launchctl", "print", f"gui/{os.getuid()}/{LABEL}"]
        look = f"`launchctl print gui/{os.getuid()}/{LABEL}`"
        install = "./install-launchd.sh"
    else:
        settings = os.environ.get("XDG_CONFIG_HOME") or home / ".config"
        definition = Path(settings) / "systemd" / "user" / UNIT
        question = ["systemctl", "--user", "is-active", "--quiet", UNIT]
        look = f"`systemctl --user status {UNIT}`"
        install = "helper_tools/install-systemd.sh"
    if not definition.exists():
        yield Finding("service", Level.OK, f"not installed ({install} installs it)")
    elif _succeeds(question):
        yield Finding("service", Level.OK, f"installed and loaded ({short(definition)})")
    else:
        text = f"installed ({short(definition)}), and does not run"
        yield Finding(
            "service", Level.WARNING, text, f"{look} says why; {install} installs it anew"
        )


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
