"""A chat that is too long for its model: the model itself summarises the older messages.

The :class:`Summarizer` drives what :mod:`.overflow` plans: a request is tried, and if it leaves too
little room, the summary is made by ordinary generations on the same lease, and the request is tried
once more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace

from mlx_router.config.settings import Settings
from mlx_router.domain import (
    ChatPrompt,
    Completed,
    Delta,
    GenerationEvent,
    GenerationRequest,
    Message,
    SamplingOptions,
    Started,
)
from mlx_router.engine.base import TextCodec
from mlx_router.errors import InvalidRequest, RequestTimeout
from mlx_router.runtime.generation import Plan
from mlx_router.runtime.limits import TokenLimit
from mlx_router.runtime.overflow import (
    Split,
    reserve,
    split,
    summary_limit,
    task,
    transcript,
    with_summary,
)
from mlx_router.runtime.resident import Resident

log = logging.getLogger(__name__)

Start = Callable[[Plan, Resident, Executor], AsyncGenerator[GenerationEvent, None]]

MAX_PASSES = 16
_MIN_PIECE = 32  # tokens; a context that takes in no more at a time is too small for this
_SLACK = 16  # tokens by which a text may grow when it is cut in two and tokenised anew


@dataclass(frozen=True, slots=True)
class _Shorter:
    """A prompt with a summary of so many messages, for which ``generated`` tokens were spent."""

    prompt: ChatPrompt
    messages: int
    generated: int


class _TooLong(Exception):
    """A prompt leaves less room than an answer is to have."""

    def __init__(self, prompt_tokens: int) -> None:
        super().__init__(prompt_tokens)
        self.prompt_tokens = prompt_tokens


def within_context(
    plan: Plan,
    resident: Resident,
    executor: Executor,
    start: Start,
    plan_for: Callable[[GenerationRequest], Plan],
    settings: Settings,
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of a request; a chat that is too long is summarised first if that is wanted.

    ``start`` generates on ``resident``, which a lease holds; ``plan_for`` plans a further request
    to the same model.
    """
    entry, request = settings.for_model(resident.card.id), plan.request
    overflow = request.context_overflow or entry.context_overflow
    overflow = overflow or settings.defaults.context_overflow
    if overflow == "error" or not isinstance(request.prompt, ChatPrompt):
        return start(plan, resident, executor)
    return Summarizer(resident, executor, start, plan_for).run(plan)


