"""From the name in a request to a model: a look-up, never a path."""

from __future__ import annotations

import difflib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from mlx_router.domain import ModelCard
from mlx_router.errors import ModelNotFound

MAX_NAME_LENGTH = 256
_SUGGESTIONS = 3
# Comparing two names at length costs a tenth of a millisecond, so only these are: the ones that
# share the most pairs of letters with what was asked for.
_CANDIDATES = 12
_BITS = 509


class NameIndex:
    """Finds cards by id, alias or short name, in any case. Immutable."""

    def __init__(self, cards: Iterable[ModelCard], aliases: Mapping[str, Sequence[str]]) -> None:
        """``aliases`` has the other names of each model id."""
        self._by_id = {card.id: card for card in cards}
        folded = defaultdict[str, list[str]](list)
        other = defaultdict[str, list[str]](list)
        short = defaultdict[str, list[str]](list)
        for card in self._by_id.values():
            folded[card.id.casefold()].append(card.id)
            for alias in aliases.get(card.id, ()):
                other[alias.casefold()].append(card.id)
            short[card.short_name.casefold()].append(card.id)
        self._names = (folded, other, short)  # in this order: an id before an alias
        self._known = {n: ids[0] for names in reversed(self._names) for n, ids in names.items()}
        self._pairs = {n: _pairs(n) for n in self._known}

    def resolve(self, name: str) -> ModelCard:
        """The model of that name; raises ModelNotFound, which names the nearest ones."""
        if not is_model_name(name):
            raise ModelNotFound(
                "The model name is not valid: use an id from GET /v1/models.", param="model"
            )
        if (card := self._by_id.get(name)) is not None:
            return card
        for names in self._names:
            if candidates := names.get(name.casefold()):
                return self._one_of(name, candidates)
        raise ModelNotFound(self._unknown(name), param="model")

    def _one_of(self, name: str, candidates: list[str]) -> ModelCard:
        cards = [self._by_id[candidate] for candidate in candidates]
        usable = [card for card in cards if card.usable]
        if len(usable or cards) > 1:
            listed = ", ".join(sorted(card.id for card in usable or cards))
            raise ModelNotFound(
                f"The model name {name!r} is ambiguous: it may be {listed}.", param="model"
            )
        return (usable or cards)[0]

    def _unknown(self, name: str) -> str:
        if not self._by_id:
            return f"The model {name!r} does not exist: the model directory is empty."
        pairs, length = _pairs(name.casefold()), len(name)

        def likeness(other: str) -> float:
            return (pairs & self._pairs[other]).bit_count() / (length + len(other))

        likely = heapq.nlargest(_CANDIDATES, self._known, key=likeness)
        near = difflib.get_close_matches(name.casefold(), likely, n=3 * _SUGGESTIONS, cutoff=0.5)
        nearest = list(dict.fromkeys(self._known[key] for key in near))[:_SUGGESTIONS]
        if not nearest:
            return f"The model {name!r} does not exist: GET /v1/models lists those that do."
        return f"The model {name!r} does not exist. The nearest are: {', '.join(nearest)}."


def _pairs(name: str) -> int:
    """The pairs of letters in a name, a bit each (and sometimes one for two of them)."""
    bits = 0
    for one, two in pairwise(name):
        bits |= 1 << (31 * ord(one) + ord(two)) % _BITS
    return bits


def is_model_name(name: str) -> bool:
    """Whether a name can be a model's: no path, no URL, no control characters, and not endless."""
    # The length comes first: whatever follows is then cheap, for a name of a megabyte too. Bytes
    # of a file name that are not UTF-8 are lone surrogates here, which are not printable.
    return (
        0 < len(name) <= MAX_NAME_LENGTH
        and name.isprintable()
        and ".." not in name
        and "\\" not in name
        and "://" not in name
        and not name.startswith(("/", "~"))
    )
