"""Completions as ``text_completion`` chunks, for SSE or JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_router.api.chunks import Chunks
from mlx_router.api.completions import CompletionCall
from mlx_router.api.merge import StartedOne
from mlx_router.api.wire import answer_id, dumps, text_logprobs
from mlx_router.domain import AnswerEvent, Delta, Finished, Started


class CompletionChunks(Chunks):
    """Encodes the merged events of a call. ``echoes``: for each prompt, what its answers begin
    with."""

    def __init__(self, call: CompletionCall, echoes: Sequence[str]) -> None:
        super().__init__(call.delivery, "text_completion", answer_id("cmpl"))
        self._n = call.n
        self._echoes = echoes
        self._offsets = [0] * (call.n * len(call.requests))  # of the next token in the text
        self._text_heads: list[bytes] = []
        self._text_tail = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def encode(self, event: AnswerEvent) -> bytes:
        """The bytes of one event; empty if it has nothing for the client."""
        if isinstance(event, Delta):
            if event.logprobs or self._how.token_ids:
                return self._rich(event)
            if not event.content:
                return b""
            return self._text_heads[event.index] + dumps(event.content) + self._text_tail
        if isinstance(event, Finished):
            rest = b'"","logprobs":null,"finish_reason":' + dumps(event.reason) + b"}]"
            return self._text_heads[event.index] + rest + self._tail
        if isinstance(event, Started):
            return self._start(event)
        return self._end(event)

    def _start(self, started: Started) -> bytes:
        """Prepare the templates; what the choices of this prompt begin with."""
        if not self._text_heads:
            self._begin(started.model)
            choices = range(len(self._offsets))
            self._text_heads = [self._choice_head(index) + b'"text":' for index in choices]
        source = started.source if isinstance(started, StartedOne) else 0
        first: dict[str, Any] = {"text": self._echoes[source]}
        if self._how.token_ids:
            first["prompt_token_ids"] = list(started.prompt_token_ids)
        elif not first["text"]:
            return b""
        return b"".join(
            self._chunk(source * self._n + index, **first, token_ids=[]) for index in range(self._n)
        )

    def _rich(self, event: Delta) -> bytes:
        """A chunk with more than text."""
        logprobs = None
        if event.logprobs:
            logprobs = text_logprobs(event.logprobs, self._offsets[event.index])
            self._offsets[event.index] += sum(len(item.text) for item in event.logprobs)
        elif not event.content and not event.token_ids:
            return b""
        ids = list(event.token_ids)
        return self._chunk(event.index, event.content, logprobs=logprobs, token_ids=ids)

    def _chunk(self, index: int, text: str, **more: Any) -> bytes:
        """``token_ids`` of ``more`` are left out where nobody has asked for them."""
        shown = {"logprobs": None, "finish_reason": None, **more}
        if not self._how.token_ids:
            del shown["token_ids"]
        return self._text_heads[index] + dumps(text) + b"," + dumps(shown)[1:] + b"]" + self._tail
