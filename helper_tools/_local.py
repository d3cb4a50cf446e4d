"""What is on this machine of a model: all of it, some of it, or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from _common import catalog_of

from mlx_router.catalog.folder import is_partial
from mlx_router.cli.copies import AGAIN, is_incomplete
from mlx_router.domain import ModelCard
from mlx_router.errors import RouterError

STAGING = ".downloads"  # where mlx_router.downloads puts what is not complete

_STAGED = re.compile(r"(?P<org>[^/]+?)--(?P<name>[^/]+)")


class State(StrEnum):
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    NOT_DOWNLOADED = "not_downloaded"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """``size_bytes`` of what is here, ``staged`` folders of unfinished downloads included.
    ``problem`` says why it cannot be used; None if it can, or if nothing is here."""

    id: str
    state: State = State.NOT_DOWNLOADED
    path: Path | None = None
    size_bytes: int = 0
    problem: str | None = None
    card: ModelCard | None = None
    staged: tuple[Path, ...] = ()


def local_models(folders: Sequence[Path]) -> dict[str, LocalModel]:
    """All models of which something is in these folders, by id. Reads headers only."""
    found = {card.id: _of(card) for card in catalog_of(folders).cards()}
    for name, places in _staged(folders).items():
        fetched = sum(map(size_of, places))
        before = found.get(name)
        if before is None or before.path is None:
            what = "the download is not finished"
            found[name] = LocalModel(
                name, State.INCOMPLETE, size_bytes=fetched, problem=what, staged=places
            )
        else:
            found[name] = LocalModel(
                name,
                before.state,
                before.path,
                before.size_bytes + fetched,
                before.problem,
                before.card,
                places,
            )
    return dict(sorted(found.items(), key=lambda item: item[0].casefold()))


def _of(card: ModelCard) -> LocalModel:
    if card.problem is None:
        state = State.COMPLETE
    else:
        state = State.INCOMPLETE if is_incomplete(card.problem) else State.ERROR
    return LocalModel(card.id, state, card.path, card.size_bytes, card.problem, card)


def _staged(folders: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Folders of unfinished downloads, by model id."""
    found: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        for place in (folder / STAGING, folder / AGAIN / STAGING):
            if not place.is_dir():
                continue
            for entry in sorted(place.iterdir()):
                named = _STAGED.fullmatch(entry.name)
                if named and entry.is_dir() and not entry.is_symlink():
                    name = f"{named['org']}/{named['name']}"
                    found[name] = (*found.get(name, ()), entry)
    return found


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; links count as nothing."""
    return sum(
        file.lstat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    )


def unfinished_files(model: LocalModel) -> list[Path]:
    """What downloads, of any program, have left half done in a model's own folder."""
    if model.path is None or model.path.is_symlink():
        return []
    return sorted(
        file
        for place in (model.path, model.path / ".cache" / "huggingface" / "download")
        if place.is_dir()
        for file in place.iterdir()
        if is_partial(file.name) and file.is_file()
    )


def delete_staged(place: Path) -> None:
    """Delete an unfinished download. Raises RouterError if a process is at work on it."""
    with _alone(place):
        shutil.rmtree(place)
    _remove_empty(place.parent)


def _remove_empty(folder: Path) -> None:
    """Remove a staging folder in which nothing but lock files is left."""
    if any(not entry.name.endswith(".lock") for entry in folder.iterdir()):
        return
    shutil.rmtree(folder)
    if folder.parent.name == AGAIN and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    from mlx_router.downloads import hub

    lock = place.with_name(place.name + ".lock")
    locked = hub.utils().WeakFileLock(lock, timeout=0.1)
    try:
        locked.__enter__()
    except TimeoutError:
        raise RouterError(
            f"{place.name.replace('--', '/', 1)} is being downloaded by another process: stop it "
            "first, or let it finish."
        ) from None
    try:
        yield
    finally:
        locked.__exit__(None, None, None)


def delete_model(model: LocalModel, folders: Sequence[Path]) -> None:
    """Delete a model's folder, or the link to it, and what was being downloaded of it.

    Raises RouterError if it lies in a Hugging Face cache, whose files other models may share.
    """
    for place in model.staged:
        delete_staged(place)
    if model.path is None:
        return
    check_removable(model, folders)
    if model.path.is_symlink():
        model.path.unlink()
    else:
        shutil.rmtree(model.path)
    parent = model.path.parent
    if parent not in folders and not any(parent.iterdir()):
        parent.rmdir()


def check_removable(model: LocalModel, folders: Sequence[Path]) -> None:
    """Raises RouterError for a model that is not a folder of its own in a model directory."""
    path = model.path
    if path is None:
        return
    if path.parent.name == "snapshots":
        raise RouterError(
            f"{model.id} lies in a Hugging Face cache, whose files may be shared: use "
            f"`uv run hf cache rm model/{model.id}`."
        )
    if not any(path.parent == folder or path.parent.parent == folder for folder in folders):
        raise RouterError(f"{model.id} is in no model directory: remove {path} by hand.")
