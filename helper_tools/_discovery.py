"""From a model's files to an entry of config.json, by reading alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _common import catalog_of
from _families import family_of, template_format
from pydantic import ValidationError

from mlx_router.catalog.folder import ModelFolder, Problem
from mlx_router.catalog.inspect import inspect_folder, template_source
from mlx_router.catalog.names import is_model_name
from mlx_router.config.files import expanded
from mlx_router.config.settings import DefaultSettings, ModelSettings
from mlx_router.domain import GIB, ModelCard, ModelKind
from mlx_router.errors import ConfigError, RouterError
from mlx_router.memory.policy import TokenLimits

REASONING_TOKENS = 2  # times the usual max_tokens: the thoughts count as well

# Name in generation_config.json -> name in a config entry.
_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model. ``in_directory``: it lies in a model directory, and needs no ``path`` in the
    config."""

    card: ModelCard
    in_directory: bool


@dataclass(frozen=True, slots=True)
class Discovered:
    """``template`` is the format of the model's own chat template, None without one;
    ``sampling_source`` says who recommends ``sampling``. Sizes in bytes, lengths in tokens.
    ``required_source`` is ``estimated`` or ``measured``. ``entry`` is for config.json."""

    model: str
    path: str
    kind: str
    family: str
    architecture: str
    parameters: int
    quantization: str | None
    size_bytes: int
    context_length: int
    template: str | None
    sampling: Mapping[str, Any]
    sampling_source: str
    supports_tools: bool
    supports_vision: bool
    supports_reasoning: bool
    kv_bytes_per_token: int
    required_bytes: int
    required_source: str
    entry: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find(name: str, folders: Sequence[Path]) -> Subject:
    """The model at a path, or of that id in the model directories. Raises ModelNotFound,
    ConfigError, and RouterError for a model that cannot be used."""
    catalog = catalog_of(folders)
    path = expanded(name)
    if path.is_dir():
        path = path.resolve()
        for card in catalog.cards():
            if card.path.resolve() == path:
                return _usable(Subject(card, in_directory=True))
        if not is_model_name(path.name):
            raise ConfigError(f"{path.name!r} cannot be a model's name: rename the folder")
        found = inspect_folder(path, path.name, roots=folders)
        if found is not None:
            return _usable(Subject(found, in_directory=False))
    if name.startswith(("/", "~", ".")):
        raise ConfigError(f"{path} is no model's folder: it has neither config.json nor weights")
    return _usable(Subject(catalog.resolve(name), in_directory=True))


def _usable(subject: Subject) -> Subject:
    card = subject.card
    if card.problem is None:
        return subject
    if "its own code" in card.problem:
        raise RouterError(
            f"{card.id} needs a decision of yours: {card.problem}.\nNothing of it was run. Read "
            "its Python files and know its author first; other conversions of the same model "
            "often need no code."
        )
    raise RouterError(f"{card.id} cannot be used: {card.problem}.")


def discover(subject: Subject, measured: Mapping[str, Any] | None = None) -> Discovered:
    """What a model's files tell; ``measured`` is what :func:`_common.load_in_process` told.
    Raises RouterError if they cannot be read."""
    card = subject.card
    try:
        folder = ModelFolder.scan(card.path)
        tokenizer_config = folder.read_json("tokenizer_config.json") or {}
        advice = folder.read_json("generation_config.json") or {}
    except Problem as problem:
        raise RouterError(f"{card.id} cannot be used: {problem}.") from None
    source = template_source(folder, tokenizer_config)
    sampling, whose = sampling_of(card, advice)
    required = card.required_bytes if measured is None else measured["required_bytes"]
    return Discovered(
        model=card.id,
        path=str(card.path),
        kind=card.kind.value,
        family=family_of(card.architecture).name,
        architecture=card.architecture,
        parameters=card.parameters,
        quantization=card.quantization,
        size_bytes=card.size_bytes,
        context_length=card.context_length,
        template=template_format(source) if source else None,
        sampling=sampling,
        sampling_source=whose,
        supports_tools=card.supports_tools,
        supports_vision=card.supports_vision,
        supports_reasoning=card.supports_reasoning,
        kv_bytes_per_token=card.kv_bytes_per_token,
        required_bytes=required,
        required_source="estimated" if measured is None else "measured",
        entry=entry_for(subject, sampling, required, has_template=bool(source)),
    )


def sampling_of(card: ModelCard, advice: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Sampling as a config entry has it, and who recommends it. ``advice`` is the content of
    generation_config.json; what makes no sense in it is left out."""
    if card.kind not in (ModelKind.TEXT, ModelKind.VISION):
        return {}, "none: it writes no text"
    own = {entry: advice[name] for name, entry in _SAMPLING.items() if name in advice}
    if advice.get("do_sample") is False:
        own["temp"] = 0.0
    own = {name: value for name, value in own.items() if _is_allowed(name, value)}
    if own:
        return own, "generation_config.json"
    family = family_of(card.architecture)
    known = (card.supports_reasoning and family.thinking) or family.sampling
    if known:
        return dict(known), f"the makers of {family.name}"
    return {}, "none: the router's own defaults hold"


def _is_allowed(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        ModelSettings.model_validate({name: value})
    except ValidationError:
        return False
    return True


def entry_for(
    subject: Subject, sampling: Mapping[str, Any], required_bytes: int, *, has_template: bool
) -> dict[str, Any]:
    """The model's entry under ``models`` of config.json."""
    card = subject.card
    entry: dict[str, Any] = {} if subject.in_directory else {"path": str(card.path)}
    entry["required_memory_gb"] = max(math.ceil(10 * required_bytes / GIB), 1) / 10
    if card.kind not in (ModelKind.TEXT, ModelKind.VISION):
        return entry
    usual: int = DefaultSettings.model_fields["max_tokens"].default
    most = min(card.context_length, usual * (REASONING_TOKENS if card.supports_reasoning else 1))
    # Halves, as in the examples of MEMORY_PRESSURE.md: short answers under pressure, none refused.
    limits = TokenLimits(most, *(max(most // share, 1) for share in (2, 4, 8)))
    entry |= {"max_tokens": most, **sampling}
    if not has_template:
        entry["chat_template"] = family_of(card.architecture).template
    if card.supports_reasoning:
        entry["reasoning_response"] = "enable"
    entry["supports_tools"] = card.supports_tools
    entry["supports_vision"] = card.supports_vision
    entry["memory_pressure_max_tokens"] = asdict(limits)
    return entry
