"""The config: one typed, frozen :class:`Settings`, and how it is read and documented."""

from mlx_router.config.loading import find_config, load_settings
from mlx_router.config.settings import (
    DefaultSettings,
    GroupSettings,
    ModelSettings,
    PressureLimits,
    ServerSettings,
    Settings,
)

__all__ = [
    "Settings",
    "DefaultSettings",
    "ServerSettings",
    "GroupSettings",
    "ModelSettings",
    "PressureLimits",
    "load_settings",
    "find_config",
]
