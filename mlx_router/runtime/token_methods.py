"""The methods of a manager that turn text into token ids and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mlx_router.domain import Prompt
from mlx_router.runtime.bridge import Bridge
from mlx_router.runtime.core import Core

T = TypeVar("T")


class TokenMethods:
    """A part of :class:`~mlx_router.runtime.manager.MLXModelManager`."""

    _bridge: Bridge

    async def _ask(self, question: Callable[[Core], Awaitable[T]]) -> T:
        """What ``question`` makes of the core, on its loop."""
        raise NotImplementedError

    def tokenize(
        self, model: str | None, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> list[int]:
        """The ids of a prompt, as the model would read it: a chat through the model's template,
        plain text with a leading special token where the model wants one and
        ``add_special_tokens`` allows it. The model need not be in memory, and is not loaded. None:
        the default model. Raises ModelNotFound, ModelCorrupt, InvalidRequest."""
        return self._bridge.wait(
            self._ask(lambda core: core.tokenize(model, prompt, add_special_tokens))
        )

    async def atokenize(
        self, model: str | None, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> list[int]:
        """As :meth:`tokenize`, without blocking."""
        return await self._bridge.run(
            self._ask(lambda core: core.tokenize(model, prompt, add_special_tokens))
        )

    def detokenize(self, model: str | None, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Raises as :meth:`tokenize`, and
        InvalidRequest for an id that the model does not have."""
        return self._bridge.wait(self._ask(lambda core: core.detokenize(model, ids)))

    async def adetokenize(self, model: str | None, ids: Sequence[int]) -> str:
        """As :meth:`detokenize`, without blocking."""
        return await self._bridge.run(self._ask(lambda core: core.detokenize(model, ids)))

    def token_texts(self, model: str | None, ids: Sequence[int]) -> list[str]:
        """As :meth:`detokenize`, but each id by itself. One that is only a part of a character has
        the replacement character for its text."""
        return self._bridge.wait(self._ask(lambda core: core.token_texts(model, ids)))

    async def atoken_texts(self, model: str | None, ids: Sequence[int]) -> list[str]:
        """As :meth:`token_texts`, without blocking."""
        return await self._bridge.run(self._ask(lambda core: core.token_texts(model, ids)))
