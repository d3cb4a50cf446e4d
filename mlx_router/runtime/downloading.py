"""What the config and the machine allow to be downloaded."""

from __future__ import annotations

from collections.abc import Callable

from mlx_router.config.settings import Settings
from mlx_router.domain import GIB
from mlx_router.downloads import Downloads, Rules
from mlx_router.errors import InsufficientMemory
from mlx_router.memory.monitor import ResourceMonitor


def make_downloads(
    settings: Callable[[], Settings], monitor: ResourceMonitor, refresh: Callable[[], object]
) -> Downloads:
    """``settings`` gives those in force at the moment; ``refresh`` looks for new models. Call it
    on the loop."""

    return Downloads(lambda name: download_rules(name, settings(), monitor), refresh)


def download_rules(name: str, settings: Settings, monitor: ResourceMonitor) -> Rules:
    """What holds for the download of the model ``name``."""
    defaults, entry = settings.defaults, settings.for_model(name)

    def check_memory(weight_bytes: int) -> None:
        stated = entry.required_memory_gb
        need = monitor.policy.need(weight_bytes if stated is None else int(stated * GIB))
        total = monitor.snapshot().total
        if need > total:
            raise InsufficientMemory(
                f"{name} is not downloaded: it would never fit, since it needs "
                f"{need / GIB:.1f} GB and this machine has {total / GIB:.1f} GB of memory. "
                "Ask for a smaller one, or one quantised to fewer bits.",
                param="model",
            )

    return Rules(
        allowed=defaults.allow_downloads,
        folder=defaults.model_directories()[0],
        trust_remote_code=entry.trust_remote_code,
        check_memory=check_memory,
    )
