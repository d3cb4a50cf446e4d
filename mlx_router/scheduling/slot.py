"""What the scheduler knows of one model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from mlx_router.domain import ModelState

# A model that others wait for keeps its place for a turn: for so many times as long as its load
# took, so that swapping costs a bounded share of the time, and until so many answers are served, so
# that it does not swap for each of them. Where answers take much longer than a load (and than two
# seconds) there is little to be saved, and a minute is enough in any case: nobody waits for ever.
TURN_LOADS = 3.0
TURN_ANSWERS = 3
LONG_TURN_LOADS = 12.0
LONG_TURN_SECONDS = 2.0
LONGEST_TURN_SECONDS = 60.0
# Idle within its turn, it is kept a moment for the next request of the same client, unless that one
# took longer than the longest such moment the last time: for a share of what loading it again would
# cost, but long enough for a client to read its answer and ask again.
LINGER_LOADS = 0.25
MIN_LINGER_SECONDS = 0.1
MAX_LINGER_SECONDS = 1.0


class Phase(StrEnum):
    """ABSENT until a load begins; UNLOADING until the memory is back."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


_STATES = {
    Phase.ABSENT: ModelState.UNLOADED,
    Phase.LOADING: ModelState.LOADING,
    Phase.READY: ModelState.READY,
    Phase.UNLOADING: ModelState.UNLOADING,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model as a request wants it. ``need_bytes``: what loading it takes. ``ttl_seconds``: how
    long it stays when idle; None: until its place is needed. Of the models of one ``group`` at most
    ``group_limit`` are loaded together; None: as many as there are places."""

    model: str
    need_bytes: int
    pinned: bool = False
    ttl_seconds: float | None = None
    group: str | None = None
    group_limit: int | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """``held_bytes``: what unloading it would give back, once it is loaded. ``waiting`` maps
    request ids to the time they came, first come first; ``active`` holds the requests that use the
    model, and ``served`` counts those that have used it since it was loaded. ``closing``: somebody
    asked to unload it; ``yielding``: another model waits for its place, and its turn is over.
    Either way newcomers wait, and it goes when its answers are done. ``pause``: how long nobody
    used it before its latest request came. Times are of the clock of the events."""

    wanted: Wanted
    phase: Phase = Phase.ABSENT
    held_bytes: int = 0
    waiting: OrderedDict[int, float] = field(default_factory=OrderedDict)
    active: set[int] = field(default_factory=set)
    last_used: float = 0.0
    load_began: float = 0.0
    ready_at: float = 0.0
    served: int = 0
    left_at: float = 0.0
    pause: float | None = None
    closing: bool = False
    yielding: bool = False

    @property
    def model(self) -> str:
        return self.wanted.model

    @property
    def pinned(self) -> bool:
        return self.wanted.pinned

    @property
    def admits(self) -> bool:
        return self.phase is Phase.READY and not self.closing and not self.yielding

    @property
    def occupies(self) -> bool:
        """Whether it holds a place and memory, or will in a moment, or does still."""
        return self.phase is not Phase.ABSENT

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it, or is about to."""
        return self.phase is Phase.READY and not self.active and (self.yielding or not self.waiting)

    @property
    def gives_back(self) -> int:
        """Bytes that unloading it frees; of a load under way, at most."""
        return self.wanted.need_bytes if self.phase is Phase.LOADING else self.held_bytes

    @property
    def wants_load(self) -> bool:
        return self.phase is Phase.ABSENT and bool(self.waiting)

    @property
    def state(self) -> ModelState:
        """The phase as others know it."""
        return ModelState.QUEUED if self.wants_load else _STATES[self.phase]

    @property
    def queued_since(self) -> float:
        """Since when its requests wait for a load; only asked while some wait. Those that were left
        over from its last turn queue behind the others again."""
        return max(next(iter(self.waiting.values())), self.left_at)

    @property
    def load_seconds(self) -> float:
        """How long its load took; only asked once it is loaded."""
        return self.ready_at - self.load_began

    @property
    def turn_ends(self) -> float:
        """When it has to yield to others, if some wait; with more answers served it is sooner."""
        turn = TURN_LOADS * self.load_seconds
        if self.served < TURN_ANSWERS:
            turn = max(LONG_TURN_LOADS * self.load_seconds, LONG_TURN_SECONDS)
        return self.ready_at + min(turn, LONGEST_TURN_SECONDS)

    @property
    def may_go_at(self) -> float:
        """When it may make room, if it stays idle."""
        if self.pause is not None and self.pause > MAX_LINGER_SECONDS:
            return self.last_used
        linger = LINGER_LOADS * self.load_seconds
        linger = min(max(linger, MIN_LINGER_SECONDS), MAX_LINGER_SECONDS)
        return min(self.turn_ends, self.last_used + linger)

    @property
    def expires_at(self) -> float | None:
        """When it goes, if it stays idle and nobody needs its place; None: never."""
        ttl = self.wanted.ttl_seconds
        return None if ttl is None or self.pinned else self.last_used + ttl

    def add(self, request: int, now: float) -> None:
        """A request has come for it."""
        if not self.active and not self.waiting and self.last_used:
            self.pause = now - self.last_used
        self.waiting[request] = now

    def remove(self, request: int, now: float) -> None:
        """A request wants it no more."""
        self.waiting.pop(request, None)
        if request in self.active:
            self.active.remove(request)
            self.served += 1
            self.last_used = now

    def begin_load(self, now: float) -> None:
        self.phase, self.load_began = Phase.LOADING, now

    def become_ready(self, held_bytes: int, now: float) -> None:
        self.phase, self.held_bytes = Phase.READY, held_bytes
        self.ready_at = self.last_used = now
        self.served = 0

    def leave(self, now: float) -> None:
        """It is gone from memory."""
        self.phase, self.left_at = Phase.ABSENT, now
        self.held_bytes = 0
        self.closing = self.yielding = False
