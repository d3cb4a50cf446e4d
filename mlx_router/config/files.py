"""Paths as people write them, and config files that are replaced as a whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mlx_router.errors import ConfigError


def read_text(path: Path) -> str:
    """The content of a text file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the file") from None


def expanded(path: str | Path) -> Path:
    """A path with its ``~`` or ``~user`` replaced. Raises ConfigError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise ConfigError(
            f"{path}: there is no user with a home folder for {user}; write the whole path"
        ) from None


def replace_text(path: Path, text: str) -> None:
    """Let a file hold that text, in one go, so that nobody reads half of it. A link stays one, and
    who may read the file stays as it was; a new one is for its owner alone. Raises OSError."""
    target = Path(os.path.realpath(path))
    temporary = text_beside(target, text)
    try:
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def text_beside(path: Path, text: str) -> Path:
    """A new file with that text in the folder of ``path``, readable by this user alone. Raises
    OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
