"""From a neighbour's file to a config of MLX Router."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlx_router.config.importing import known
from mlx_router.config.importing.known import Key
from mlx_router.config.importing.notes import Note, Outcome
from mlx_router.config.importing.yaml_lines import Mapping, read_yaml
from mlx_router.config.problems import Location, problem_lines
from mlx_router.config.settings import DefaultSettings, Settings
from mlx_router.errors import ConfigError

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # org/name
_KINDS: dict[str, tuple[type, ...]] = {
    "text": (str, int),  # a name may be a number
    "whole": (int,),
    "number": (int, float),
    "flag": (bool,),
    "any": (object,),
}
_WORDS = {
    "text": "a text",
    "whole": "a whole number",
    "number": "a number",
    "flag": "true or false",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """``config`` is valid; ``kind`` says in words what file it was, ``hub_models`` which models it
    names as on the Hugging Face Hub. ``notes`` are in the order of the file."""

    kind: str
    config: dict[str, Any]
    notes: tuple[Note, ...]
    hub_models: tuple[str, ...]


def import_file(path: Path) -> Imported:
    """Read a models.yaml, hub.yaml or config.yaml. Which it is, its content tells.

    Raises ConfigError if it is no YAML, none of these files, or has values that cannot be settings.
    What is wrong elsewhere is left out, and noted.
    """
    root = read_yaml(path)
    if isinstance(root.get("models"), dict) or "defaults" in root:
        raise ConfigError(f"{path}: is a config of MLX Router already; use --config {path}")
    if not isinstance(root.get("models"), list) or not root["models"]:
        raise ConfigError(
            f"{path}: has no list `models`, as an orchestrator's models.yaml, a hub.yaml and "
            "the config.yaml of mlx-openai-server have; name one of these"
        )
    work = _Conversion(path)
    kind = work.convert(root)
    try:
        Settings.model_validate(work.config)
    except ValidationError as error:
        innermost = sorted(work.lines.items(), key=lambda item: -len(item[0]))
        origins = {place: f"{path}, line {line}" for place, line in innermost}
        raise ConfigError("\n".join(problem_lines(error, str(path), origins))) from None
    notes = sorted(work.notes, key=lambda note: note.line)
    return Imported(kind, work.config, tuple(notes), tuple(work.hub_models))


@dataclass
class _Conversion:
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)  # of the file, by what it became
    notes: list[Note] = field(default_factory=list)
    hub_models: list[str] = field(default_factory=list)
    loaded_at_start: bool = False  # models that nothing is said of
    preloaded: dict[str | None, list[str]] = field(default_factory=dict)  # by group

    def convert(self, root: Mapping) -> str:
        """Fill ``config`` and ``notes``; the kind of the file in words."""
        count = len(root["models"])
        models = f"{count} {'model' if count == 1 else 'models'}"
        on_demand = any(
            isinstance(model, dict) and {"jit_enabled", "group"} & model.keys()
            for model in root["models"]
        )
        hub_keys = {
            "model_starting_port",
            "groups",
            "log_path",
            "enable_status_page",
            "host",
            "port",
        }
        if isinstance(root.get("server"), dict):
            kind, self.loaded_at_start = "a config.yaml of mlx-openai-server", True
        elif on_demand or hub_keys & root.keys():
            kind, self.loaded_at_start = "a hub.yaml", True
        else:
            kind = "an orchestrator's models.yaml"
        self._top(root)
        if isinstance(root.get("server"), dict):
            self._top(root["server"])
        elif root.get("server") is not None:
            said = f"{_shown(root['server'])} is no section with keys; it was left out"
            self._wrong(root.lines["server"], "server", said)
        self._groups(root)
        for number, model in enumerate(root["models"], start=1):
            if isinstance(model, Mapping):
                self._model(model, f"models[{number}]")
            else:
                self._wrong(root.lines["models"], f"models[{number}]", "is no entry with keys")
        self._make_room(root.lines["models"])
        return f"{kind} with {models}"

    # --- the server and its groups --------------------------------------------------------------

    def _top(self, section: Mapping) -> None:
        for key, value, found in self._known(section, known.TOP, "the file"):
            line = section.lines[key]
            if found.to:
                self._set(line, key, found.to.split("."), value)
            elif key == "base_path":
                self._set(line, key, ("server", "log_dir"), str(self._below(value) / "logs"))
            elif key == "log_path":
                self._set(line, key, ("server", "log_dir"), self._portable(value))
            elif key == "log_file":
                folder = str(self._below(value).parent)
                self._set(line, key, ("server", "log_dir"), folder)
            elif key == "log_level":
                if value.upper() == "DEBUG":
                    self._set(line, key, ("server", "debug"), True)
                elif value.upper() != "INFO":
                    self._left(line, key, "the log has what the level INFO has, or server.debug")
            elif key == "enable_status_page" and not value:
                self._left(line, key, "the status page /hub/ is always there; see server.api_keys")

    def _groups(self, root: Mapping) -> None:
        groups = root.get("groups")
        if groups is None:
            return
        if not isinstance(groups, list):
            self._wrong(root.lines["groups"], "groups", "must be a list; the groups were left out")
            return
        for group in groups:
            if not isinstance(group, Mapping) or not group.get("name"):
                line = group.line if isinstance(group, Mapping) else root.lines["groups"]
                self._wrong(line, "groups", "a group has no name; it was left out")
                continue
            name = str(group["name"])
            if name in self.config.get("groups", {}):
                self._wrong(group.line, f"group {name}", "is there twice; the first one holds")
                continue
            self.config.setdefault("groups", {})[name] = {}
            for key, value, found in self._known(group, known.GROUP, f"group {name}"):
                if found.to:
                    self._set(group.lines[key], key, ("groups", name, found.to), value)

    # --- a model --------------------------------------------------------------------------------

    def _model(self, model: Mapping, where: str) -> None:
        values = {key: value for key, value, _ in self._known(model, known.MODEL, where)}
        names = [values[key] for key in _NAMES if key in values]
        where = f"model {names[0]}" if names else where
        if "model_path" not in values:
            self._wrong(model.line, where, "has no model_path; it was left out")
            return
        kind = values.get("model_type", "lm")
        if kind not in known.SERVED_TYPES:
            line = model.lines["model_type"]
            if kind in known.UNSERVED_TYPES:
                self._left(line, where, f"{known.UNSERVED_TYPES[kind]}; the model was left out")
                return
            self._wrong(line, where, f"{_shown(kind)} is no model_type; the kind is detected")
        entry: dict[str, Any] = {}
        id_ = self._identity(model, where, values["model_path"], names, entry)
        models = self.config.setdefault("models", {})
        if any(id_.casefold() == other.casefold() for other in models):
            self._wrong(model.line, where, f"{id_} is there twice; the first entry holds")
            return
        models[id_] = entry
        self.lines["models", id_] = model.line
        for key, value in values.items():
            found = known.MODEL[key]
            if found.to:
                entry[found.to] = value * found.factor if found.factor != 1 else value
                self.lines["models", id_, found.to] = model.lines[key]
            elif found.why and value not in (None, False):
                self._left(model.lines[key], key, found.why)
        self._residence(model, where, id_, entry, values)
        said = ", ".join(f"{key} {_shown(value)}" for key, value in entry.items())
        self._note(Outcome.TAKEN, model.line, where, f"{id_}{': ' if said else ''}{said}")

    def _identity(
        self, model: Mapping, where: str, path: str, names: Sequence[str], entry: dict[str, Any]
    ) -> str:
        """The model's id; where it lies goes into the entry."""
        line = model.lines["model_path"]
        plain = not path.startswith(("/", "~", "$", "."))
        if plain and not os.path.isdir(self._below(path)) and _HUB_NAME.fullmatch(path):
            if not self.hub_models:
                self._set(line, where, ("defaults", "hf_cache"), True)
            self.hub_models.append(path)
            id_ = path
        else:
            folder = self._portable(path)
            entry["path"] = folder
            self.lines["models", names[0] if names else folder, "path"] = line
            if not os.path.isdir(self._below(path)):
                self._wrong(
                    line, where, f"there is no folder {folder}; correct its path afterwards"
                )
            id_ = names[0] if names else self._below(path).name
        if aliases := [name for name in dict.fromkeys(names) if name != id_]:
            free = [name for name in aliases if not self._is_taken(name)]
            for name in aliases:
                if name not in free:
                    self._wrong(model.line, where, f"{name} names another model already")
            if free:
                entry["aliases"] = free
        return id_

    def _residence(
        self, model: Mapping, where: str, id_: str, entry: dict[str, Any], values: dict[str, Any]
    ) -> None:
        """When it is loaded and unloaded, and with what it shares its place."""
        group = values.get("group")
        if group is not None and group in self.config.get("groups", {}):
            entry["group"] = group
        elif group is not None:
            there = ", ".join(self.config.get("groups", {})) or "none"
            said = f"no group {group} in groups (there: {there}); it was left out"
            self._wrong(model.lines["group"], where, said)
        if "kv_bits" in values:
            if values["kv_bits"] in (4, 8):
                entry["kv_bits"] = values["kv_bits"]
            else:
                self._left(model.lines["kv_bits"], "kv_bits", "4 or 8 only, else full precision")
        if "draft_model_path" in values:
            draft = values["draft_model_path"]
            is_folder = draft.startswith(("/", "~", "$", ".")) or os.path.isdir(self._below(draft))
            entry["draft_model"] = self._portable(draft) if is_folder else draft
        is_default = values.get("default") or values.get("is_default_model")
        if is_default and "model" not in self.config.get("defaults", {}):
            self._set(model.line, where, ("defaults", "model"), id_)
        on_demand = values.get("jit_enabled", False) or values.get("on_demand", False)
        if not (is_default or (self.loaded_at_start and not on_demand)):
            return
        together = self.preloaded.setdefault(entry.get("group"), [])
        room = self.config.get("groups", {}).get(entry.get("group"), {}).get("max_loaded")
        if isinstance(room, int) and len(together) >= room:
            said = f"is loaded when it is asked for: its group has room for {room} models"
            self._left(model.line, where, said)
            return
        together.append(id_)
        entry["preload"] = True

    def _make_room(self, line: int) -> None:
        """For all that are loaded at start, and for one that is not."""
        stay = sum(map(len, self.preloaded.values()))
        need = stay + (len(self.config.get("models", {})) > stay)
        if need > DefaultSettings().cache_size:
            self._set(line, "models", ("defaults", "cache_size"), min(need, 64))

    # --- small parts ----------------------------------------------------------------------------

    def _known(
        self, section: Mapping, keys: dict[str, Key], where: str
    ) -> Iterator[tuple[str, Any, Key]]:
        """The keys that such a section may have, with values of the right kind. A key that begins
        with "x-", "_" or "." is for notes and anchors."""
        for key, value in section.items():
            found = keys.get(key)
            line = section.lines[key]
            if found is None:
                if not key.startswith(("x-", "_", ".")):
                    near = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.6)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    self._wrong(line, key, f"is no known key of {where}; it was left out{hint}")
            elif value is None:
                continue
            elif not _is_kind(value, found.kind):
                said = f"{_shown(value)} is not {_WORDS[found.kind]}; it was left out"
                self._wrong(line, key, said)
            elif keys is known.TOP and found.why:
                self._left(line, key, found.why)
            else:
                yield key, str(value) if found.kind == "text" else value, found

    def _is_taken(self, name: str) -> bool:
        entries = self.config.get("models", {})
        taken = [alias for entry in entries.values() for alias in entry.get("aliases", ())]
        return name.casefold() in {other.casefold() for other in (*entries, *taken)}

    def _set(self, line: int, key: str, place: Sequence[str], value: Any) -> None:
        *parents, leaf = place
        section = self.config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
        self.lines[tuple(place)] = line
        self._note(Outcome.TAKEN, line, key, f"{'.'.join(place)} {_shown(value)}")

    def _below(self, path: str) -> Path:
        """A path of the file, which counts from the file's folder."""
        folder = os.path.expanduser(os.path.expandvars(path))
        return Path(os.path.normpath(self.path.absolute().parent / folder))

    def _portable(self, path: str) -> str:
        """The same path for the config: absolute, or with its ~ or variable."""
        return path if path.startswith(("/", "~", "$")) else str(self._below(path))

    def _note(self, outcome: Outcome, line: int, key: str, text: str) -> None:
        self.notes.append(Note(outcome, line, key, text))

    def _left(self, line: int, key: str, why: str) -> None:
        self._note(Outcome.LEFT, line, key, why)

    def _wrong(self, line: int, key: str, what: str) -> None:
        self._note(Outcome.WRONG, line, key, what)


_NAMES = ("name", "served_model_name", "model_id")


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind not in ("flag", "any"):
        return False
    return isinstance(value, _KINDS[kind])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else reprlib.repr(value)
