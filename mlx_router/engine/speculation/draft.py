"""A second, smaller model that drafts."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from mlx_router.domain import ModelCard
from mlx_router.engine.loading import dismantle, load_error, vocabulary_size, weight_bytes
from mlx_router.engine.prefix.layers import cuttable
from mlx_router.engine.sampling import Sampler
from mlx_router.engine.speculation.vocabulary import FILE, differs
from mlx_router.errors import ModelLoadFailed

log = logging.getLogger(__name__)

_FEW = 16  # tokens of the context that are computed along with the next one, and not apart
_HOPE = 0.7  # `likely` where nothing is known yet
_SHARPER = 0.8  # times the temperature: models like each other lose little by it, others win
_WEIGHT = 1 / 16  # of the newest token in `likely`
_PAUSE = (64, 1024)  # tokens without drafting until it is tried again: at first, and at most


class DraftModel:
    """Implements :class:`mlx_router.engine.speculation.loop.Drafter` with a model of mlx-lm and a
    KV cache of its own. One sequence drafts at a time; what the cache of the last one shares with
    the next one's context is kept.

    ``vocab_size``: of the model that checks; greater ids are never proposed. ``own_size``: ids that
    this one can embed.

    It draws with the random numbers that the answer is drawn with: where both models find the same
    tokens likely, they then choose the same one. It does so at a lower temperature, since a small
    model is less sure of what a large one is sure of.
    """

    def __init__(
        self, model: Any, *, vocab_size: int, own_size: int, prefill_step_size: int
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._own_size = own_size
        self._step_size = prefill_step_size
        self._cache: list[Any] = []
        self._held: list[int] = []  # what is in the cache
        self._context: Sequence[int] = ()
        self._known = 0  # tokens that are the same in both
        self._guesses: deque[int] = deque()
        self._likely = _HOPE
        self._idle = 0
        self._pause = _PAUSE[0]

    @property
    def likely(self) -> float:
        return self._likely

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self._model)

    @property
    def cache_bytes(self) -> int:
        return sum(layer.nbytes for layer in self._cache)

    def observe(self, token: int) -> None:
        if self._guesses:
            hit = self._guesses.popleft() == token
            self._likely += _WEIGHT * (hit - self._likely)
            if not hit:
                self._guesses.clear()
        self._idle += 1
        if self._idle == self._pause:  # it did not help: perhaps it does now
            self._likely = max(self._likely, _HOPE)
            self._pause = min(2 * self._pause, _PAUSE[1])

    def draft(
        self, context: Sequence[int], count: int, sampler: Sampler | None = None
    ) -> list[int]:
        """Nothing as long as much of the context is missing in the cache: a call computes no more
        than one slice of it, for others may be waiting."""
        self._idle = 0
        self._guesses.clear()
        try:
            return self._draft(context, count, sampler)
        except Exception:
            self.clear()  # some layers may have been moved on, and others not
            raise

    def _draft(self, context: Sequence[int], count: int, sampler: Sampler | None) -> list[int]:
        self._cut(context)
        missing = context[len(self._held) : -1]
        if len(missing) > _FEW:
            self._prefill(missing[: self._step_size])
            return []
        new = context[len(self._held) :]
        ids = cast(list[int], mx.concatenate(self._decode(new, count, sampler)).tolist())
        self._held += [*new, *ids[:-1]]
        self._guesses.extend(ids)
        return ids

    def clear(self) -> None:
        """Free the KV cache."""
        self._cache = []
        self._held = []
        self._known = 0

    def close(self) -> None:
        """Free the model, too: it is of no use any more."""
        self.clear()
        model, self._model = self._model, None
        if model is not None:
            dismantle(model)

    def _cut(self, context: Sequence[int]) -> None:
        """Leave in the cache what it shares with the context but its last token."""
        from mlx_lm.models.cache import make_prompt_cache

        if not self._cache:
            self._cache = make_prompt_cache(self._model)
        shared = self._known if context is self._context else 0
        most = min(len(self._held), len(context) - 1)
        while shared < most and self._held[shared] == context[shared]:
            shared += 1
        for layer in self._cache:
            layer.trim(len(self._held) - shared)
        del self._held[shared:]
        self._context, self._known = context, shared

    def _prefill(self, tokens: Sequence[int]) -> None:
        self._forward(mx.array(list(tokens)))
        mx.eval([layer.state for layer in self._cache])
        self._held += tokens

    def _decode(self, tokens: Sequence[int], count: int, sampler: Sampler | None) -> list[mx.array]:
        """``count`` arrays of one token each, the first of which follows ``tokens``."""
        drafted = [mx.array(list(tokens))]
        sampler = sampler and sampler.sharper(_SHARPER)
        for _ in range(count):
            logits = self._fit(self._forward(drafted[-1])[:, -1, :])
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
            mx.async_eval(chosen)  # type: ignore[no-untyped-call]
            drafted.append(chosen)
        return drafted[1:]

    def _forward(self, ids: mx.array) -> mx.array:
        # The vocabulary of the other may be padded to more than there is here to embed.
        logits: mx.array = self._model(mx.minimum(ids, self._own_size - 1)[None], cache=self._cache)
        return logits

    def _fit(self, logits: mx.array) -> mx.array:
        """As wide as the other model's: random numbers depend on the width."""
        lacking = self._vocab_size - logits.shape[-1]
        if lacking > 0:
            return mx.pad(logits, [(0, 0), (0, lacking)], constant_values=-mx.inf)
        return logits[:, : self._vocab_size]


def load_draft(
    draft: ModelCard,
    target: ModelCard,
    vocab_size: int,
    *,
    prefill_step_size: int,
    trust_remote_code: bool = False,
) -> DraftModel:
    """Load ``draft`` to draft for ``target``, which embeds ``vocab_size`` ids, on the thread that
    will use it. Raises ModelLoadFailed if it cannot be loaded, or cannot draft for it."""
    try:
        return _load(draft, target, vocab_size, prefill_step_size, trust_remote_code)
    except _Unsuitable as unsuitable:
        reason = str(unsuitable)
    except Exception as error:
        log.exception("the draft model %s of %s could not be loaded", draft.id, target.id)
        reason = f"cannot be used: {load_error(draft, error).message}"
    # Raised out here: a traceback from above holds half a model.
    raise ModelLoadFailed(
        f"{draft.id}, the draft_model of {target.id}, {reason} "
        "Name a small model of the same family in draft_model, or leave it out."
    )


class _Unsuitable(Exception):
    """A model that works, but not as a draft model; the rest of a sentence that says why."""


def _load(
    draft: ModelCard,
    target: ModelCard,
    vocab_size: int,
    prefill_step_size: int,
    trust_remote_code: bool,
) -> DraftModel:
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    try:
        difference = differs(target.path, draft.path)
    except (OSError, ValueError) as error:
        raise _Unsuitable(
            f"cannot be compared with it ({type(error).__name__}: both need a readable {FILE})."
        ) from None
    if difference is not None:
        raise _Unsuitable(f"has another vocabulary: {difference}.")
    model, _ = load_model(draft.path, trust_remote_code=trust_remote_code)
    model.eval()
    if not all(cuttable(layer) for layer in make_prompt_cache(model)):
        raise _Unsuitable(
            "has a sliding window or a recurrent state, which cannot go back after a wrong guess."
        )
    own_size = vocabulary_size(model, draft)
    return DraftModel(
        model, vocab_size=vocab_size, own_size=own_size, prefill_step_size=prefill_step_size
    )
