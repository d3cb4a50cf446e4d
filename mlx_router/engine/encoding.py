"""Rendered chats to token ids: only what is new of a conversation is tokenised."""

from __future__ import annotations

import re
import sys
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MAX_BYTES = 16 * 1024 * 1024
LEAST_PIECE = 2000  # characters
_LONGEST_HEAD = 100_000  # characters, which a mark may have tokenised once more
_BATCH = 64  # pieces
_ENTRY_BYTES = 400  # of the cache, besides text and ids

Ids = np.ndarray[Any, np.dtype[np.int32]]

# What tokenizers treat in ways of their own, most of all where a text begins.
_SAMPLES = ("Hello  world\n\n", " a", "\n", "x = 12345;\t", "caf\u00e9 \u65e5\u672c \U0001f642 ")


class PromptEncoder:
    """Tokenises text in pieces that begin with special tokens, which tokenizers look for before
    they do anything else: so the ids are those of the whole text. What was tokenised is kept, at
    most ``max_bytes`` of it, in pieces of ``least_piece`` characters or more. A tokenizer that does
    not prove to be like that gets the whole text.

    ``tokenizer`` is a transformers tokenizer; ``written``: what may hold the special tokens that
    prompts are made of, as the source of a chat template does. Safe to use from several threads.
    """

    def __init__(
        self,
        tokenizer: Any,
        written: str,
        *,
        max_bytes: int = MAX_BYTES,
        least_piece: int = LEAST_PIECE,
    ) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[tuple[str, str], Ids] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._least_piece = least_piece
        self._lock = threading.Lock()
        self._backend = (
            tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        )
        if not self._proves_right(["".join(_SAMPLES)]):
            self._backend = None  # Python code of the model's family comes before it
        self._cuts = self._find_cuts(written) if self._backend is not None else None

    def encode(
        self, text: str, marks: Sequence[int] = (), *, scope: str | None = None
    ) -> tuple[list[int], tuple[int, ...]]:
        """The ids of ``text``, and of each of ``marks``, which are places in the text, the number
        of tokens before it: ascending, none of them 0 or all. A mark may be left out.

        What was tokenised is kept for calls with the same ``scope``; None: for nobody. Raises
        TypeError or UnicodeError for text that is not valid Unicode.
        """
        starts = self._starts(text)
        ends = [*starts[1:], len(text)]
        pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        heads = []
        for mark in marks:
            piece = bisect_right(starts, mark) - 1
            if mark - starts[piece] <= _LONGEST_HEAD:
                heads.append((piece, text[starts[piece] : mark]))
        ids = self._ids([*pieces, *(head for _, head in heads)], scope)
        parts, head_ids = ids[: len(pieces)], ids[len(pieces) :]
        before = np.cumsum([0, *map(len, parts)]).tolist()
        numbers = {
            before[piece] + _common(parts[piece], ids_of_head)
            for (piece, _), ids_of_head in zip(heads, head_ids, strict=True)
        }
        boundaries = tuple(sorted(n for n in numbers if 0 < n < before[-1]))
        return np.concatenate(parts).tolist(), boundaries

    def _starts(self, text: str) -> list[int]:
        """Where the pieces begin. It depends on what is before, never on what comes after: so a
        conversation that has grown begins with the same pieces."""
        starts = [0]
        if self._cuts is not None:
            for found in self._cuts.finditer(text):
                if found.start() - starts[-1] >= self._least_piece:
                    starts.append(found.start())
        return starts

    def _ids(self, texts: Sequence[str], scope: str | None) -> list[Ids]:
        if scope is None:
            return self._tokenise(texts)
        known: dict[str, Ids] = {}
        with self._lock:
            for text in texts:
                ids = self._kept.get((scope, text))
                if ids is not None:
                    self._kept.move_to_end((scope, text))
                    known[text] = ids
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, self._tokenise(new), strict=True))
        with self._lock:
            for text in new:
                self._keep((scope, text), known[text])
        return [known[text] for text in texts]

    def _keep(self, key: tuple[str, str], ids: Ids) -> None:
        if key not in self._kept:  # another thread may have been first
            self._kept[key] = ids
            self._bytes += _weight(key, ids)
        while self._bytes > self._max_bytes:
            self._bytes -= _weight(*self._kept.popitem(last=False))

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        if self._backend is None:
            return [_packed(self._whole(text)) for text in texts]
        # A batch leaves Python's lock to others, one text would not; what is done with the lock,
        # making Python's integers and freeing what else was found, is kept short.
        ids: list[Ids] = []
        for first in range(0, len(texts), _BATCH):
            batch = texts[first : first + _BATCH]
            found = self._backend.encode_batch_fast(batch, add_special_tokens=False)
            ids += [_packed(each.ids) for each in found]
        return ids

    def _whole(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    # --- where a text may be cut ------------------------------------------------------------

    def _find_cuts(self, written: str) -> re.Pattern[str] | None:
        """Finds the special tokens that the text may be cut before."""
        # Those that are not normalised are looked for before all else.
        added = self._tokenizer.added_tokens_decoder.values()
        first = [token for token in added if not token.normalized]
        ends = (self._tokenizer.bos_token, self._tokenizer.eos_token)
        cuts = [
            token.content
            for token in first
            if (token.content in written or token.content in ends)
            and _stands_alone(token, first)
            and self._may_be_cut([token.content])
        ]
        return _any_of(cuts) if cuts and self._may_be_cut(cuts) else None

    def _may_be_cut(self, cuts: Sequence[str]) -> bool:
        """Whether texts with these tokens in many places prove so."""
        pieces = [cut + sample for cut in cuts for sample in (*_SAMPLES, "")]
        return all(map(self._proves_right, (pieces, [_SAMPLES[1], *pieces[::-1]])))

    def _proves_right(self, pieces: Sequence[str]) -> bool:
        """Whether the ids of ``pieces`` are those of the text that they are."""
        try:
            # First, since it takes away limits that a file of the model may have set.
            whole = self._whole("".join(pieces))
            return bool(np.concatenate(self._tokenise(pieces)).tolist() == whole)
        except Exception:  # a vocabulary without all characters may raise anything
            return False


def _stands_alone(token: Any, others: Iterable[Any]) -> bool:
    """Whether the tokenizer splits a text before each occurrence of ``token``, whatever is on
    either side: no other token can reach into it, and neither it nor a longer one that begins with
    it looks at what is before."""
    text: str = token.content
    if not text or token.lstrip or token.single_word or re.match(r"[\w\s]", text):
        return False
    return not any(
        _reaches_into(other.content, text)
        or (other.content.startswith(text) and (other.lstrip or other.single_word))
        for other in others
    )


def _reaches_into(other: str, text: str) -> bool:
    """Whether an occurrence of ``other`` may begin before one of ``text`` and end after its
    beginning."""
    at = other.find(text[0], 1)
    while at >= 0:
        rest = other[at:]
        if rest.startswith(text) or text.startswith(rest):
            return True
        at = other.find(text[0], at + 1)
    return False


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))


def _packed(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)


def _weight(key: tuple[str, str], ids: Ids) -> int:
    return sys.getsizeof(key[1]) + ids.nbytes + _ENTRY_BYTES


def _common(first: Ids, second: Ids) -> int:
    """With how many equal ids both begin."""
    size = min(len(first), len(second))
    differs = np.flatnonzero(first[:size] != second[:size])
    return int(differs[0]) if len(differs) else size
