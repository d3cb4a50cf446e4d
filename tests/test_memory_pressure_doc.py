"""Every number in MEMORY_PRESSURE.md is what the code computes.

Tables follow a comment that names the function which makes them (this module, run as a program,
writes them), examples are settings and answers that are read or made for real, and numbers of the
text stand in code spans, which are compared one by one and in order. A number anywhere else fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router import MLXModelManager, Settings
from mlx_router.api.app import create_app
from mlx_router.api.status import STATUS
from mlx_router.domain import GIB, ModelCard, ModelKind, Pressure
from mlx_router.memory import FakeProbe, MemoryPolicy, MemorySnapshot, ResourceMonitor, TokenLimits
from mlx_router.memory.policy import (
    DEFAULT_THRESHOLD_SHARE,
    MAX_TOKENS_SHARES,
    RECOVERY_SHARE,
    THRESHOLD_SHARES,
)
from mlx_router.runtime.build import make_policy
from mlx_router.runtime.limits import token_limits
from mlx_router.scheduling import scheduler

DOCUMENT = Path(__file__).parent.parent / "MEMORY_PRESSURE.md"
OTHERS_GB = 6  # what is taken to be used by others
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)
COMMENT = re.compile(r"^ *<!-- computed: (\w+) -->\n\n?((?: *\|.*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]*)`")
NUMBER = re.compile(r"\d")


def sections() -> dict[str, str]:
    parts = HEADING.split(DOCUMENT.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections()


@dataclass(frozen=True)
class Machine:
    """The machine of a section that is named after its memory, with the settings shown there."""

    total_gb: int
    settings: Settings

    @classmethod
    def of(cls, title: str) -> Machine:
        (block,) = [text for kind, text in BLOCK.findall(SECTIONS[title]) if kind == "json"]
        return cls(int(title.removesuffix(" GB")), Settings.model_validate(json.loads(block)))

    @property
    def policy(self) -> MemoryPolicy:
        return make_policy(self.settings, self.total_gb * GIB)

    def cards(self) -> list[ModelCard]:
        return [
            ModelCard(
                id=name,
                path=Path(name),
                kind=ModelKind.TEXT,
                architecture="any",
                context_length=131_072,
                required_bytes=int((entry.required_memory_gb or 0) * GIB),
            )
            for name, entry in self.settings.models.items()
        ]

    def limits(self, card: ModelCard) -> TokenLimits:
        return token_limits(card, self.settings)

    def snapshot(self, *loaded: ModelCard) -> MemorySnapshot:
        """The memory with these models loaded."""
        total = self.total_gb * GIB
        used = OTHERS_GB * GIB + sum(card.required_bytes for card in loaded)
        return MemorySnapshot(total=total, available=total - used)


MACHINES = [title for title in SECTIONS if re.fullmatch(r"\d+ GB", title)]


# --- tables ---------------------------------------------------------------------------------


def table(head: list[str], *rows: list[str]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|\n" for line in lines
    )


def levels(_: str) -> str:
    swap = {Pressure.HIGH: "`swap_high_percent`", Pressure.CRITICAL: "`swap_critical_percent`"}
    rows = [
        [
            f"`{level}`",
            f"below {THRESHOLD_SHARES[level]:g} of the threshold"
            if level in THRESHOLD_SHARES
            else "all else",
            f"above {swap[level]}" if level in swap else "all else" * (level is Pressure.NORMAL),
            f"`{STATUS[level]}`",
        ]
        for level in Pressure
    ]
    return table(["level", "available memory", "or swap in use", "`status` in `/health`"], *rows)


def defaults(_: str) -> str:
    names = ["swap_high_percent", "swap_critical_percent", "safety_margin", "cache_size"]
    usual = Settings().defaults
    assert usual.memory_threshold_gb is None
    total = 1000 * GIB
    assert make_policy(Settings(), total).threshold_bytes == total * DEFAULT_THRESHOLD_SHARE
    return table(
        ["setting", "default"],
        ["`memory_threshold_gb`", f"{DEFAULT_THRESHOLD_SHARE:g} of the machine's memory"],
        *[[f"`{name}`", f"{getattr(usual, name):g}"] for name in names],
    )


def shares(_: str) -> str:
    stated, found = TokenLimits.for_stated(1000), TokenLimits.for_discovered(800)
    most = TokenLimits.for_discovered(10**6)
    rows = [[f"`{Pressure.NORMAL}`", "all of it", "all of it"]]
    for level in (Pressure.MODERATE, Pressure.HIGH, Pressure.CRITICAL):
        assert stated.at(level) / 1000 == MAX_TOKENS_SHARES[level]
        part = f"1/{800 // found.at(level)}, at most {most.at(level)}"
        rows.append([f"`{level}`", f"{stated.at(level) / 1000:g}", part])
    return table(["level", "with `max_tokens`", "without"], *rows)


def swap(_: str) -> str:
    """Found by asking: how full swap may be for a model that fits, but not three times over."""
    rules = MemoryPolicy(threshold_bytes=GIB)

    def most(available: int) -> int:
        return max(
            percent
            for percent in range(101)
            if rules.check_load(
                available // 2,
                MemorySnapshot(
                    total=4 * available, available=available, swap_total=100, swap_used=percent
                ),
            ).allowed
        )

    found = {gb: most(gb * GIB) for gb in range(1, 120)}
    steps = [gb for gb in found if gb + 1 in found and found[gb] != found[gb + 1]]
    rows = [[f"over {gb} GB", f"{found[gb + 1]} %"] for gb in reversed(steps)]
    return table(["available", "swap in use, at most"], *rows, ["less", f"{found[1]} %"])


def machine(title: str) -> str:
    one = Machine.of(title)
    policy, limits = one.policy, one.limits(one.cards()[0])
    swap_limits = {
        Pressure.HIGH: policy.swap_high_percent,
        Pressure.CRITICAL: policy.swap_critical_percent,
    }
    first = policy.limit(Pressure.MODERATE) / GIB
    rows = [
        [
            f"`{level}`",
            f"below {policy.limit(level) / GIB:g} GB"
            if level in THRESHOLD_SHARES
            else f"{first:g} GB or more",
            f"above {swap_limits[level]:g} %" if level in swap_limits else "",
            f"{limits.at(level)} tokens",
        ]
        for level in Pressure
    ]
    return table(["level", "available memory", "or swap in use", "answers of at most"], *rows)


def steps(title: str) -> str:
    """The models are loaded in the order of the settings, each beside those before it if it fits;
    else the first of them goes."""
    one = Machine.of(title)
    loaded: list[ModelCard] = []
    rows = [_step(one, "nothing", loaded, loaded)]
    for card in one.cards():
        before = list(loaded)
        reclaimable = 0
        while not one.policy.check_load(card.required_bytes, one.snapshot(*loaded)).allowed:
            reclaimable += loaded.pop(0).required_bytes
        loaded.append(card)
        rows.append(_step(one, f"{_short(card)}", before, loaded, reclaimable))
    head = ["load", "need", "room", "unloaded for it", "then available", "level", "its answers"]
    return table(head, *rows)


def _step(
    one: Machine,
    what: str,
    before: list[ModelCard],
    after: list[ModelCard],
    reclaimable: int = 0,
) -> list[str]:
    now = one.snapshot(*after)
    level = one.policy.level(now)
    available = f"{now.available / GIB:g} GB"
    if not after:
        return [what, "", "", "", available, f"`{level}`", ""]
    card = after[-1]
    verdict = one.policy.check_load(card.required_bytes, one.snapshot(*before), reclaimable)
    assert verdict.allowed
    gone = ", ".join(_short(other) for other in before if other not in after)
    return [
        f"{what}, {card.required_bytes / GIB:g} GB",
        f"{verdict.need / GIB:.3g} GB",
        f"{verdict.room / GIB:g} GB",
        gone,
        available,
        f"`{level}`",
        f"{one.limits(card).at(level)} tokens",
    ]


def _short(card: ModelCard) -> str:
    return f"`{card.short_name}`"


TABLES: dict[str, Callable[[str], str]] = {
    made.__name__: made for made in (levels, defaults, shares, swap, machine, steps)
}
WRITTEN = [
    (title, name, written)
    for title, text in SECTIONS.items()
    for name, written in COMMENT.findall(text)
]


@pytest.mark.parametrize(
    ("title", "name", "written"), WRITTEN, ids=lambda value: value.split("\n")[0][:20]
)
def test_tables_are_what_the_code_computes(title: str, name: str, written: str) -> None:
    expected = TABLES[name](title)
    assert re.sub(r"^ +", "", written, flags=re.MULTILINE) == expected, f"\n{expected}"


def test_all_machines_have_their_tables() -> None:
    assert MACHINES == ["16 GB", "32 GB", "64 GB", "128 GB"]
    for title in MACHINES:
        assert [name for where, name, _ in WRITTEN if where == title] == ["machine", "steps"]


# --- examples -------------------------------------------------------------------------------


async def answers(title: str, *loaded: ModelCard) -> tuple[Any, httpx.Headers]:
    """/v1/health, and the headers of an answer that asks for much, on this machine with these
    models loaded. The scripted model has the settings of the machine's first one."""
    one = Machine.of(title)
    first = next(iter(one.settings.models.values()))
    settings = one.settings.model_copy(update={"models": {"scripted": first}})
    monitor = ResourceMonitor(FakeProbe(one.snapshot(*loaded)), one.policy)
    async with MLXModelManager(settings, engine="scripted", monitor=monitor) as manager:
        transport = httpx.ASGITransport(app=create_app(manager, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            health = await client.get("/v1/health")
            body = {"model": "scripted", "max_tokens": 32_000}
            body["messages"] = [{"role": "user", "content": "Hello"}]
            answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    return health.json(), answer.headers


async def test_the_example_of_health_is_its_answer() -> None:
    title = "How to read `/v1/health` and the headers"
    (example,) = [text for kind, text in BLOCK.findall(SECTIONS[title]) if kind == "json"]
    assert "[32 GB machine](#32-gb)" in SECTIONS[title]
    health, _ = await answers("32 GB")
    shown = json.loads(example)
    assert shown == {"memory_limits": health["memory_limits"]}
    for name in ("memory_pressure", "memory", "router_memory"):
        assert f"`{name}`" in SECTIONS[title]
    mentioned = set(re.findall(r"`(\w+_gb|kernel_pressure)`", SECTIONS[title]))
    assert mentioned == set(health["router_memory"])


async def test_the_example_of_headers_is_what_an_answer_has() -> None:
    title = "How to read `/v1/health` and the headers"
    (example,) = [text for kind, text in BLOCK.findall(SECTIONS[title]) if kind == "http"]
    shown = dict(line.split(": ", 1) for line in example.splitlines())
    _, headers = await answers("16 GB", *Machine.of("16 GB").cards())
    assert shown == {name: headers[name] for name in shown}
    assert len(shown) == 3


# --- numbers of the text --------------------------------------------------------------------


def lower(threshold: int, title: str) -> list[str]:
    """With this threshold in place of the machine's."""
    one = Machine.of(title)
    card = one.cards()[0]
    policy = MemoryPolicy(threshold_bytes=threshold * GIB)
    left = one.snapshot(card)
    assert left.available <= threshold * GIB
    assert policy.level(left) is Pressure.NORMAL
    limits = one.limits(card)
    return [f"{threshold}", f"{policy.limit(Pressure.MODERATE) / GIB:g}", f"{limits.normal}"]


def loads_that_fit_so_many_times_ignore_swap() -> int:
    full = MemorySnapshot(total=GIB, available=GIB, swap_total=1, swap_used=1)
    rules = MemoryPolicy(threshold_bytes=GIB, safety_margin=1.0)
    return next(n for n in range(1, 99) if rules.check_load(GIB // n, full).allowed)


SPANS: dict[str, Callable[[], list[str]]] = {
    "What happens when memory runs short": lambda: [
        f"{scheduler.PRESSURE_SECONDS:g}",
        f"{scheduler.SHED_SECONDS:g}",
        f"{scheduler.SHED_LAST_SECONDS:g}",
        f"{RECOVERY_SHARE:g}",
        f"{RECOVERY_SHARE:g}",
    ],
    "Which settings there are": lambda: [f"{THRESHOLD_SHARES[Pressure.MODERATE]:g}"],
    "Why was a load refused?": lambda: [f"{loads_that_fit_so_many_times_ignore_swap()}"],
    "Worked examples": lambda: [f"{OTHERS_GB}"],
    "32 GB": lambda: lower(8, "32 GB"),
    "64 GB": lambda: lower(16, "64 GB"),
}
# What is a name, not a quantity, or is explained where it stands.
NAMES = re.compile(
    r"/v1/\w+|2\^30|\[32 GB machine\]\(#32-gb\)|a 16 GB machine has 16|a 503 |^\d\. "
)


@pytest.mark.parametrize("title", SECTIONS)
def test_numbers_in_the_text_are_what_the_code_computes(title: str) -> None:
    text = COMMENT.sub("", BLOCK.sub("", SECTIONS[title]))
    text = re.sub(NAMES.pattern, "", text, flags=re.MULTILINE)
    spans = [span for span in SPAN.findall(text) if NUMBER.search(span)]
    assert spans == SPANS.get(title, list)()
    rest = SPAN.sub("", text)
    assert not NUMBER.search(rest), [line for line in rest.splitlines() if NUMBER.search(line)]


def test_the_examples_are_the_usual_settings_for_machines_of_their_size() -> None:
    """Threshold, swap limits, models at once, and token limits of those that have their own."""
    expected = {
        "16 GB": (12, 95, 85, 2, {(4096, 2048, 1024, 512)}),
        "32 GB": (24, 95, 85, 2, {(8192, 4096, 2048, 1024)}),
        "64 GB": (48, 99, 90, 2, {(12288, 8192, 4096, 2048)}),
        "128 GB": (48, 99, 90, 3, {(12288, 8192, 4096, 2048)}),
    }
    for title in MACHINES:
        one = Machine.of(title)
        own = [entry.memory_pressure_max_tokens for entry in one.settings.models.values()]
        assert expected[title] == (
            one.policy.threshold_bytes / GIB,
            one.policy.swap_critical_percent,
            one.policy.swap_high_percent,
            one.settings.defaults.cache_size,
            {tuple(limits.limit(level) for level in Pressure) for limits in own if limits},
        )


if __name__ == "__main__":
    document = DOCUMENT.read_text()
    for title, text in SECTIONS.items():

        def written(match: re.Match[str], title: str = title) -> str:
            indent = " " * (len(match.group()) - len(match.group().lstrip(" ")))
            lines = [
                match.group().strip().split("\n")[0],
                "",
                *TABLES[match[1]](title).splitlines(),
            ]
            return "\n".join(indent + line if line else line for line in lines) + "\n"

        document = document.replace(text, COMMENT.sub(written, text))
    DOCUMENT.write_text(document)
