"""Which sequences are decoded with drafts, and when."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_router.domain import FinishReason
from mlx_router.engine.base import StepResult
from mlx_router.engine.runner import LiveSequence
from mlx_router.engine.sampling import needs_processors
from mlx_router.engine.speculation.draft import DraftModel
from mlx_router.engine.speculation.lookup import Lookup
from mlx_router.engine.speculation.loop import Drafter, Speculation
from mlx_router.engine.speculation.pace import Pace


class Drafting:
    """How a model drafts: with a ``draft`` model, by ``lookup`` in the prompt, or not at all; it
    outlives the runner. A batch makes better use of the machine than drafts do, so it is for a
    sequence that is alone. The layers of the model's cache must all be ``cuttable``."""

    def __init__(
        self, model: Any, draft: DraftModel | None = None, *, lookup: bool = False
    ) -> None:
        self._model = model
        self._draft = draft
        self._lookup = lookup
        self._scope = ""
        self._pace = Pace()

    def plain_step_took(self, seconds: float) -> None:
        """A step of a sequence that is alone in the batch."""
        self._pace.record(0, seconds)

    def solo(self, sequence: LiveSequence) -> Solo | None:
        """For a sequence that can be decoded so; None: it cannot."""
        if self._draft is None and not self._lookup:
            return None
        if sequence.job.logprobs is not None or needs_processors(sequence.job):
            return None
        if self._draft is not None and sequence.job.cache_scope != self._scope:
            # How soon it drafts would tell what another client asked.
            self._draft.clear()
            self._scope = sequence.job.cache_scope
        drafter = self._draft or Lookup(sequence.context)
        return Solo(self._model, sequence, drafter, self._pace)


class Solo:
    """One sequence and its drafter. It decodes by itself between :meth:`begin` and :meth:`end`;
    otherwise it only watches what others decode of the sequence."""

    def __init__(self, model: Any, sequence: LiveSequence, drafter: Drafter, pace: Pace) -> None:
        self.sequence = sequence
        self._model = model
        self._drafter = drafter
        self._pace = pace
        self._loop: Speculation | None = None
        self._failed = False
        self._since = self._seen = len(sequence.tokens)

    @property
    def worth(self) -> bool:
        """Whether it should begin, by what was measured and seen of the answer; not before
        others have decoded a token of it."""
        for token in self.sequence.tokens[self._seen :]:
            self._drafter.observe(token)
        self._seen = len(self.sequence.tokens)
        if self._seen == self._since or self._failed:
            return False
        return self._pace.worth(self._drafter.likely)

    @property
    def decodes(self) -> bool:
        return self._loop is not None

    @property
    def helps(self) -> bool:
        return self._loop is not None and self._loop.helps

    def begin(self, cache: list[Any]) -> None:
        """Decode by itself from here on; ``cache`` holds all but the last token."""
        sequence = self.sequence
        self._loop = Speculation(
            self._model,
            cache,
            sequence.context,
            len(sequence.tokens),
            sequence.job.sampling,
            self._drafter,
            stop_ids=sequence.job.stop_ids,
            remaining=sequence.remaining,
            pace=self._pace,
        )

    def step(self) -> list[StepResult]:
        """One forward pass: a token, or several."""
        assert self._loop is not None
        found = self._loop.step()
        self._seen += len(found)
        finishes: list[FinishReason | None] = [None] * len(found)
        finishes[-1] = self._loop.finish
        return [
            self.sequence.result(token, _NO_LOGPROBS, finish)
            for token, finish in zip(found, finishes, strict=True)
        ]

    def end(self) -> tuple[list[Any], list[int]]:
        """The cache, and the generated tokens that it holds: all but the last."""
        assert self._loop is not None
        loop, self._loop = self._loop, None
        self._failed = not loop.drafts
        self._since = self._seen
        return loop.cache, loop.tokens[:-1]


_NO_LOGPROBS = mx.array([])
