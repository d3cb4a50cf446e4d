"""The models of this machine, kept up to date."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_router.catalog.discovery import Location, discover
from mlx_router.catalog.folder import ModelFolder
from mlx_router.catalog.inspect import inspect_folder
from mlx_router.catalog.names import NameIndex
from mlx_router.catalog.supported import Supported
from mlx_router.domain import ModelCard, ModelKind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelOverride:
    """What the configuration says about one model; None: nothing said.

    ``path`` is the model's folder if it lies in no model directory; ``required_bytes`` replaces
    the estimate.
    """

    path: Path | None = None
    aliases: tuple[str, ...] = ()
    required_bytes: int | None = None
    context_length: int | None = None
    supports_tools: bool | None = None
    supports_vision: bool | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    """All that a refresh changes, replaced in one assignment: readers need no lock."""

    cards: tuple[ModelCard, ...] = ()
    index: NameIndex = field(default_factory=lambda: NameIndex((), {}))
    notes: tuple[str, ...] = ()


class Catalog:
    """What models there are, by name.

    :meth:`refresh` reads the disk and belongs on a CPU thread; :meth:`cards`, :meth:`resolve` and
    :attr:`notes` only look at what the last one found, and are safe on any thread.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        overrides: Mapping[str, ModelOverride] | None = None,
        *,
        libraries: Supported | None = None,
        fixed: Sequence[ModelCard] = (),
    ) -> None:
        """``directories`` in order of precedence; ``overrides`` by model id. ``libraries`` stands
        in for the architectures that are installed; ``fixed`` are models that are in no folder.
        Empty until the first refresh."""
        self._directories = tuple(directories)
        self._overrides = dict(overrides or {})
        self._libraries = libraries
        self._fixed = tuple(fixed)
        self._lock = threading.Lock()
        self._seen: dict[Location, tuple[object, ModelCard | None]] = {}
        self._state = _State()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over at the last refresh and why, a sentence each."""
        return self._state.notes

    def cards(self) -> list[ModelCard]:
        """All models, unusable ones included, by id."""
        return list(self._state.cards)

    def resolve(self, name: str) -> ModelCard:
        """The model that a request means: by id, alias or unique short name, in any case.

        Touches no file. Raises ModelNotFound, which names the nearest models. The card may be of
        a model that cannot be used: see its ``problem``.
        """
        return self._state.index.resolve(name)

    def refresh(self) -> bool:
        """Look at the disk again; returns whether anything changed.

        A model is read again only if its files have changed, so that a refresh of an unchanged
        directory costs a listing. Refreshes that come at once run one after the other.
        """
        with self._lock:
            discovery = discover(self._directories)
            locations = {location.id: location for location in discovery.locations}
            notes = list(discovery.notes)
            for model_id, override in self._overrides.items():
                if override.path is not None:
                    locations[model_id] = Location(model_id, override.path)
                    if not override.path.is_dir():
                        notes.append(f"{model_id}: the folder at its configured path is missing")
            seen = {location: self._look(location) for location in locations.values()}
            cards = [*self._fixed, *(card for _, card in seen.values() if card is not None)]
            cards.sort(key=lambda card: (card.id.casefold(), card.id))
            self._seen = seen
            if tuple(cards) == self._state.cards and tuple(notes) == self._state.notes:
                return False
            self._log_changes(cards, notes)
            aliases = {name: override.aliases for name, override in self._overrides.items()}
            self._state = _State(tuple(cards), NameIndex(cards, aliases), tuple(notes))
            return True

    def _look(self, location: Location) -> tuple[object, ModelCard | None]:
        """The folder's fingerprint and card; those of the last time if nothing has changed."""
        try:
            fingerprint = ModelFolder.scan(location.path).fingerprint
        except OSError:
            return (None, None)
        before = self._seen.get(location)
        if before is not None and before[0] == fingerprint:
            return before
        override = self._overrides.get(location.id, ModelOverride())
        card = inspect_folder(
            location.path,
            location.id,
            trust_remote_code=override.trust_remote_code,
            roots=self._directories,
            libraries=self._libraries,
        )
        return (fingerprint, _apply(override, card) if card is not None else None)

    def _log_changes(self, cards: list[ModelCard], notes: list[str]) -> None:
        before = {card.id: card for card in self._state.cards}
        for card in cards:
            if before.pop(card.id, None) == card:
                continue
            if card.problem is None:
                _log.info("found %s (%s)", card.id, card.kind.value)
            else:
                _log.warning("%s cannot be used: %s", card.id, card.problem)
        for model_id in before:
            _log.info("%s is gone", model_id)
        for note in notes:
            if note not in self._state.notes:
                _log.warning("%s", note)


def _apply(override: ModelOverride, card: ModelCard) -> ModelCard:
    kind = card.kind
    if override.supports_vision is not None and kind in (ModelKind.TEXT, ModelKind.VISION):
        kind = ModelKind.VISION if override.supports_vision else ModelKind.TEXT
    return replace(
        card,
        kind=kind,
        required_bytes=_given(override.required_bytes, card.required_bytes),
        context_length=_given(override.context_length, card.context_length),
        supports_tools=card.supports_tools
        if override.supports_tools is None
        else override.supports_tools,
    )


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
