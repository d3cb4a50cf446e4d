"""What entries of the config say against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_router.config.settings import DefaultSettings, GroupSettings, ModelSettings


def clashes(
    models: Mapping[str, ModelSettings],
    groups: Mapping[str, GroupSettings] | None,
    defaults: DefaultSettings | None,
) -> list[str]:
    """A sentence for each clash, which says what to do. ``groups`` and ``defaults`` are None if
    they are at fault themselves."""
    found = list(_names(models))
    if groups is not None:
        found += _groups(models, groups)
    stay = [model for model, entry in models.items() if entry.preload or entry.pinned]
    if defaults is not None and len(stay) > defaults.cache_size:
        found.append(
            f"{', '.join(stay)} are pinned or preloaded, and cache_size lets {defaults.cache_size} "
            "be loaded: raise defaults.cache_size"
        )
    return found


def _names(models: Mapping[str, ModelSettings]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for model in models:
        owner = owners.setdefault(model.lower(), model)
        if owner != model:
            yield f"{owner} and {model} are one model, since case does not matter: keep one entry"
    for model, entry in models.items():
        for alias in dict.fromkeys(alias.lower() for alias in entry.aliases):
            owner = owners.setdefault(alias, model)
            if owner != model:
                yield f"{alias!r} names both {owner} and {model}: give each alias to one model"


def _groups(
    models: Mapping[str, ModelSettings], groups: Mapping[str, GroupSettings]
) -> Iterator[str]:
    for model, entry in models.items():
        if entry.group is not None and entry.group not in groups:
            yield (
                f"{model} is in the group {entry.group!r}, which groups does not have "
                f"(there: {', '.join(groups) or 'none'}): add it there, or leave it out here"
            )
    for name, group in groups.items():
        stay = [m for m, e in models.items() if e.group == name and (e.pinned or e.preload)]
        if group.max_loaded is not None and len(stay) > group.max_loaded:
            yield (
                f"{', '.join(stay)} are pinned or preloaded, and all in the group {name!r}, "
                f"which lets {group.max_loaded} be loaded: raise its max_loaded"
            )