@dataclass(frozen=True, slots=True)
class Summarizer:
    """See :func:`within_context`."""

    resident: Resident
    executor: Executor
    start: Start
    plan_for: Callable[[GenerationRequest], Plan]

    async def run(self, plan: Plan) -> AsyncGenerator[GenerationEvent, None]:
        """The events of a chat, summarised first if need be.

        Where that is of no help, a chat that leaves any room is answered as it is. Raises
        ContextLengthExceeded, and RequestTimeout if summarising takes all of the plan's time.
        """
        begun = time.perf_counter()
        least = reserve(self._context_length, plan.request.max_tokens)

        def limit(prompt_tokens: int) -> TokenLimit:
            if self._context_length - prompt_tokens < least:
                raise _TooLong(prompt_tokens)
            return plan.limit(prompt_tokens)

        try:
            async with aclosing(self._events(replace(plan, limit=limit))) as events:
                async for event in events:
                    yield event
            return
        except _TooLong as error:
            tokens = error.prompt_tokens
        shorter = await self._in_time(plan, tokens, begun)
        if shorter is not None:
            plan = replace(plan, request=replace(plan.request, prompt=shorter.prompt))
        left = plan.timeout - (time.perf_counter() - begun)
        async with aclosing(self._events(replace(plan, timeout=max(left, 0.001)))) as events:
            async for event in events:
                if shorter is not None and isinstance(event, Started):
                    event = replace(
                        event,
                        summarized_messages=shorter.messages,
                        summary_tokens=shorter.generated,
                    )
                yield event

    async def _in_time(self, plan: Plan, tokens: int, begun: float) -> _Shorter | None:
        try:
            async with asyncio.timeout(plan.timeout - (time.perf_counter() - begun)):
                return await self._shorten(plan, tokens, begun)
        except TimeoutError:
            raise RequestTimeout(
                "The older messages of this chat could not be summarised within "
                f"{plan.timeout:.3g} seconds."
            ) from None

    async def _shorten(self, plan: Plan, tokens: int, begun: float) -> _Shorter | None:
        """What to try in place of a prompt of ``tokens``; None: there is nothing better."""
        prompt = plan.request.prompt
        assert isinstance(prompt, ChatPrompt)
        parts = split(prompt.messages)
        if not parts.older:
            return None
        try:
            shorter = await self._summarized(plan.request, prompt, parts, tokens)
        except InvalidRequest as error:  # a template that takes the whole chat, but no part of it
            log.warning("the older messages cannot be summarised: %s", error)
            return None
        if shorter is not None and shorter.generated:
            log.info(
                "summarised %d of %d messages in %d tokens, %.2f s",
                shorter.messages,
                len(prompt.messages),
                shorter.generated,
                time.perf_counter() - begun,
            )
        return shorter

    async def _summarized(
        self, request: GenerationRequest, prompt: ChatPrompt, parts: Split, tokens: int
    ) -> _Shorter | None:
        bare = replace(prompt, messages=with_summary(parts, ""))
        room = self._context_length - await self._count(bare)
        if room < 1 and tokens >= self._context_length:
            return _Shorter(bare, 0, 0)  # hopeless, and no work is spent on it: the error says so
        least = reserve(self._context_length, request.max_tokens)
        limit = summary_limit(self._context_length, room - least)
        summary, generated = "", 0
        for piece in await self._pieces(transcript(parts.older), limit):
            words, count = await self._generate(request, task(piece, summary), limit)
            summary = words or summary
            generated += count
        shorter = replace(prompt, messages=with_summary(parts, summary))
        if not summary or await self._count(shorter) >= tokens:
            return None
        return _Shorter(shorter, len(parts.older), generated)

    async def _pieces(self, text: str, limit: int) -> list[str]:
        """``text`` in pieces that fit beside a summary so far and a new one of ``limit`` tokens;
        none if there would be too many."""
        frame = await self._count(_asking(task("", "-")))
        size = self._context_length - frame - 2 * limit - _SLACK
        if size < _MIN_PIECE:
            return []
        loop = asyncio.get_running_loop()
        pieces = await loop.run_in_executor(self.executor, _cut, self._codec, text, size)
        if len(pieces) > MAX_PASSES:
            log.warning("%d pieces are too many to be summarised", len(pieces))
            return []
        return pieces

    async def _generate(
        self, request: GenerationRequest, question: str, limit: int
    ) -> tuple[str, int]:
        """The model's words, and how many tokens it took."""
        plan = self.plan_for(
            GenerationRequest(
                _asking(question),
                model=request.model,
                request_id=request.request_id,
                sampling=SamplingOptions(temperature=0.0),
                max_tokens=limit,
                timeout=request.timeout,
                cache_scope=request.cache_scope,
            )
        )
        content, reasoning, tokens = "", "", 0
        async with aclosing(self._events(plan)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    content += event.content
                    reasoning += event.reasoning
                elif isinstance(event, Completed):
                    tokens = event.usage.completion_tokens
        # A model that cannot but think may get no further than that: better its notes than nothing.
        return content.strip() or reasoning.strip(), tokens

    def _events(self, plan: Plan) -> AsyncGenerator[GenerationEvent, None]:
        return self.start(plan, self.resident, self.executor)

    @property
    def _context_length(self) -> int:
        return self.resident.card.context_length

    @property
    def _codec(self) -> TextCodec:
        assert self.resident.codec is not None
        return self.resident.codec

    async def _count(self, prompt: ChatPrompt) -> int:
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self.executor, self._codec.encode_chat, prompt)
        return len(encoded.ids)


def _asking(question: str) -> ChatPrompt:
    # One message of the user: every template takes that.
    return ChatPrompt((Message("user", question),), template_kwargs={"enable_thinking": False})


def _cut(codec: TextCodec, text: str, size: int) -> list[str]:
    """``text`` in pieces of at most ``size`` tokens; a character that is cut in two is dropped."""
    ids = codec.encode(text, add_special_tokens=False)
    if len(ids) <= size:
        return [text]
    cuts = range(0, len(ids), size)
    return [codec.decode(ids[begin : begin + size]).strip("\ufffd") for begin in cuts]
