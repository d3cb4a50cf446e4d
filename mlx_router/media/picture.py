"""Pixels with the name that they are known by."""

from __future__ import annotations

import hashlib

from mlx_router.domain import Picture


def picture(width: int, height: int, rgb: bytes) -> Picture:
    """``rgb``: ``3 * width * height`` bytes."""
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(rgb)
    return Picture(width, height, rgb, digest.hexdigest())
