"""What the terminal shows at start: where to connect, what there is, and what cannot be used."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_router.cli.terminal import Terminal, gigabytes, tokens
from mlx_router.config.settings import Settings
from mlx_router.domain import ModelCard
from mlx_router.errors import INSTALL_VISION
from mlx_router.version import __version__

HEADERS = ("model", "kind", "size", "quant", "context", "needs", "state")
SHOWN_MODELS = 20  # at start: a screen
SHOWN_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what the machine has, what is free for models now, and below what pressure begins."""

    total: int
    available: int
    pressure_below: int


@dataclass(frozen=True, slots=True)
class Start:
    """What the summary tells besides the models."""

    settings: Settings
    addresses: Sequence[str]
    memory: Memory | None = None
    config: Path | None = None
    engine: str = "mlx"


def show_summary(start: Start, cards: Sequence[ModelCard], terminal: Terminal) -> None:
    """Version, addresses, memory, backend, and the models found and not usable."""
    terminal.line(f"MLX Router {__version__}", style="bold")
    here, *others = start.addresses
    rows = [("base URL", f"{here}/v1")]
    rows += [("in the network", f"{other}/v1") for other in others]
    rows.append(("docs", f"{here}/docs and {here}/redoc"))
    rows.append(("engine", backend(start.engine)))
    if start.memory is not None:
        memory = start.memory
        rows.append(
            (
                "memory",
                f"{gigabytes(memory.total)}, {gigabytes(memory.available)} available, "
                f"pressure below {gigabytes(memory.pressure_below)}",
            )
        )
    rows.append(("config", str(start.config) if start.config else "defaults (no config.json here)"))
    if start.settings.server.api_keys:
        rows.append(("API keys", ", ".join(start.settings.server.api_keys)))
    for name, value in rows:
        terminal.line(f"  {name:<15} {value}")
    terminal.line()
    show_models(cards, start.settings, terminal, cut=True)


def show_ready(addresses: Sequence[str], terminal: Terminal) -> None:
    """The line after which requests are answered at once."""
    terminal.line(f"Ready: {addresses[0]}/v1  (Ctrl+C stops)", style="bold green")


def show_models(
    cards: Sequence[ModelCard], settings: Settings, terminal: Terminal, *, cut: bool = False
) -> None:
    """The table of the models, then why some cannot be used; a hint if there is no usable one.
    ``cut``: of many models, the first usable ones and the first problems."""
    usable = [card for card in cards if card.usable]
    unusable = [card for card in cards if not card.usable]
    listed, reasons = cards, unusable
    if cut and len(cards) > SHOWN_MODELS:
        listed, reasons = usable[:SHOWN_MODELS], unusable[:SHOWN_PROBLEMS]
    if listed:
        terminal.table(HEADERS, [row(card) for card in listed])
    if len(listed) < len(usable):
        terminal.line(f"… and {len(usable) - len(listed)} more; to see them all: mlx-router models")
    if blind := [card.id for card in usable if card.blind]:
        names = ", ".join(blind[:SHOWN_PROBLEMS]) + ", …" * (len(blind) > SHOWN_PROBLEMS)
        terminal.line()
        terminal.item("Text only without mlx-vlm", f"{names}. Images: {INSTALL_VISION}.", indent=0)
    if unusable:
        terminal.line()
        terminal.line("Cannot be used:", style="yellow")
        for card in reasons:
            terminal.item(card.id, card.problem or "unknown reason")
    if len(reasons) < len(unusable):
        more = len(unusable) - len(reasons)
        terminal.line(f"  … and {more} more; to see them all: mlx-router models")
    if not usable:
        if unusable:
            terminal.line()
        for line in hint(settings):
            terminal.line(line)


def row(card: ModelCard) -> tuple[str, ...]:
    """A model's line of the table, as HEADERS has it."""
    return (
        card.id,
        card.kind.value,
        gigabytes(card.size_bytes),
        card.quantization or "-",
        tokens(card.context_length) if card.usable else "-",
        gigabytes(card.required_bytes) if card.usable else "-",
        "available" if card.usable else "unusable",
    )


def hint(settings: Settings) -> list[str]:
    """What to do where no model can be used."""
    folders = settings.defaults.model_directories()
    shown = [
        f"{short(folder)}{'' if folder.is_dir() else ' (does not exist)'}" for folder in folders
    ]
    model = "mlx-community/Qwen3-4B-Instruct-2507-4bit"
    return [
        f"No usable model in {', '.join(shown)}.",
        f"  add one:          hf download {model} --local-dir {short(folders[0] / model)}",
        "  look elsewhere:   mlx-router --model-dir DIR",
        "  try without one:  mlx-router --demo",
    ]


def short(path: Path) -> str:
    """The path with ~ for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def backend(engine: str) -> str:
    """The compute backend, without importing MLX (which takes seconds)."""
    if engine == "scripted":
        return "scripted: canned answers, no weights"
    if sys.platform == "darwin":
        return "MLX on Metal" if platform.machine() == "arm64" else "MLX (Intel: not supported)"
    for name, device in (("mlx-cuda-13", "CUDA"), ("mlx-cuda-12", "CUDA"), ("mlx-cuda", "CUDA")):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"MLX on {device}"
    return "MLX on CPU (slow: for trying out and tests)"
