"""What the downloader shows: suggestions, models that are here, and what to do next."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _local import LocalModel, local_models
from _suggestions import SUGGESTIONS

from mlx_router.cli.parser import EXIT_OK
from mlx_router.cli.terminal import Terminal, gigabytes, print_json
from mlx_router.errors import ConfigError

PROGRAM = "mlx_downloader.py"
# Words of problems with the files themselves, which the Hub has whole.
_DAMAGED = re.compile(
    r"is damaged|is not valid JSON|not a safetensors file|web page|Git LFS pointer"
)
_UNSUPPORTED = re.compile(r"which the installed (\S+) does not support")


def numbered_models(folders: Sequence[Path]) -> list[LocalModel]:
    """The suggestions, then what else is here."""
    here = local_models(folders)
    suggested = [here.get(each.id, LocalModel(each.id)) for each in SUGGESTIONS]
    names = {each.id for each in SUGGESTIONS}
    return suggested + [model for name, model in here.items() if name not in names]


def resolve(word: str, folders: Sequence[Path], commands: Sequence[str]) -> str:
    """The id that a number, an id or a short name means. ``commands`` are what else a word may have
    been meant to be. Raises ConfigError."""
    numbered = numbered_models(folders)
    if word.isdecimal() and len(word) < 6:
        if not 1 <= int(word) <= len(numbered):
            raise ConfigError(f"there is no number {word}: `list` has 1 to {len(numbered)}")
        return numbered[int(word) - 1].id
    known = {model.id.casefold(): model.id for model in numbered}
    if word.casefold() in known:
        return known[word.casefold()]
    if "/" in word:
        return word
    short = [
        name for name in known.values() if name.rsplit("/", 1)[-1].casefold() == word.casefold()
    ]
    if len(short) > 1:
        raise ConfigError(f"{word!r} may be {' or '.join(sorted(short))}: name it in full")
    if not short:
        near = difflib.get_close_matches(
            word.casefold(), [*commands, *(n.rsplit("/", 1)[-1] for n in known)], n=1, cutoff=0.6
        )
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{word!r} is neither a command nor a model that is known here: {meant}Write a model "
            "of the Hub as org/name; `list` has some"
        )
    return short[0]


def local_model(name: str, folders: Sequence[Path]) -> LocalModel:
    return local_models(folders).get(name, LocalModel(name))


def show_list(folders: Sequence[Path], *, as_json: bool) -> int:
    suggested = {each.id: each for each in SUGGESTIONS}
    numbered = numbered_models(folders)
    if as_json:
        entries = []
        for number, model in enumerate(numbered, 1):
            entry = {"number": number, **_entry(model), "suggested": model.id in suggested}
            if (about := suggested.get(model.id)) is not None:
                entry["approximate_gb"] = about.gigabytes
                entry["machine_memory_gb"] = about.memory_gb
                entry["good_for"] = about.good_for
            entries.append(entry)
        print_json({"model_directories": [str(folder) for folder in folders], "models": entries})
        return EXIT_OK
    terminal, rows = Terminal(), []
    for number, model in enumerate(numbered, 1):
        about = suggested.get(model.id)
        size = (
            gigabytes(model.size_bytes)
            if model.path
            else f"~{about.gigabytes} GB"
            if about
            else "-"
        )
        machine = f"{about.memory_gb} GB" if about else "-"
        rows.append(
            (model.id, str(number), model.state, size, machine, about.good_for if about else "")
        )
    headers = ("model", "no.", "state", "size", "machine", "good for")
    terminal.table(headers, rows, optional=2)
    terminal.line()
    terminal.line(
        "Sizes with ~ are approximate, as is the memory of a machine that a model suits (in a wide "
        f"terminal, or with --json). Download one by its number: {PROGRAM} 4"
    )
    terminal.line(f"model directory: {', '.join(map(str, folders))}")
    return EXIT_OK


def show_status(folders: Sequence[Path], name: str | None, *, as_json: bool) -> int:
    if name is not None:
        model = local_model(name, folders)
        if as_json:
            print_json(_entry(model))
        else:
            _describe(model, Terminal())
        return EXIT_OK
    models = list(local_models(folders).values())
    if as_json:
        shown = [_entry(model) for model in models]
        print_json({"model_directories": [str(folder) for folder in folders], "models": shown})
        return EXIT_OK
    terminal = Terminal()
    rows = [(model.id, model.state, gigabytes(model.size_bytes)) for model in models]
    if rows:
        terminal.table(("model", "state", "size"), rows)
        terminal.line()
    complete = sum(model.state == "complete" for model in models)
    terminal.line(
        f"{complete} complete of {len(models)}, {gigabytes(sum(m.size_bytes for m in models))} in "
        f"{', '.join(map(str, folders))}"
    )
    for model in models:
        if model.problem is not None:
            terminal.item(model.id, f"{model.problem}. {advice(model)}".rstrip())
    return EXIT_OK


def _entry(model: LocalModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "state": model.state.value,
        "path": str(model.path) if model.path else None,
        "size_bytes": model.size_bytes,
        "problem": model.problem,
    }


def _describe(model: LocalModel, terminal: Terminal) -> None:
    terminal.line(f"{model.id}: {model.state}", style="bold")
    if model.path is not None:
        terminal.line(f"  folder   {model.path}")
    if model.size_bytes:
        terminal.line(f"  size     {gigabytes(model.size_bytes)}")
    if model.card is not None and model.card.usable:
        card = model.card
        told = [card.kind.value, card.architecture, card.quantization or ""]
        terminal.line(f"  kind     {', '.join(filter(None, told))}")
        terminal.line(f"  needs    {gigabytes(card.required_bytes)} of memory")
    if model.problem is not None:
        terminal.line(f"  problem  {model.problem}")
    if next_step := advice(model):
        terminal.line(f"  next     {next_step}")


def advice(model: LocalModel) -> str:
    """What to do next; empty if there is nothing to do, or if the problem says it. Only files that
    are missing or damaged are worth another download."""
    if model.state == "not_downloaded":
        return f"Download it: {PROGRAM} {model.id}"
    problem = model.problem or ""
    if library := _UNSUPPORTED.search(problem):
        return (
            f"Another download does not help: update {library[1]} (git pull, uv sync), or take "
            "another model."
        )
    unfinished = model.state == "incomplete"
    if not unfinished and not _DAMAGED.search(problem):
        return ""
    if model.path is not None and model.path.parent.name == "snapshots":
        return f"It lies in a Hugging Face cache: uv run hf download {model.id}"
    if model.path is not None and (place := _links_to(model.path)) is not None:
        return f"It is linked here, and left alone: put it right where it lies, in {place}"
    if unfinished:
        return f"Go on: {PROGRAM} {model.id}; or delete what is here: {PROGRAM} clean {model.id}"
    return f"Fetch it anew: {PROGRAM} {model.id} --force-redownload"


def _links_to(folder: Path) -> Path | None:
    """Where a model lies that is linked here, as a folder or file by file; None if it lies here."""
    if folder.is_symlink() or folder.parent.is_symlink():
        return Path(os.path.realpath(folder))
    for file in sorted(folder.iterdir()):
        if file.is_symlink():
            return Path(os.path.realpath(file)).parent
    return None
