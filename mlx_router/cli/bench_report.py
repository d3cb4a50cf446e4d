"""What ``mlx-router bench`` shows: tables, and bars of what is in them."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_router.bench.results import Measured, Prompt, Results, Together, median
from mlx_router.cli.summary import backend
from mlx_router.cli.terminal import Terminal, gigabytes
from mlx_router.memory.probe import SystemProbe
from mlx_router.version import __version__

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LIBRARIES = ("mlx", "mlx-lm", "mlx-vlm", "transformers")


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, where and with what was measured. ``machine`` is this one, also for a ``url``."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": arguments.url,
        "engine": None if arguments.url is not None else backend(arguments.engine),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_bytes": SystemProbe().snapshot().total,
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "mlx-router": __version__,
            "python": platform.python_version(),
            **{name: version for name in _LIBRARIES if (version := _version(name))},
        },
    }


def show(results: Results, terminal: Terminal) -> None:
    """All that there is: for each model its tables, then the swaps and what was left out."""
    about = results.about
    machine = about["machine"]
    terminal.line(f"{about['url'] or about['engine']}", style="bold")
    whose = "measured from: " if about["url"] is not None else ""
    terminal.line(
        f"{whose}{machine['processor']}, {machine['cores']} cores, "
        f"{gigabytes(machine['memory_bytes'])}; "
        f"mlx-router {about['versions']['mlx-router']}; {about['date']}"
    )
    for model in results.models:
        terminal.line()
        _show_model(model, terminal)
    if len(results.models) > 1:
        terminal.line()
        _show_together(results.models, terminal)
    if any(swap.seconds for swap in results.swaps):
        terminal.line()
        rows = [
            [f"{swap.out} → {swap.into}", seconds(median(swap.seconds))]
            for swap in results.swaps
            if swap.seconds
        ]
        _table(terminal, ["swap", "first token"], rows)
    if results.notes:
        terminal.line()
    for note in results.notes:
        terminal.line(note)


def _show_model(model: Measured, terminal: Terminal) -> None:
    subject = model.subject
    told = [subject.architecture, subject.quantization or ""]
    told.append(gigabytes(subject.size_bytes) if subject.size_bytes else "")
    terminal.line(f"{subject.id}  {', '.join(filter(None, told))}", style="bold")
    if model.load_seconds:
        terminal.line(f"loaded in {seconds(median(model.load_seconds))}")
    if prompts := [prompt for prompt in model.prompts if prompt.cold]:
        slowest = max(prompt.cold_seconds or 0.0 for prompt in prompts)
        headers = ["prompt", "first token", "tokens/s", "again", "reused", ""]
        terminal.line()
        _table(terminal, headers, [_prompt_row(prompt, slowest) for prompt in prompts])
    if streams := [each for each in model.streams if each.runs]:
        fastest = max(each.rate or 0.0 for each in streams)
        alone = streams[0].rate if streams[0].streams == 1 else None
        headers = ["streams", "tokens/s", "each", "x one", ""]
        terminal.line()
        _table(terminal, headers, [_streams_row(each, fastest, alone) for each in streams])


def _prompt_row(prompt: Prompt, slowest: float) -> list[str]:
    return [
        str(prompt.tokens),
        seconds(prompt.cold_seconds),
        rate(prompt.prefill_rate),
        seconds(prompt.warm_seconds),
        rate(prompt.reused),
        bar(prompt.cold_seconds or 0.0, slowest),
    ]


def _streams_row(together: Together, fastest: float, alone: float | None) -> list[str]:
    gain = together.rate / alone if together.rate and alone else None
    return [
        str(together.streams),
        rate(together.rate),
        rate(together.stream_rate),
        "-" if gain is None else f"{gain:.1f}",
        bar(together.rate or 0.0, fastest),
    ]


def _show_together(models: Sequence[Measured], terminal: Terminal) -> None:
    """The models side by side."""
    headers = ["model", "load", "first token", "prefill/s", "decode/s", "together/s"]
    rows = []
    for model in models:
        longest = model.prompts[-1] if model.prompts else None
        rows.append(
            [
                model.subject.id,
                seconds(median(model.load_seconds)),
                seconds(longest.cold_seconds if longest else None),
                rate(longest.prefill_rate if longest else None),
                rate(model.decode_rate),
                rate(max((each.rate or 0.0 for each in model.streams), default=None)),
            ]
        )
    _table(terminal, headers, rows)


def _table(terminal: Terminal, headers: list[str], rows: list[list[str]]) -> None:
    """All columns but the first and a last one of bars are numbers, and end below each other."""
    last = len(headers) - (headers[-1] == "")
    for column in range(1, last):
        width = max(len(row[column]) for row in [headers, *rows])
        for row in [headers, *rows]:
            row[column] = row[column].rjust(width)
    terminal.table(headers, rows)


def bar(value: float, most: float, width: int = BAR_WIDTH) -> str:
    """A bar of at most ``width`` columns, to an eighth of one."""
    full, eighths = divmod(round(8 * width * value / most) if most else 0, 8)
    return "█" * full + _EIGHTHS[eighths].strip()


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1e3 * value:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def rate(value: float | None) -> str:
    """Tokens, or tokens per second: three digits are known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Its name, as its maker sells it."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            told = subprocess.run(command, capture_output=True, text=True, timeout=5)  # noqa: S603
            return told.stdout.strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()
