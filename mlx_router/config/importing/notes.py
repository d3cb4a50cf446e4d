"""What became of a key of an imported file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Taken over; left out, since there is no counterpart; or a fault of the file."""

    TAKEN = "taken"
    LEFT = "left"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Note:
    """``key`` as in the file, ``line`` from 1; ``text`` says what it became, why not, or what is
    wrong with it and what to do."""

    outcome: Outcome
    line: int
    key: str
    text: str
