"""The models of this machine, kept up to date."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_router.catalog.discovery import Discovery, Location, discover
from mlx_router.catalog.folder import ModelFolder, is_absent
from mlx_router.catalog.inspect import inspect_folder
from mlx_router.catalog.names import NameIndex
from mlx_router.catalog.observed import ObservedModels
from mlx_router.catalog.supported import Supported
from mlx_router.catalog.watch import Watch, stamp
from mlx_router.catalog.working import PREFILL_TOKENS
from mlx_router.domain import ModelCard, ModelKind

_log = logging.getLogger(__name__)

# How long a file that was rewritten in place, in a folder that did not change, may go unnoticed.
FULL_LOOK_SECONDS = 30.0
# A download that has not written anything for so long is not growing any more.
GROWING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ModelOverride:
    """What the configuration says about one model; None: nothing said.

    ``path`` is the model's folder if it lies in no model directory; ``required_bytes`` replaces
    the estimate. ``adapter`` names what is loaded on top of the model.
    """

    path: Path | None = None
    aliases: tuple[str, ...] = ()
    required_bytes: int | None = None
    context_length: int | None = None
    supports_tools: bool | None = None
    supports_vision: bool | None = None
    trust_remote_code: bool = False
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class _State:
    """All that a refresh changes, replaced in one assignment: readers need no lock."""

    cards: tuple[ModelCard, ...] = ()
    index: NameIndex = field(default_factory=lambda: NameIndex((), {}))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A folder as it was at the last look. ``grew``: when it last changed while it could not be
    used, on the catalog's clock; None if it never did."""

    fingerprint: object = None
    card: ModelCard | None = None
    grew: float | None = None
    growing: bool = False

    @property
    def settled(self) -> bool:
        """Whether only a change of the folder can make a difference."""
        return self.card is None or self.card.usable


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
        link_roots: Sequence[Path] = (),
        libraries: Supported | None = None,
        fixed: Sequence[ModelCard] = (),
        observed: ObservedModels | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``directories`` in order of precedence; ``overrides`` by model id. ``link_roots`` are
        further folders into which links in model folders may point. ``libraries`` stands in for
        the architectures that are installed; ``fixed`` are models that are in no folder.
        ``observed`` corrects estimates, which are made for ``prefill_tokens`` of a prompt computed
        at a time. Empty until the first refresh."""
        self.observed = observed
        self._prefill_tokens = prefill_tokens
        self._directories = tuple(dict.fromkeys(directories))
        # In any case, as everywhere.
        self._overrides = {name.casefold(): (name, o) for name, o in (overrides or {}).items()}
        self._link_roots = (*self._directories, *link_roots)
        self._libraries = libraries
        self._fixed = tuple(fixed)
        self._clock = clock
        self._lock = threading.Lock()
        self._watch = Watch()
        self._looked: float | None = None
        self._discovery = Discovery()
        self._seen: dict[tuple[str, Path], _Seen] = {}
        self._unread = False  # whether one of them could not be read at the last look
        self._held: frozenset[str] = frozenset()
        self._kept: set[str] = set()  # those of them whose folders have changed
        self._state = _State()
        self._indexed = False  # whether the state's names are by these overrides
        self._reported = False

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

    def follow(self, before: Catalog) -> None:
        """Take the place of another catalog: what it found is no news, and what it held is held.
        Call it before the first refresh."""
        self._state, self._reported = before._state, True
        self._held, self._kept = before._held, before._kept

    def hold(self, model_ids: Iterable[str]) -> None:
        """From the next refresh on these models, which are in memory, stay as they are, whether
        their folders are removed or replaced."""
        self._held = frozenset(model_ids)

    def refresh(self) -> bool:
        """Look at the disk again; returns whether anything changed.

        Where nothing has changed it costs a stat per folder, and a listing of the models that
        cannot be used, whose files may be growing. A folder that has changed is listed, a model
        whose files have changed is read. Every :data:`FULL_LOOK_SECONDS` all of them are listed;
        at once again after a look at which something could not be read for the moment, of which
        what was known stays.
        Refreshes that come at once run one after the other.
        """
        with self._lock:
            now = self._clock()
            full = self._looked is None or now - self._looked >= FULL_LOOK_SECONDS
            moved = self._watch.moved(now)
            if full or moved:
                self._discovery = self._discover()
            if full:
                self._looked = now
                moved.update(self._discovery.watched)
            notes = list(self._discovery.notes)
            before, self._seen, self._unread = self._seen, {}, False
            found = {card.id: card for card in self._fixed}
            for location in self._discovery.locations:
                card = self._card(location, before, moved, now, notes)
                if card is not None:
                    found[card.id] = self._calibrated(card)
            if self._discovery.unread or self._unread:
                self._looked = None
            self._keep(found)
            return self._update(found, notes)

    def _discover(self) -> Discovery:
        """Walk the directories, and watch what was walked."""
        discovery = discover(self._directories)
        locations = {location.id: location for location in discovery.locations}
        watched = dict(discovery.watched)
        unread = tuple(os.path.join(path, "") for path in discovery.unread)
        for known in self._discovery.locations:
            if os.path.join(known.path, "").startswith(unread):
                locations[known.id] = known
        for model_id, override in self._overrides.values():
            if override.path is not None:
                locations[model_id] = Location(model_id, override.path)
                watched[str(override.path)] = stamp(str(override.path))
        self._watch.seen(watched, self._clock())
        return replace(discovery, locations=tuple(locations.values()), watched=watched)

    def _card(
        self,
        location: Location,
        before: Mapping[tuple[str, Path], _Seen],
        moved: Collection[str],
        now: float,
        notes: list[str],
    ) -> ModelCard | None:
        """The model at a location: in its folder, else in the first of the others that can be
        used."""
        best: ModelCard | None = None
        for path in (location.path, *location.others):
            key = (location.id, path)
            seen = before.get(key, _Seen())
            if key not in before or not seen.settled or str(path) in moved:
                try:
                    seen = self._look(location.id, path, seen, now)
                except OSError as error:
                    self._unread = True
                    reason = error.strerror or "unreadable"
                    notes.append(f"{location.id}: {reason}; what was known of it stays")
                    if key not in before:
                        continue
            self._seen[key] = seen
            if seen.card is not None and seen.card.usable:
                if best is not None:
                    notes.append(
                        f"{best.id}: revision {best.path.name[:8]} cannot be used, so "
                        f"{path.name[:8]} is served ({best.problem})"
                    )
                return seen.card
            best = best or seen.card
        if best is None and self._override(location.id).path is not None:
            what = "is no model" if os.path.isdir(location.path) else "is missing"
            notes.append(f"{location.id}: the folder at its configured path {what}")
        return best

    def _look(self, model_id: str, path: Path, before: _Seen, now: float) -> _Seen:
        """What a folder holds; it is read only if its files have changed. Raises OSError if that
        cannot be told for the moment."""
        try:
            folder = ModelFolder.scan(path)
        except OSError as error:
            if not is_absent(error):
                raise
            return _Seen()
        fingerprint = folder.fingerprint
        changed = before.fingerprint != fingerprint
        grew = before.grew
        if before.settled:
            grew = None
        elif changed:
            grew = now
        growing = grew is not None and now - grew < GROWING_SECONDS
        if not changed and growing == before.growing:
            return before
        card = self._inspect(model_id, replace(folder, growing=growing))
        return _Seen(fingerprint, card, grew, growing)

    def _inspect(self, model_id: str, folder: ModelFolder) -> ModelCard | None:
        override = self._override(model_id)
        try:
            card = inspect_folder(
                folder.path,
                model_id,
                trust_remote_code=override.trust_remote_code,
                roots=self._link_roots,
                libraries=self._libraries,
                folder=folder,
                stated_context=override.context_length,
                prefill_tokens=self._prefill_tokens,
            )
        except OSError:
            raise
        except Exception:  # a fault of ours: it must not cost the other models
            _log.exception("%s could not be inspected, and is left out", model_id)
            return None
        return _apply(override, card) if card is not None else None

    def _override(self, model_id: str) -> ModelOverride:
        return self._overrides.get(model_id.casefold(), (model_id, ModelOverride()))[1]

    def _calibrated(self, card: ModelCard) -> ModelCard:
        """The card with what was observed, unless the config says what it takes."""
        known = self.observed.get(card) if self.observed is not None else None
        given = self._override(card.id).required_bytes is not None
        if known is None or known.memory is None or given:
            return card
        return known.memory.correct(card)

    def _keep(self, found: dict[str, ModelCard]) -> None:
        """Leave the models that are held as they were."""
        kept = set()
        for card in self._state.cards:
            if card.id in self._held and not _same_model(card, found.get(card.id)):
                found[card.id] = card
                kept.add(card.id)
                if card.id not in self._kept:
                    _log.info("%s has changed; what is loaded is served on", card.id)
        self._kept = kept

    def _update(self, found: Mapping[str, ModelCard], notes: list[str]) -> bool:
        cards = tuple(sorted(found.values(), key=lambda card: (card.id.casefold(), card.id)))
        ids = {card.id.casefold(): card.id for card in cards}
        aliases = {
            ids[folded]: override.aliases
            for folded, (_, override) in self._overrides.items()
            if folded in ids
        }
        notes += [
            f"{alias} is an alias of {model_id} and the id of another model; the id comes first"
            for model_id, names in aliases.items()
            for alias in names
            if ids.get(alias.casefold(), model_id) != model_id
        ]
        same = cards == self._state.cards and tuple(notes) == self._state.notes
        if same and self._indexed:
            return False
        self._indexed = True
        self._log_changes(cards, notes)
        self._state = _State(cards, NameIndex(cards, aliases), tuple(notes))
        return True

    def _log_changes(self, cards: Collection[ModelCard], notes: Iterable[str]) -> None:
        before = {card.id: card for card in self._state.cards}
        if not self._reported:  # a line a model would be too much, and all of them are news
            self._reported = True
            usable = sum(card.usable for card in cards)
            _log.info("models found: %d; cannot be used: %d", usable, len(cards) - usable)
            before = {card.id: card for card in cards}
        for card in cards:
            old = before.pop(card.id, None)
            if old is not None and (_same_model(old, card) or _as_before(old, card)):
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


def _same_model(old: ModelCard, new: ModelCard | None) -> bool:
    """Whether nothing is new but what the model was observed to take."""
    if new is None:
        return False
    cache, required = old.cache_bytes, old.required_bytes
    return replace(new, cache_bytes=cache, required_bytes=required) == old


def _as_before(old: ModelCard, new: ModelCard) -> bool:
    """Whether a model is as unusable as it was, but for the number of bytes that are missing."""
    return bool(old.problem and new.problem) and _steady(old.problem) == _steady(new.problem)


def _steady(problem: str | None) -> str:
    return re.sub(r"[\d,]+", "", problem or "")


def _apply(override: ModelOverride, card: ModelCard) -> ModelCard:
    kind = card.kind
    if override.supports_vision is not None and kind in (ModelKind.TEXT, ModelKind.VISION):
        kind = ModelKind.VISION if override.supports_vision else ModelKind.TEXT
    fingerprint = card.fingerprint
    if fingerprint and (override.adapter or override.context_length):
        # What was observed of the model alone, or at another length, does not hold.
        how = repr((fingerprint, override.adapter, override.context_length))
        fingerprint = hashlib.sha256(how.encode()).hexdigest()[:16]
    return replace(
        card,
        kind=kind,
        fingerprint=fingerprint,
        required_bytes=_given(override.required_bytes, card.required_bytes),
        supports_tools=card.supports_tools
        if override.supports_tools is None
        else override.supports_tools,
    )


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
