"""What the scheduler knows of one model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """ABSENT until a load begins; UNLOADING until the memory is back."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


@dataclass(slots=True)
class Slot:
    """``need_bytes``: what loading it takes; ``held_bytes``: what unloading it would give back,
    once it is loaded. ``waiting`` maps request ids to the time they came, first come first;
    ``active`` holds the requests that use the model. ``closing``: somebody asked to unload it;
    ``yielding``: another model waits for its place. Either way newcomers wait, and it goes when
    its answers are done."""

    model: str
    need_bytes: int
    held_bytes: int = 0
    pinned: bool = False
    phase: Phase = Phase.ABSENT
    waiting: OrderedDict[int, float] = field(default_factory=OrderedDict)
    active: set[int] = field(default_factory=set)
    last_used: float = 0.0
    closing: bool = False
    yielding: bool = False

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
        return self.need_bytes if self.phase is Phase.LOADING else self.held_bytes

    @property
    def wants_load(self) -> bool:
        return self.phase is Phase.ABSENT and bool(self.waiting)

    @property
    def oldest_wait(self) -> float:
        """When the first of the waiting came; only asked while some wait."""
        return next(iter(self.waiting.values()))

    def leave(self) -> None:
        """It is gone from memory."""
        self.phase = Phase.ABSENT
        self.held_bytes = 0
        self.closing = self.yielding = False
