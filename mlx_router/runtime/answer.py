"""From tokens to events: one :class:`Answer` per request, one :class:`Choice` per sequence.

All of it runs on the event loop. A choice gathers tokens and makes an event of them when it has
``chunk_tokens``, after 50 ms, and for the first token and the last one at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from mlx_router.engine.base import StepResult, TextCodec
from mlx_router.errors import EngineFailed, RouterError
from mlx_router.parsing import OutputParser, Parsed

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.05


class Choice:
    """One sequence of an answer: detokenises, cuts at stop strings, parses, counts.

    ``one_call``: it ends where a second call of a tool would begin.
    """

    def __init__(
        self,
        answer: Answer,
        index: int,
        codec: TextCodec,
        parser: OutputParser,
        *,
        stop: Sequence[str],
        chunk_tokens: int,
        in_reasoning: bool,
        one_call: bool = False,
    ) -> None:
        self._one_call = one_call
        self._answer = answer
        self._stop = stop
        self._index = index
        self._codec = codec
        self._detokenizer = codec.detokenizer()
        self._parser = parser
        self._chunk_tokens = chunk_tokens
        self._in_reasoning = in_reasoning
        self._content = ""
        self._reasoning = ""
        self._tool_calls: list[ToolCallDelta] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._reasoning_end = 0  # in _token_ids
        self._called_tools = False
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.done = False

    def on_token(self, result: StepResult) -> None:
        if self.done:
            return
        token, finish = result.token, result.finish
        assert token is not None
        self.completion_tokens += 1
        # Without an end-of-sequence token. None comes first: an enum's member is slow to look up.
        if finish is None or finish is not FinishReason.STOP:
            self._token_ids.append(token)
            if result.logprob is not None:
                self._logprobs.append(self._describe(result))
            stopped = self._parse(self._detokenizer.add(token))
            if self._in_reasoning:
                self.reasoning_tokens += 1
                self._reasoning_end = len(self._token_ids)
            if stopped:
                self._answer.abort(self)
                self.finish(FinishReason.STOP)
                return
        if finish is not None:
            stopped = self._parse(self._detokenizer.finish())
            reason = FinishReason.LENGTH if result.incomplete else finish
            self.finish(FinishReason.STOP if stopped else reason)
            return
        if self.completion_tokens == 1 or len(self._token_ids) >= self._chunk_tokens:
            self.flush()
        if self._token_ids:
            self._answer.flush_later()

    def flush(self) -> None:
        """Send what has been gathered, if there is anything to see yet."""
        if self._content or self._reasoning or self._tool_calls:
            self._put()

    def _put(self) -> None:
        self._answer.put(
            Delta(  # by position: by name costs twice as much
                self._index,
                self._content,
                self._reasoning,
                self._tool_calls,
                self._token_ids,
                self._logprobs,
                self._reasoning_end,
            )
        )
        self._content = self._reasoning = ""
        self._tool_calls, self._token_ids, self._logprobs = [], [], []
        self._reasoning_end = 0

    def finish(self, reason: FinishReason, *, timed_out: bool = False) -> None:
        """The last words: what the parser held back, and why it ended."""
        if self.done:
            return
        self.done = True
        try:
            self._gather(self._parser.finish())
        except Exception:
            log.exception("parsing the end of an answer failed")
        self.flush()
        if self._token_ids:  # tokens without text of their own, as of a stop string
            self._put()
        if self._called_tools and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        self._answer.on_choice_finished(Finished(self._index, reason, timed_out))

    def _parse(self, text: str) -> bool:
        """Take in text; whether a stop string ended the answer."""
        try:
            parsed = self._parser.feed(text)
        except Exception:  # a parser's fault must not cost the answer: raw text it is
            log.exception("parsing failed; the rest of the answer is sent as it is")
            self._parser = OutputParser(None, None, None, stop=self._stop)
            parsed = Parsed(content=text)
        self._gather(parsed)
        return parsed.stopped or (self._one_call and any(c.index > 0 for c in parsed.tool_calls))

    def _gather(self, parsed: Parsed) -> None:
        if parsed.content:
            self._content += parsed.content
            self._in_reasoning = False
        if parsed.tool_calls:
            self._tool_calls += (
                call for call in parsed.tool_calls if call.index == 0 or not self._one_call
            )
            self._called_tools = True
            self._in_reasoning = False
        if parsed.reasoning:
            self._reasoning += parsed.reasoning
            self._in_reasoning = True

    def _describe(self, result: StepResult) -> TokenLogprob:
        spell = self._codec.token_bytes
        assert result.token is not None
        assert result.logprob is not None
        return TokenLogprob(
            result.token,
            spell(result.token),
            result.logprob,
            tuple((token, spell(token), value) for token, value in result.top_logprobs),
        )


class Answer:
    """An asynchronous iterator of the events of one request.

    ``abort_job`` drops a sequence on its engine. What the reader has not taken yet is bounded by
    max_tokens; a reader that stops reading is the API's to drop.
    """

    def __init__(self, prompt_tokens: int, abort_job: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[GenerationEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._error: RouterError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = 0
        self._abort_job = abort_job
        self._choices: dict[int, Choice] = {}
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self.queued_seconds = 0.0
        self.closed = False

    @property
    def has_tokens(self) -> bool:
        return self._first_token is not None

    def add_choice(self, job_id: int, choice: Choice) -> None:
        self._choices[job_id] = choice

    # --- from the engine --------------------------------------------------------------------

    def on_result(self, result: StepResult) -> None:
        if self._first_token is None:
            self._first_token = time.perf_counter()
            self._cached_tokens = result.cached_tokens
        if result.error is not None:
            self.fail(EngineFailed(result.error))
        else:
            self._choices[result.job_id].on_token(result)

    def on_choice_finished(self, event: Finished) -> None:
        self.put(event)
        if all(choice.done for choice in self._choices.values()):
            self.put(Completed(self._usage(), self._timings()))
            self.closed = True

    def put(self, event: GenerationEvent) -> None:
        self._events.append(event)
        self._wake()

    def abort(self, choice: Choice) -> None:
        for job_id, candidate in self._choices.items():
            if candidate is choice:
                self._abort_job(job_id)

    def flush_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    # --- from the runtime -------------------------------------------------------------------

    def fail(self, error: RouterError) -> None:
        """End with an error: what was generated before is still delivered first."""
        if not self.closed:
            self._flush()
            self._error = error
            self.closed = True
            self.abort_all()
            self._wake()

    def time_out(self) -> None:
        """End with what there is."""
        for choice in self._choices.values():
            choice.finish(FinishReason.LENGTH, timed_out=True)
        self.abort_all()

    def abort_all(self) -> None:
        """Stop generating. Safe to call at any time, also twice."""
        if self._timer is not None:
            self._timer.cancel()
        for job_id in self._choices:
            self._abort_job(job_id)

    # --- for the reader ---------------------------------------------------------------------

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> GenerationEvent:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.closed:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            await self._reader
        event = self._events.popleft()
        if self._events and isinstance(event, Delta):
            event.more = True
        return event

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _flush(self) -> None:
        self._timer = None
        for choice in self._choices.values():
            choice.flush()

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(c.completion_tokens for c in self._choices.values()),
            cached_tokens=self._cached_tokens,
            reasoning_tokens=sum(c.reasoning_tokens for c in self._choices.values()),
        )

    def _timings(self) -> Timings:
        now = time.perf_counter()
        first = self._first_token or now
        return Timings(
            queued=self.queued_seconds, prefill=first - self._started, decode=now - first
        )
