"""What may be a repository's name, and which of its files a model needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_router.catalog.names import is_model_name

# The Hub's rules, so that no name is asked for that it cannot have, nor any that leaves a folder.
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MAX_REPOSITORY_NAME = 96

_SETTINGS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_CODE = ".py"
_TOP_LEVEL = re.compile(r"\w[\w.-]*", re.ASCII)
# An embedding model's steps after the model proper: its pooling, and dense layers with weights.
_STEP = re.compile(r"\d+_\w+/(config\.json|\w[\w.-]*\.safetensors)", re.ASCII)


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository, ``name`` with its folder. ``size`` in bytes; ``sha256`` is known of
    large files, ``git_sha1`` (of the content with git's header before it) of the others."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def is_weights(self) -> bool:
        return self.name.endswith(".safetensors")


def is_repository_name(name: str) -> bool:
    """Whether a model's name can be one of a repository: ``org/name``."""
    return (
        is_model_name(name)
        and len(name) <= _MAX_REPOSITORY_NAME
        and _REPOSITORY.fullmatch(name) is not None
        and not any(part.endswith((".", "-", ".git")) for part in name.split("/"))
        and "--" not in name
    )


def needed(files: Iterable[RepoFile], *, with_code: bool) -> list[RepoFile]:
    """The files that a model is loaded from: weights in safetensors, settings and tokenizer, and
    Python code only ``with_code``. No weights among them: there are none that MLX can load.

    A name that is not a plain one is left out: it would be a path on this machine. Of names that
    differ in case alone, which are one file on many disks, the one in lower case is taken.
    """
    suffixes = (*_SETTINGS, _CODE) if with_code else _SETTINGS
    one_each = {file.name.casefold(): file for file in sorted(files, key=lambda file: file.name)}
    top = [file for file in one_each.values() if _TOP_LEVEL.fullmatch(file.name)]
    steps = [file for file in one_each.values() if _STEP.fullmatch(file.name)]
    weights = [file for file in top if file.is_weights and not file.name.startswith("adapter")]
    if not weights:  # those of a step are no model
        steps = [file for file in steps if not file.is_weights]
    # Some repositories have the same weights a second time under other names.
    weights = [file for file in weights if file.name.startswith("model")] or weights
    return steps + [file for file in top if file.name.endswith(suffixes)] + weights
