"""What the router does at this moment, and what it has done since it was started.

The runtime tells; the status page, the commands and /metrics read. One event loop owns it, so it
has no lock.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from mlx_router.domain import Completed, Delta, GenerationEvent, Preparing, Started
from mlx_router.errors import RouterError
from mlx_router.telemetry.histogram import Histogram

FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
QUEUE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
LOAD_SECONDS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)

SAMPLE_SECONDS = 5.0
_SAMPLES = 720  # an hour

COMPLETED = "completed"
CANCELLED = "cancelled"  # by the client, who left
FAULT = "internal_error"


class Phase(StrEnum):
    """WAITING for a model (its turn, its load, its download), then for the first token: PREFILL."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODING = "decoding"


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request under way. ``model`` is what it asked for (None: the default) until it is known
    which one that means. ``max_tokens``: of all ``choices`` together. ``began`` is time.time(); the
    other times are of perf_counter()."""

    number: int
    request_id: str
    kind: str
    model: str | None
    choices: int = 1
    tally: ModelTally | None = None
    phase: Phase = Phase.WAITING
    detail: str = ""
    began: float = field(default_factory=time.time)
    arrived: float = field(default_factory=time.perf_counter)
    prompt_tokens: int = 0
    max_tokens: int = 0
    tokens: int = 0
    first_tokens: int = 0
    first_at: float = 0.0
    latest_at: float = 0.0
    completed: bool = False

    def on_event(self, event: GenerationEvent) -> None:
        """Called for each event of the answer, in order: keep it quick."""
        if isinstance(event, Delta):
            now, new = time.perf_counter(), len(event.token_ids)
            tally = self.tally
            assert tally is not None, "the model is known before its first token"
            if not self.first_at:
                self.phase, self.first_tokens = Phase.DECODING, new
                self.first_at = self.latest_at = now
                tally.first_token.observe(now - self.arrived)
            elif new and event.index == 0:  # of several choices, the first stands for all
                tally.between_tokens.observe((now - self.latest_at) / new, new)
                self.latest_at = now
            self.tokens += new
            tally.completion_tokens += new
        elif isinstance(event, Started):
            self.phase, self.detail = Phase.PREFILL, ""
            self.prompt_tokens = event.prompt_tokens
            self.max_tokens = event.max_tokens * self.choices
        elif isinstance(event, Preparing):
            self.detail = event.text
        elif isinstance(event, Completed) and self.tally is not None:
            self.tally.prompt_tokens += event.usage.prompt_tokens
            self.tally.cached_tokens += event.usage.cached_tokens
            # A token without text, such as the end's, comes in no Delta.
            self.tally.completion_tokens += event.usage.completion_tokens - self.tokens
            self.completed = True

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.arrived

    @property
    def tokens_per_second(self) -> float:
        """Of the answer so far, since its first piece, which may be of many tokens; 0 until then.
        Of several choices, all together."""
        after_first = self.tokens - self.first_tokens
        return after_first / (time.perf_counter() - self.first_at) if after_first else 0.0


@dataclass(slots=True, eq=False)
class ModelTally:
    """Totals of one model since the start. ``cached_tokens`` are those of the prompt tokens that
    were not computed anew; ``requests`` counts by outcome; ``unloads`` by reason; times are in
    seconds."""

    requests: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    waiting: Histogram = field(default_factory=lambda: Histogram(QUEUE_SECONDS))
    loading: Histogram = field(default_factory=lambda: Histogram(LOAD_SECONDS))
    load_failures: int = 0
    deaths: int = 0
    unloads: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory at ``time`` (time.time()); bytes. ``number`` counts up by one from sample to sample:
    clocks may be set back. ``router``: what this process holds, models included."""

    number: int
    time: float
    available: int
    router: int
    swap_used: int
    pressure: str


class Activity:
    """``live``: the requests under way, oldest first. ``tallies``: totals by model id; "" has the
    requests that named no model there is. ``memory``: one sample every five seconds, an hour of
    them."""

    def __init__(self) -> None:
        self.live: dict[int, LiveRequest] = {}
        self.tallies: dict[str, ModelTally] = {}
        self.memory: deque[MemorySample] = deque(maxlen=_SAMPLES)
        self.request_count = 0
        self._numbers = count(1)

    def tally(self, model: str) -> ModelTally:
        return self.tallies.setdefault(model, ModelTally())

    @contextmanager
    def request(
        self, kind: str, model: str | None, request_id: str, *, choices: int = 1
    ) -> Iterator[LiveRequest]:
        """A request, for as long as the block runs; how the block ends is how the request did."""
        self.request_count += 1
        live = LiveRequest(next(self._numbers), request_id, kind, model, choices)
        self.live[live.number] = live
        outcome = COMPLETED
        try:
            yield live
        except RouterError as error:
            outcome = error.code or type(error).__name__
            raise
        except Exception:
            outcome = FAULT
            raise
        except BaseException:  # GeneratorExit, CancelledError: nobody wants the answer any more
            outcome = COMPLETED if live.completed else CANCELLED
            raise
        finally:
            del self.live[live.number]
            (live.tally or self.tally("")).requests[outcome] += 1

    def sample(self, available: int, router: int, swap_used: int, pressure: str) -> None:
        """Remember how memory is now; bytes."""
        number = self.memory[-1].number + 1 if self.memory else 1
        sample = MemorySample(number, time.time(), available, router, swap_used, pressure)
        self.memory.append(sample)

    def meets(self, live: LiveRequest, model: str) -> None:
        """It is known now which model the request means."""
        live.model, live.tally = model, self.tally(model)

    def granted(self, live: LiveRequest) -> None:
        """Its model is in memory, and has a place for it."""
        assert live.tally is not None
        live.tally.waiting.observe(live.seconds)
        live.phase, live.detail = Phase.PREFILL, ""
