"""Where other programs keep the models that they download."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mlx_router.catalog.folder import read_regular

_MAX_SETTINGS_BYTES = 1_000_000


def hugging_face_cache(environ: Mapping[str, str], home: Path) -> Path:
    """The cache of the Hugging Face client, as its environment variables say; it may not exist."""
    for name, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := environ.get(name):
            return Path(os.path.expandvars(value)).expanduser() / below
    return home / ".cache" / "huggingface" / "hub"


def lm_studio_folders(home: Path) -> list[Path]:
    """LM Studio's model folders: the one chosen in its settings, and the usual ones that exist.

    Reads small files, and never raises for what it finds in them.
    """
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    if (elsewhere := _absolute(_read(home / ".lmstudio-home-pointer"))) is not None:
        homes.insert(0, elsewhere)
    folders = []
    for place in homes:
        if (chosen := _absolute(_downloads_folder(place / "settings.json"))) is not None:
            folders.append(chosen)
        folders.append(place / "models")
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)] or [folders[0]]


def _downloads_folder(settings: Path) -> str:
    try:
        value = json.loads(_read(settings))["downloadsFolder"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return value if isinstance(value, str) else ""


def _absolute(text: str) -> Path | None:
    """The path that a file names in its first line, if it names one."""
    line = text.strip().partition("\n")[0].strip()
    return Path(line) if line.startswith("/") and line.isprintable() else None


def _read(path: Path) -> str:
    """A small text file; empty if there is none that can be read."""
    try:
        return read_regular(path, _MAX_SETTINGS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
