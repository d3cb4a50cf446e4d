"""What differs between two configs, and when that takes effect in a running server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlx_router.config.describe import dotted
from mlx_router.config.settings import GroupSettings, ModelSettings, Settings


class TakesEffect(StrEnum):
    """When a changed setting is acted on."""

    NOW = "now"
    NEXT_LOAD = "when the model is loaded again"
    RESTART = "after a restart"


_RESTART: dict[str, tuple[str, ...]] = {
    "server": ("ip", "port", "debug", "log_dir", "grace_seconds"),
    "defaults": ("serialize_steps", "state_directory", "wired_limit"),
}
_NEXT_LOAD = {
    *("defaults.prefill_step_size", "defaults.prompt_lookup"),
    *("prefix_cache.memory_gb", "prefix_cache.disk_gb", "prefix_cache.directory"),
    *("defaults.max_batch_size", "defaults.warmup_tokens"),
}
_NEXT_LOAD_OF_MODEL = {
    *("path", "adapter_path", "draft_model", "chat_template", "trust_remote_code"),
    *("context_length", "supports_tools", "supports_vision", "required_memory_gb"),
    *("kv_bits", "prompt_lookup"),
}
_SECTIONS = ("defaults", "server", "media", "prefix_cache", "groups", "models")


@dataclass(frozen=True, slots=True)
class Change:
    """``setting`` as people write it: ``models["org/name"].pinned``. API keys are shown by their
    names alone."""

    setting: str
    before: Any
    after: Any
    takes_effect: TakesEffect

    def __str__(self) -> str:
        later = "" if self.takes_effect is TakesEffect.NOW else f" ({self.takes_effect})"
        if self.before == self.after:  # the same names, other keys
            return f"{self.setting}: changed{later}"
        return f"{self.setting}: {_shown(self.before)} -> {_shown(self.after)}{later}"


def changes(before: Settings, after: Settings) -> list[Change]:
    """Every setting whose value differs, in the order of the file."""
    old, new = _plain(before), _plain(after)
    return [
        Change(dotted(place), was, is_now, _takes_effect(place))
        for section in _SECTIONS
        for place, was, is_now in _differences((section,), old[section], new[section])
    ] + _key_changes(before, after)


def in_force(before: Settings, after: Settings) -> Settings:
    """The new settings as far as they can take effect without a restart."""
    update = {}
    for section, names in _RESTART.items():
        old = getattr(before, section)
        kept = {name: getattr(old, name) for name in names}
        update[section] = getattr(after, section).model_copy(update=kept)
    return after.model_copy(update=update)


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"server": {"api_keys"}})


def _differences(
    place: tuple[str, ...], old: Any, new: Any
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if old == new:
        return
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield place, old, new
        return
    absent = _absent(place)
    for name in {**old, **new}:
        yield from _differences((*place, name), old.get(name, absent), new.get(name, absent))


def _absent(place: tuple[str, ...]) -> Any:
    """What stands for an entry that is not there: one that says nothing."""
    match place:
        case ("models",):
            return ModelSettings().model_dump(mode="json")
        case ("groups",):
            return GroupSettings().model_dump(mode="json")
    return None


def _takes_effect(place: tuple[str, ...]) -> TakesEffect:
    section, name = place[0], place[-1]
    of_model = section == "models" and len(place) > 2
    if name in _RESTART.get(section, ()) or (of_model and name == "preload"):
        return TakesEffect.RESTART
    later = (of_model and name in _NEXT_LOAD_OF_MODEL) or ".".join(place) in _NEXT_LOAD
    return TakesEffect.NEXT_LOAD if later else TakesEffect.NOW


def _key_changes(before: Settings, after: Settings) -> list[Change]:
    old, new = before.server.api_keys, after.server.api_keys
    if old == new:
        return []
    return [Change("server.api_keys", list(old), list(new), TakesEffect.NOW)]


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
