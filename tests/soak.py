"""How long the tests go on that look for what piles up."""

from __future__ import annotations

import os

# TEST_SOAK=10 makes them ten times as long; not MLX_ROUTER_…, which is taken from each test.
SCALE = float(os.environ.get("TEST_SOAK", "1"))


def times(count: int) -> int:
    """How often a test does something that it does ``count`` times in a short run."""
    return round(count * SCALE)
