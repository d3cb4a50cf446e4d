"""Text and token ids of models, whether they are in memory or not."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from mlx_router.catalog.estimate import integer, text_config
from mlx_router.catalog.folder import ModelFolder, Problem
from mlx_router.domain import ChatPrompt, ModelCard, Prompt
from mlx_router.engine.base import EngineFactory, TextCodec
from mlx_router.errors import ModelLoadFailed, RouterError
from mlx_router.runtime.limits import check_token_ids

log = logging.getLogger(__name__)

_MOST_KEPT = 4  # a tokenizer can take a hundred megabytes
_MAX_ID = 2**31


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's codec, and how many token ids the model has; None: its files do not say.

    The methods may take long for a long text: call them on a CPU thread.
    """

    codec: TextCodec
    size: int | None = None

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True) -> list[int]:
        """``add_special_tokens`` is about plain text: a chat template writes its own. Raises
        InvalidRequest for a chat that the model's template refuses."""
        if isinstance(prompt, ChatPrompt):
            return self.codec.encode_chat(prompt).ids
        if prompt.text is not None:
            return self.codec.encode(prompt.text, add_special_tokens=add_special_tokens)
        return list(prompt.token_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Raises InvalidRequest for an id that the model does not have."""
        self._check(ids)
        return self.codec.decode(ids)

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of every id by itself; raises as :meth:`decode`."""
        self._check(ids)
        return [self.codec.decode([token_id]) for token_id in ids]

    def _check(self, ids: Sequence[int]) -> None:
        check_token_ids(list(ids), self.size or _MAX_ID, "tokens")


class Codecs:
    """Vocabularies of models that are not in memory: the last few, each read again when a file of
    the model has changed. Lives on one event loop; reads files on ``executor``."""

    def __init__(self, factory: EngineFactory, executor: Executor) -> None:
        self._factory = factory
        self._executor = executor
        self._kept: OrderedDict[str, tuple[object, asyncio.Future[Vocabulary]]] = OrderedDict()

    async def get(self, card: ModelCard) -> Vocabulary:
        """Raises what the codec says of the model's files, and ModelLoadFailed."""
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(self._executor, _fingerprint, card)
        seen, reading = self._kept.get(card.id, (None, None))
        if reading is None or seen != files:
            reading = loop.run_in_executor(self._executor, self._read, card)
            self._kept[card.id] = (files, reading)
            reading.add_done_callback(lambda done: self._forget_failure(card.id, done))
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(card.id)
        # One caller's leaving must not cost the others, who wait for the same files.
        return await asyncio.shield(reading)

    def _forget_failure(self, model: str, done: asyncio.Future[Vocabulary]) -> None:
        if done.cancelled() or done.exception() is not None:
            _, kept = self._kept.get(model, (None, None))
            if kept is done:
                del self._kept[model]

    def _read(self, card: ModelCard) -> Vocabulary:
        try:
            return Vocabulary(self._factory.codec(card), _vocabulary_size(card))
        except RouterError:
            raise
        except Exception as error:
            log.exception("the tokenizer of %s could not be loaded", card.id)
            raise ModelLoadFailed(
                f"Loading the tokenizer of {card.id} failed ({type(error).__name__})."
            ) from None


def _fingerprint(card: ModelCard) -> tuple[object, ...]:
    """Changes whenever a file of the model does."""
    try:
        return ModelFolder.scan(card.path).fingerprint
    except OSError:
        return ()


def _vocabulary_size(card: ModelCard) -> int | None:
    try:
        config = ModelFolder.scan(card.path).read_json("config.json")
    except (OSError, Problem):
        return None
    return integer(text_config(config or {}), "vocab_size")
