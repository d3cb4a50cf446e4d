"""Counts of how long things took, cheap enough for every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence


class Histogram:
    """``bounds`` are the upper ends of the buckets, ascending; the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Each bucket's upper end, as Prometheus writes it, and how many values are at most it."""
        ends = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        sum_so_far = 0
        for end, count in zip(ends, self.counts, strict=True):
            sum_so_far += count
            yield end, sum_so_far
