"""Speculative decoding of one sequence, a forward pass at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import mlx.core as mx

from mlx_router.domain import FinishReason
from mlx_router.engine.base import Sampling
from mlx_router.engine.sampling import Sampler, make_sampler
from mlx_router.engine.speculation.pace import Pace

log = logging.getLogger(__name__)

_CLEAR_TOKENS = 256


class Drafter(Protocol):
    """Guesses how a sequence goes on."""

    @property
    def likely(self) -> float:
        """How probable it is that the next token it drafts is right, by what was seen lately."""

    def observe(self, token: int) -> None:
        """A token of the sequence has become certain, drafted or not."""

    def draft(self, context: Sequence[int], count: int, sampler: Sampler | None) -> list[int]:
        """What may follow ``context``: at most ``count`` (≥ 1) ids below the model's vocabulary
        size. ``sampler``: how the tokens will be chosen, from the next one on; None: greedily. The
        same list as the last time has only grown since."""


class Speculation:
    """One sequence, decoded with drafts: a step is one forward pass over the last token and what
    was drafted, and yields every token up to the first one that was guessed wrong, that one
    included.

    Each position is decided as it would be without a draft, by the largest logit or by the random
    number that belongs to it, so that the answer is the same; but for near-ties, which a pass of
    several tokens may round the other way, as a batch may.

    ``cache``: layers of a batch of one, all ``cuttable``, that hold ``context`` but its last token;
    they are used, not copied, and hold the same after every step. ``context``: prompt and answer so
    far, ``generated`` of them answer. The sequence ends with one of ``stop_ids``, or after
    ``remaining`` (≥ 1) further tokens. ``pace`` is shared by the sequences of a model.

    For sequences without logits processors and log-probabilities. ``step`` may raise what the model
    raises; a drafter that fails is logged, and used no more.
    """

    def __init__(
        self,
        model: Any,
        cache: list[Any],
        context: Sequence[int],
        generated: int,
        sampling: Sampling,
        drafter: Drafter,
        *,
        stop_ids: frozenset[int],
        remaining: int,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.cache = cache
        self.context = list(context)
        self.remaining = remaining
        self.finish: FinishReason | None = None
        self._model = model
        self._start = len(self.context) - generated
        self._sampler = make_sampler(sampling)
        self._drafter: Drafter | None = drafter
        self._stop_ids = stop_ids
        self._pace = pace or Pace()
        self._clock = clock

    @property
    def tokens(self) -> list[int]:
        """The answer so far, with what there was before."""
        return self.context[self._start :]

    @property
    def helps(self) -> bool:
        """Whether drafting pays at the moment; yes, until a plain step was measured."""
        if self._drafter is None:
            return False
        return not self._pace.measured or self._pace.gain(self._drafter.likely) > 1

    @property
    def drafts(self) -> bool:
        """Whether its drafter is of use: one that failed is not."""
        return self._drafter is not None

    def step(self) -> list[int]:
        """One forward pass; the tokens that became certain, at least one. ``finish`` says whether
        the last of them ends the sequence, and then there is no further step."""
        began = self._clock()
        draft = self._draft()
        if not draft:
            began = self._clock()  # what a drafter takes to get ready is no part of a plain step
        certain = accepted(draft, self._check(draft), self._stop_ids, self.remaining)
        self._pace.record(len(draft), self._clock() - began)
        for layer in self.cache:
            layer.trim(1 + len(draft) - len(certain))
        self.context += certain
        self.remaining -= len(certain)
        if certain[-1] in self._stop_ids:
            self.finish = FinishReason.STOP
        elif not self.remaining:
            self.finish = FinishReason.LENGTH
        if self._drafter is not None:
            for token in certain:
                self._drafter.observe(token)
        if len(self.context) % _CLEAR_TOKENS < len(certain):
            mx.clear_cache()  # else MLX keeps what the KV cache has outgrown
        return certain

    def _draft(self) -> list[int]:
        if self._drafter is None:
            return []
        count = min(self._pace.count(self._drafter.likely), self.remaining - 1)
        if count <= 0:
            return []
        try:
            return self._drafter.draft(self.context, count, self._sampler_at_end())
        except Exception:
            log.exception("drafting failed; this answer goes on without")
            self._drafter = None
            return []

    def _check(self, draft: list[int]) -> list[int]:
        """The token that follows the context, and, for each drafted one, what follows that."""
        logits = self._model(mx.array([[self.context[-1], *draft]]), cache=self.cache)[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        sampler = self._sampler_at_end()
        chosen = mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
        return cast(list[int], chosen.tolist())

    def _sampler_at_end(self) -> Sampler | None:
        if self._sampler is not None:
            self._sampler.position = len(self.context) - self._start
        return self._sampler


def accepted(
    draft: Sequence[int], chosen: Sequence[int], stop_ids: frozenset[int], remaining: int
) -> list[int]:
    """The tokens that are certain. ``chosen[i]`` is what the model chooses after the first i of
    ``draft``, one more than those: it counts as long as all before were guessed right."""
    certain: list[int] = []
    for place, token in enumerate(chosen):
        certain.append(token)
        ended = token in stop_ids or len(certain) == remaining
        if ended or place == len(draft) or token != draft[place]:
            break
    return certain
