"""Markers that are expected right here, over any number of pieces."""

from __future__ import annotations

from collections.abc import Sequence


class MarkerReader:
    """Recognises one of several markers at the place where reading is.

    ``held`` is the part of a marker that was read and is not complete yet.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def read(self, text: str, pos: int, markers: Sequence[str]) -> tuple[int, str | None]:
        """Go on from ``pos``: where reading stopped, and the marker that is complete, if one is.

        Stopping at ``pos`` means that none of them stands here: ``held`` is no marker then.
        """
        for marker in markers:
            missing = marker[len(self.held) : len(self.held) + len(text) - pos]
            if missing and marker.startswith(self.held) and text.startswith(missing, pos):
                self.held += missing
                if self.held == marker:
                    self.held = ""
                    return pos + len(missing), marker
                return pos + len(missing), None
        return pos, None

    def take(self) -> str:
        """What was held, which is no marker."""
        held, self.held = self.held, ""
        return held
