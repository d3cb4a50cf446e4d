"""mlx-vlm, imported by one thread at a time."""

from __future__ import annotations

import threading
from typing import Any

from mlx_router.engine import device

_lock = threading.Lock()


def import_vlm(config: dict[str, Any] | None = None) -> None:
    """Import mlx-vlm and, given a config.json, its family, whose processor it then puts before that
    of transformers. Takes seconds the first time. Raises ModuleNotFoundError if mlx-vlm is not
    installed, and ValueError for a family that it does not have.

    Its modules import each other in a circle: two threads that each begin at another one, as an
    engine and a codec do, would wait for each other, and Python would fail one of them.
    """
    device.prepare()
    with _lock:
        import mlx_vlm.embedding_loader
        import mlx_vlm.generate
        import mlx_vlm.models.base
        import mlx_vlm.models.cache
        import mlx_vlm.prompt_utils
        import mlx_vlm.utils

        if config is not None:
            mlx_vlm.utils.get_model_and_args(config)
