"""One model from the Hugging Face Hub, as `mlx-router pull` fetches it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from _local import LocalModel

from mlx_router.cli.copies import AGAIN, replace_model
from mlx_router.cli.pull import explained
from mlx_router.cli.pull import fetch as fetch_with_progress
from mlx_router.domain import GIB
from mlx_router.downloads import Job, Rules, is_repository_name
from mlx_router.errors import (
    ConfigError,
    ModelCorrupt,
    ModelNotFound,
    PermissionDenied,
    RouterError,
)

if TYPE_CHECKING:
    from mlx_router.downloads.transfer import Transfer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """What to download. ``with_code``: Python code that ships with the model as well."""

    name: str
    folder: Path
    with_code: bool = False


def check_name(name: str) -> None:
    """Raises ConfigError if the Hub can have no model of that name."""
    if not is_repository_name(name):
        raise ConfigError(
            f"{name!r} can be no model of the Hugging Face Hub: write it as org/name, like "
            "mlx-community/Qwen3-4B-Instruct-2507-4bit; `list` has some"
        )


def plan(order: Order, before: LocalModel) -> Sequence[Transfer]:
    """The files that a download has; nothing is fetched. Raises RouterError."""
    job = _job(order, _place(order, before))
    return _explained(order, job.plan)


def fetch(order: Order, before: LocalModel) -> None:
    """Download a model, or what is missing of it. A folder that is there already is replaced, once
    all is here. Raises RouterError and, after Ctrl+C, KeyboardInterrupt; what is here by then is
    kept, and the next call goes on from there."""
    place = _place(order, before)
    job = _job(order, place)
    if not _explained(order, partial(fetch_with_progress, job)):
        raise KeyboardInterrupt
    if place != order.folder:
        replace_model(order.folder, order.name)


def _place(order: Order, before: LocalModel) -> Path:
    """The model directory to fetch into: a hidden one for what replaces a folder."""
    if before.path is None:
        return order.folder
    target = order.folder / order.name
    if before.path != target or target.is_symlink():
        raise RouterError(
            f"{order.name} is not downloaded: it is at {before.path} already, as a link or in "
            "another layout. Remove that first (`remove`)."
        )
    return order.folder / AGAIN


def _job(order: Order, place: Path) -> Job:
    rules = Rules(
        allowed=True,
        folder=place,
        trust_remote_code=order.with_code,
        check_memory=lambda weight_bytes: _warn_of_memory(order.name, weight_bytes),
    )
    return Job(order.name, rules, threading.Semaphore(), lambda _: 0)


def _explained(order: Order, work: Callable[[], T]) -> T:
    """What the work gives; its errors say how to log in where that may help."""
    try:
        return explained(work, order.name)
    except (PermissionDenied, ModelNotFound) as error:
        raise type(error)(f"{error.message}\n{how_to_log_in(order.name)}") from None
    except ModelCorrupt as error:
        if order.with_code or "its own code" not in error.message:
            raise
        raise ModelCorrupt(
            f"{error.message}\nTo fetch it all the same, with its code: --trust-remote-code"
        ) from None


def how_to_log_in(name: str) -> str:
    return (
        f"To log in: open https://huggingface.co/{name} in a browser and accept its licence, if it "
        "asks for that;\nmake a token of type Read at https://huggingface.co/settings/tokens; then "
        "run `uv run hf auth login`, or set HF_TOKEN."
    )


def _warn_of_memory(name: str, weight_bytes: int) -> None:
    """A model may be fetched for another machine, so this is no error."""
    from mlx_router.memory.probe import SystemProbe

    total = SystemProbe().snapshot().total
    if weight_bytes > total:
        print(
            f"{name} has {weight_bytes / GIB:.1f} GB of weights, and this machine "
            f"{total / GIB:.1f} GB of memory: it will not run here.",
            file=sys.stderr,
        )
