"""Where the answers of ``mlx-router chat`` come from: a running server, or this process."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlx_router.cli.remote import Remote, refusal

if TYPE_CHECKING:
    from mlx_router.runtime.manager import MLXModelManager

Message = dict[str, Any]  # in OpenAI's shape


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every answer; None: not said. ``thinking`` is for models with a switch."""

    temperature: float | None = None
    max_tokens: int | None = None
    thinking: bool | None = None

    def given(self) -> dict[str, Any]:
        found = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer; a ``notice`` is about it, such as what it waits for."""

    kind: Literal["content", "reasoning", "notice"]
    text: str


@dataclass(slots=True)
class Ending:
    """How an answer ended. ``finish_reason`` is OpenAI's; empty: it did not come to its end."""

    model: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers(Protocol):
    """Methods raise RouterError."""

    def models(self) -> list[str]:
        """The ids of the models that can chat."""

    def find(self, name: str) -> str:
        """The id of the model that ``name`` means."""

    def ask(
        self, messages: Sequence[Message], model: str | None, options: Options, ending: Ending
    ) -> Generator[Piece, None, None]:
        """The answer as it comes; ``ending`` is filled in meanwhile. Closing it stops the
        generation."""


class ServerAnswers:
    """Of a running server."""

    def __init__(self, server: Remote) -> None:
        self._server = server

    def models(self) -> list[str]:
        answer = self._server.get("/v1/models")
        try:
            return [model["id"] for model in answer["data"] if model["capabilities"]["chat"]]
        except (LookupError, TypeError):
            raise self._server.stranger() from None

    def find(self, name: str) -> str:
        return str(self._server.model(name)["id"])

    def ask(
        self, messages: Sequence[Message], model: str | None, options: Options, ending: Ending
    ) -> Generator[Piece, None, None]:
        body: dict[str, Any] = {
            "messages": list(messages),
            "stream": True,
            "streaming_format": "sse",
            "stream_options": {"include_usage": True},
            **options.given(),
        }
        if model is not None:
            body["model"] = model
        if options.thinking is not None:
            body["enable_thinking"] = options.thinking
        with closing(self._server.stream("/v1/chat/completions", body)) as events:
            for field, text in events:
                if field == "comment":
                    if text != "keep-alive":
                        yield Piece("notice", text)
                elif text != "[DONE]":
                    yield from self._read(text, ending)
        if not ending.finish_reason:
            raise self._server.broken() if ending.model else self._server.stranger()

    def _read(self, text: str, ending: Ending) -> Generator[Piece, None, None]:
        try:
            chunk = json.loads(text)
            if "error" in chunk:
                raise refusal(chunk)
            ending.model = chunk["model"]
            if usage := chunk.get("usage"):
                ending.prompt_tokens = usage["prompt_tokens"]
                ending.completion_tokens = usage["completion_tokens"]
            for choice in chunk["choices"]:
                delta = choice["delta"]
                if reasoning := delta.get("reasoning_content"):
                    yield Piece("reasoning", reasoning)
                if content := delta.get("content"):
                    yield Piece("content", content)
                ending.finish_reason = choice["finish_reason"] or ending.finish_reason
        except (ValueError, LookupError, TypeError):
            raise self._server.stranger() from None


class LocalAnswers:
    """Of models in this process."""

    def __init__(self, manager: MLXModelManager) -> None:
        self._manager = manager

    def models(self) -> list[str]:
        from mlx_router.domain import ModelKind

        able = (ModelKind.TEXT, ModelKind.VISION)
        cards = self._manager.cards()
        return [card.id for card in cards if card.usable and card.kind in able]

    def find(self, name: str) -> str:
        return self._manager.find(name).id

    def ask(
        self, messages: Sequence[Message], model: str | None, options: Options, ending: Ending
    ) -> Generator[Piece, None, None]:
        from mlx_router.domain import Completed, Delta, Finished, Preparing, Started

        given: Any = options.given()
        if options.thinking is not None:
            given["thinking"] = options.thinking
        events = self._manager.stream(messages, model, **given)
        with closing(events):
            for event in events:
                match event:
                    case Preparing(text):
                        yield Piece("notice", text)
                    case Started():
                        ending.model, ending.prompt_tokens = event.model, event.prompt_tokens
                    case Delta():
                        if event.reasoning:
                            yield Piece("reasoning", event.reasoning)
                        if event.content:
                            yield Piece("content", event.content)
                    case Finished():
                        ending.finish_reason = event.reason
                    case Completed(usage):
                        ending.completion_tokens = usage.completion_tokens
