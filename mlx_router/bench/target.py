"""What is measured: models in this process (``library``) or behind an address (``server``)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

PATIENCE_SECONDS = 3600.0  # for one answer: a long prompt on a slow machine


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be measured. Sizes in bytes; ``refusal`` says why it does not fit into memory now;
    None: it does. What a server does not tell is None or empty."""

    id: str
    context_length: int
    writes_text: bool = True
    refusal: str | None = None
    architecture: str = ""
    quantization: str | None = None
    parameters: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. Times are :func:`time.perf_counter`; ``first_tokens`` came with the
    first piece of the answer, at ``first``, and the last of ``completion_tokens`` at ``last``."""

    sent: float
    first: float
    last: float
    first_tokens: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def first_token_seconds(self) -> float:
        return self.first - self.sent

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first piece; None if nothing came after it."""
        more = self.completion_tokens - self.first_tokens
        return more / (self.last - self.first) if more and self.last > self.first else None


@dataclass(slots=True)
class Stopwatch:
    """Notes when the pieces of an answer come. Make it when the request is sent."""

    sent: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float = 0.0
    first_tokens: int = 0

    def piece(self, tokens: int) -> None:
        self.last = time.perf_counter()
        if self.first is None:
            self.first, self.first_tokens = self.last, tokens

    def answer(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Answer:
        now = time.perf_counter()
        return Answer(
            self.sent,
            now if self.first is None else self.first,
            self.last or now,
            self.first_tokens,
            prompt_tokens,
            completion_tokens,
            cached_tokens,
        )


class Target(Protocol):
    """Methods raise RouterError."""

    async def find(self, name: str) -> Subject:
        """The model of that name. Raises ModelNotFound, ModelCorrupt."""

    async def subjects(self) -> list[Subject]:
        """All models that write text, those that do not fit as well."""

    async def default(self) -> str | None:
        """The name of the model that is meant where none is named, if the config says so."""

    async def tokenize(self, model: str, text: str) -> list[int]:
        """The ids of a plain text."""

    async def is_ready(self, model: str) -> bool:
        """Whether the model is in memory."""

    async def unload(self, model: str) -> None:
        """Free the model's memory, if that can be asked for here."""

    async def load(self, model: str) -> None:
        """Bring the model into memory."""

    async def ask(self, model: str, prompt: Sequence[int], max_tokens: int) -> Answer:
        """Let the model go on with a prompt, to ``max_tokens`` and not less if it can."""
