"""Images and PDFs of requests: fetched, decoded and bounded before a model sees them."""

from mlx_router.media.loader import MediaLoader

__all__ = ["MediaLoader"]
