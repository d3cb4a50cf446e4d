"""Settings that are accepted and checked, and not acted on yet.

The one list of them: whoever makes a setting work takes its name out here.
"""

from __future__ import annotations

from mlx_router.config.fields import Section
from mlx_router.config.settings import Settings

PENDING_MODEL = ("draft_model",)


def pending(settings: Settings) -> list[str]:
    """Names of the settings that differ from their default and that nothing acts on."""
    return [
        f'models["{model}"].{name}'
        for model, entry in settings.models.items()
        for name in PENDING_MODEL
        if _is_set(entry, name)
    ]


def _is_set(section: Section, name: str) -> bool:
    value: object = getattr(section, name)
    return bool(value != type(section).model_fields[name].get_default(call_default_factory=True))
