"""The machine: Python, packages, MLX, memory, and what images and PDFs need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from mlx_router.cli.checks.finding import Finding, Level, Patient
from mlx_router.cli.terminal import gigabytes
from mlx_router.domain import Pressure
from mlx_router.errors import INSTALL_VISION

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that is tested
COMPUTE_SECONDS = 20.0
SLOW_GFLOPS = 5.0  # the plain BLAS of MLX for Linux has about 1, OpenBLAS tens
_UPDATE = "`uv sync` in the clone, or `uv tool install --reinstall .`"


def python(patient: Patient) -> Iterator[Finding]:
    version = sys.version_info[:2]
    text = f"{platform.python_version()} ({platform.machine()}, {sys.executable})"
    oldest, newest = (".".join(map(str, one)) for one in PYTHONS)
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        fix = f"use Python {oldest} to {newest}: `uv sync --python {newest}`"
        yield Finding("Python", Level.PROBLEM, f"{text} is not supported", fix)
    elif sys.platform == "darwin" and platform.machine() != "arm64":
        fix = "install an arm64 Python, and start it from a terminal that does not use Rosetta"
        yield Finding("Python", Level.PROBLEM, f"{text} is not for Apple Silicon", fix)
    else:
        yield Finding("Python", Level.OK, text)


def packages(patient: Patient) -> Iterator[Finding]:
    """Whether what is installed is what this version asks for."""
    from packaging.requirements import Requirement

    faults = []
    try:
        requirements = importlib.metadata.requires("mlx-router") or []
    except importlib.metadata.PackageNotFoundError:
        text = "mlx-router runs from a folder, not installed: versions are not checked"
        yield Finding("packages", Level.WARNING, text, f"install it: {_UPDATE}")
        return
    for text in requirements:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            faults.append(f"{needed.name} is {found}, not {needed.specifier}")
    if faults:
        yield Finding("packages", Level.PROBLEM, "; ".join(faults), f"update them: {_UPDATE}")
        return
    names = ("mlx", "mlx-lm", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield Finding("packages", Level.OK, versions)


def mlx(patient: Patient) -> Iterator[Finding]:
    """Let MLX compute, in a process of its own: what is broken there may end its process."""
    command = [sys.executable, "-m", "mlx_router.engine.check"]
    try:
        done = _output(command, COMPUTE_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "restart the machine if this stays: its GPU may hang"
        text = f"has not computed anything within {COMPUTE_SECONDS:g} s"
        yield Finding("MLX", Level.PROBLEM, text, fix)
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding(
            "MLX", Level.PROBLEM, f"cannot compute: {last}", f"install it anew: {_UPDATE}"
        )
        return
    found = json.loads(done.stdout.splitlines()[-1])
    text = f"computes on {found['backend']} ({found['device']}, {found['gflops']:.0f} GFLOP/s)"
    if found["memory"] is not None:
        text += f", {gigabytes(found['memory'])} for the GPU"
    if not found["right"]:
        yield Finding("MLX", Level.PROBLEM, f"{text}, and wrongly", f"install it anew: {_UPDATE}")
    elif sys.platform == "darwin" and found["backend"] != "metal":
        fix = "MLX needs Apple Silicon and macOS 14 or newer; `uv sync` installs the right build"
        yield Finding("MLX", Level.PROBLEM, f"{text}, not on Metal", fix)
    elif found["backend"] == "cpu" and not found["openblas"] and found["gflops"] < SLOW_GFLOPS:
        fix = (
            "for float32 models preload OpenBLAS (Debian: libopenblas0-pthread; "
            "LD_PRELOAD=libopenblas.so.0 mlx-router), see docs/performance.md"
        )
        yield Finding("MLX", Level.WARNING, f"{text}, slowly: with its own BLAS", fix)
    else:
        yield Finding("MLX", Level.OK, text)


def memory(patient: Patient) -> Iterator[Finding]:
    from mlx_router.runtime.build import make_monitor

    monitor = make_monitor(patient.settings)
    now, pressure = monitor.fresh(), monitor.pressure()
    swap = f"swap {gigabytes(now.swap_used)} of {gigabytes(now.swap_total)}"
    text = f"{gigabytes(now.total)}, {gigabytes(now.available)} available, " + (
        swap if now.swap_total else "no swap"
    )
    if pressure is Pressure.NORMAL:
        yield Finding("memory", Level.OK, text)
    else:
        limit = gigabytes(int(monitor.policy.limit(Pressure.MODERATE)))
        fix = (
            f"close other programs, or unload models: pressure begins below {limit} available "
            "(defaults.memory_threshold_gb, see MEMORY_PRESSURE.md)"
        )
        yield Finding("memory", Level.WARNING, f"{text}: {pressure.value} pressure", fix)
    if sys.platform == "darwin":
        yield from _wired_limit()


def _wired_limit() -> Iterator[Finding]:
    """How much of the memory macOS lets the GPU have. Only read: to set it needs sudo."""
    done = _output(["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], 5)
    limit = done.stdout.strip()
    if done.returncode != 0 or not limit.isdecimal():
        return
    text = "the system's own limit" if limit == "0" else f"{gigabytes(int(limit) * 2**20)} at most"
    yield Finding("GPU memory", Level.OK, f"{text} (iogpu.wired_limit_mb {limit})")


def _output(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def images(patient: Patient) -> Iterator[Finding]:
    """Whether models can see, and PDFs be drawn."""
    wanted = [card.id for card in patient.catalog.cards() if card.usable and card.blind]
    missing = [
        name
        for name, module in (("mlx-vlm", "mlx_vlm"), ("pillow", "PIL"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        text = f"{', '.join(missing)} not installed: text only"
        if wanted:
            text += f", also from {', '.join(wanted[:3])}"
        yield Finding(
            "images",
            Level.WARNING if wanted else Level.OK,
            text,
            f"to see images: {INSTALL_VISION}",
        )
        return
    yield Finding("images", Level.OK, f"mlx-vlm {importlib.metadata.version('mlx-vlm')}")
    poppler = all(shutil.which(program) for program in ("pdftoppm", "pdfinfo"))
    if poppler and importlib.util.find_spec("pdf2image") is not None:
        yield Finding("PDFs", Level.OK, "drawn by poppler")
    elif importlib.util.find_spec("pypdfium2") is not None:
        yield Finding("PDFs", Level.OK, "drawn by pypdfium2")
    else:
        fix = "`brew install poppler` (Debian: poppler-utils), or install pypdfium2: "
        yield Finding("PDFs", Level.WARNING, "cannot be drawn", fix + INSTALL_VISION)
