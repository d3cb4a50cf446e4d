"""What is here of a model that cannot be used, and a new copy that takes its place."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

AGAIN = ".redownload"  # a model directory for what replaces a model once it is complete

_INCOMPLETE = re.compile(r"^the download is incomplete|\bis (missing|truncated|empty)\b")
_UNSUPPORTED = re.compile(r"\bdoes not support$|\bneed mlx-vlm\b|\bits own code\b")


def is_incomplete(problem: str) -> bool:
    """Whether a model's problem is that files are missing or truncated: fetching them helps."""
    return _INCOMPLETE.search(problem) is not None


def is_refused(problem: str) -> bool:
    """Whether the problem is not the files' own, so that the same ones would not help."""
    return _UNSUPPORTED.search(problem) is not None


def is_linked(folder: Path) -> bool:
    """Whether a model's folder is a link, or is made of links to the files of another program."""
    try:
        return folder.is_symlink() or any(entry.is_symlink() for entry in folder.iterdir())
    except OSError:
        return False


def put_in_place(new: Path, target: Path) -> None:
    """Let a folder take another one's place on the same disk. If the process is killed in between,
    the old one is beside it under a hidden name."""
    old = target.with_name(f".{target.name}.replaced")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.rename(target, old)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(new, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def replace_model(folder: Path, name: str) -> None:
    """Put a model that was fetched into AGAIN where it belongs in a model directory."""
    again = folder / AGAIN
    put_in_place(again / name, folder / name)
    if all(not file.is_file() or file.name.endswith(".lock") for file in again.rglob("*")):
        shutil.rmtree(again, ignore_errors=True)
