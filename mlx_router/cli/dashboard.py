"""What GET /hub/status tells, drawn for a terminal: for ``status``, ``watch`` and ``models``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from mlx_router.cli.terminal import duration, gigabytes, printable, tokens
from mlx_router.domain import GIB, ModelState, Pressure

WIDE = 110  # columns from which there is room for more than what matters most
_BAR = 60
_RESTING = (ModelState.UNLOADED, ModelState.UNUSABLE)
_PRESSURE_STYLES = {
    Pressure.NORMAL: "green",
    Pressure.MODERATE: "yellow",
    Pressure.HIGH: "dark_orange",
    Pressure.CRITICAL: "bold red",
}
_STATE_STYLES = {ModelState.READY: "green", ModelState.UNLOADED: "dim", ModelState.UNUSABLE: "red"}
_SHORT = (Pressure.MODERATE, Pressure.HIGH, Pressure.CRITICAL)
_OF_MODEL = ("state", "memory_gb", "active_requests", "waiting_requests")
_OF_REQUEST = (
    "model", "phase", "prompt_tokens", "completion_tokens", "tokens_per_second", "seconds",
)  # fmt: skip
_BUSY_STYLE = "cyan"  # on its way in or out

Status = Mapping[str, Any]


def screen(status: Status, base: str, width: int, rows: int | None = None) -> Group:
    """All of it in ``width`` columns. ``rows``: how many lines the tables may have together: names
    are cut then, and the rest is counted. ``base``: the server's address."""
    models = [model for model in status["models"] if model["state"] not in _RESTING]
    requests: Sequence[Status] = status["requests"]
    most_models = most_requests = None
    if rows is not None:
        most_models = max(1, min(len(models), rows - min(len(requests), rows // 2)))
        most_requests = max(1, rows - min(len(models), most_models))
    names = _short_names(status)
    tables = _Tables(names, width, fold=rows is None)
    parts: list[RenderableType] = [
        *head(status, base),
        Text(),
        *memory(status, width),
        Text(),
        tables.loaded(status, models[:most_models]) if models else Text("No model is in memory."),
        _others(status, models, most_models),
        Text(),
    ]
    if not requests:
        parts.append(Text("No request is under way."))
        return Group(*parts)
    parts.append(tables.requests(requests[:most_requests]))
    rate = f"{status['tokens_per_second']:.1f} tokens/s together"
    parts.append(Text(f"{_counted(len(requests), 'request')} under way, {rate}", "dim"))
    return Group(*parts)


def head(status: Status, base: str) -> list[Text]:
    """Which server it is, and what it has done."""
    title = Text(f"MLX Router {status['version']}", "bold").append(f"  {base}", "not bold")
    if status["stopping"]:
        title.append("  shutting down", "bold red")
    facts = [
        f"up {duration(status['uptime_seconds'])}",
        _counted(status["request_count"], "request"),
        _counted(status["completion_tokens"], "token"),
    ]
    return [title, Text(", ".join(facts), "dim")]


def memory(status: Status, width: int) -> list[Text]:
    """A bar, what its parts are, and where pressure begins."""
    machine, limits = status["memory"], status["memory_limits"]
    pressure = Pressure(status["memory_pressure"])
    total, available = machine["total_gb"], machine["available_gb"]
    router = min(status["router_memory"]["process_gb"], max(total - available, 0.0))
    others = max(total - available - router, 0.0)
    style = _PRESSURE_STYLES[pressure]
    room = max(10, min(_BAR, width - 28))
    mine = max(_share(router, total, room), 1)
    taken = max(_share(router + others, total, room), mine)
    bar = Text("memory  ").append("█" * mine, style)
    bar.append("▒" * (taken - mine), "dim").append("░" * (room - taken), "dim")
    bar.append(f"  {pressure} pressure", style)
    parts = f"█ router {_gb(router)}  ▒ others {_gb(others)}  ░ available {_gb(available)}"
    below = [f"{level} {_gb(limits[f'{level}_below_gb'])}" for level in _SHORT]
    low = ", ".join(below).replace(" ", " below ", 1)
    if machine["swap_total_gb"]:
        low += f"; swap {machine['swap_percent']:.0f} %"
    return [bar, Text(f"        {parts} of {_gb(total)}"), Text(f"        {low}", "dim")]


def all_models(models: Iterable[Status], width: int) -> Table:
    """Every model that a server knows, one line each."""
    wide = width >= WIDE
    headers = ["model", ">context", ">needs", "state", ">memory", "pinned"]
    if wide:
        headers[1:1] = ["kind", ">size", "quant"]
    table = _table(headers, fold=True)
    for model in models:
        usable = model["state"] != ModelState.UNUSABLE
        needs = _gb(model["memory_requirements"]["required_gb"]) if usable else "-"
        cells = [
            Text(tokens(model["context_window"]) if usable else "-"),
            Text(needs),
            _state(model["state"]),
            Text(_gb(model["memory_gb"]) if model["memory_gb"] else "-"),
            Text("yes" if model["pinned"] else "-"),
        ]
        if wide:
            size = gigabytes(model["size_bytes"])
            cells[:0] = map(Text, (model["kind"], size, model["quantization"] or "-"))
        table.add_row(Text(printable(model["id"])), *cells)
    return table


def lines(status: Status) -> list[str]:
    """For files and programs: ``time name=value …``, one line for the server and one for every
    model in memory and every request."""
    memory, requests = status["memory"], status["requests"]
    server = {
        "pressure": status["memory_pressure"],
        "available_gb": memory["available_gb"],
        "router_gb": status["router_memory"]["process_gb"],
        "requests": len(requests),
        "waiting": sum(request["phase"] == "waiting" for request in requests),
        "tokens_per_second": status["tokens_per_second"],
    }
    models = [model for model in status["models"] if model["state"] not in _RESTING]
    found: list[Mapping[str, Any]] = [
        server,
        *({"model": each["id"], **{key: each[key] for key in _OF_MODEL}} for each in models),
        *({"request": each["id"], **{key: each[key] for key in _OF_REQUEST}} for each in requests),
    ]
    time = datetime.fromtimestamp(status["time"]).strftime("%H:%M:%S")
    return [" ".join([time, *(f"{k}={_word(v)}" for k, v in each.items())]) for each in found]


class _Tables:
    """``names``: what models are called; ``fold``: names that are too long go on in a second line,
    and are not cut."""

    def __init__(self, names: Mapping[str, str], width: int, *, fold: bool) -> None:
        self._names = names
        self._wide = width >= WIDE
        self._fold = fold

    def loaded(self, status: Status, models: Sequence[Status]) -> Table:
        idle = {model["id"]: model["idle_seconds"] for model in status["loaded_models"]}
        headers = ["model", "state", ">memory", ">active", ">waiting", ">idle", "pinned"]
        table = _table(headers, fold=self._fold)
        for model in models:
            resting = not model["active_requests"] and idle.get(model["id"])
            table.add_row(
                Text(self._names[model["id"]], "bold"),
                _state(model["state"]),
                Text(_gb(model["memory_gb"]) if model["memory_gb"] else "-"),
                Text(str(model["active_requests"])),
                Text(str(model["waiting_requests"])),
                Text(duration(idle[model["id"]]) if resting else "-"),
                Text("yes" if model["pinned"] else "-"),
            )
        return table

    def requests(self, requests: Sequence[Status]) -> Table:
        headers = ["request for", "phase", ">prompt", ">tokens", ">tokens/s", ">time"]
        table = _table([*headers, "id"] if self._wide else headers, fold=self._fold)
        for request in requests:
            model = request["model"] or "the default model"
            name = Text(self._names.get(model, printable(model)), "bold")
            if request["detail"]:
                name.append(f"\n{printable(request['detail'])}", "not bold dim")
            done = f"{request['completion_tokens']:,}"
            if self._wide and request["max_tokens"]:
                done += f" of {request['max_tokens']:,}"
            cells = [
                name,
                Text(request["phase"]),
                Text(f"{request['prompt_tokens']:,}" if request["prompt_tokens"] else "-"),
                Text(done),
                Text(f"{request['tokens_per_second']:.1f}"),
                Text(duration(request["seconds"])),
            ]
            if self._wide:
                cells.append(Text(printable(request["id"]), "dim"))
            table.add_row(*cells)
        return table


def _short_names(status: Status) -> dict[str, str]:
    """Of each model the name without its organisation, if no other one has the same."""
    ids = [model["id"] for model in status["models"]]
    short = Counter(name.rsplit("/", 1)[-1] for name in ids)
    return {
        name: printable(tail if short[tail := name.rsplit("/", 1)[-1]] == 1 else name)
        for name in ids
    }


def _others(status: Status, shown: Sequence[Status], most: int | None) -> Text:
    """How many models there are besides."""
    states = [model["state"] for model in status["models"]]
    hidden = len(shown) - len(shown[:most])
    counts = [
        (hidden, "more in memory"),
        (states.count(ModelState.UNLOADED), "not in memory"),
        (states.count(ModelState.UNUSABLE), "cannot be used"),
    ]
    said = ", ".join(f"{number} {what}" for number, what in counts if number)
    return Text(f"{said} (mlx-router models)" if said else "", "dim")


def _table(headers: Sequence[str], *, fold: bool) -> Table:
    """``>`` before a header: its column is aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    first, *others = headers
    table.add_column(first, overflow="fold" if fold else "ellipsis")
    for header in others:
        justify: JustifyMethod = "right" if header.startswith(">") else "left"
        table.add_column(header.removeprefix(">"), justify=justify, no_wrap=True)
    return table


def _state(state: str) -> Text:
    return Text(state, _STATE_STYLES.get(ModelState(state), _BUSY_STYLE))


def _share(part: float, total: float, room: int) -> int:
    return min(room, round(room * part / total)) if total else 0


def _gb(size: float) -> str:
    return gigabytes(int(size * GIB))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _word(value: object) -> str:
    text = printable(str(value))
    return f'"{text}"' if " " in text else text
