"""What was found: results with their aims, a little statistics, and the tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_router.cli.bench_report import processor

# --- statistics -----------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("nothing was measured")
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all values do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round: what a busy machine does to both of a round cancels out."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """``0.95 to 1.02``; of a single value, that value."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def number(value: float) -> str:
    """For people; verdicts go by the value itself."""
    size = abs(value)
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3f}"


# --- results --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aim:
    """What a value should be: at least ``limit``, or at most."""

    limit: float
    at_least: bool

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def at_least(limit: float) -> Aim:
    return Aim(limit, at_least=True)


def at_most(limit: float) -> Aim:
    return Aim(limit, at_least=False)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report. ``value`` None: it could not be measured, ``problem`` says why.
    ``samples`` are the single measurements behind it, by what they are."""

    group: str
    name: str
    value: float | None
    unit: str = ""
    aim: Aim | None = None
    detail: str = ""
    problem: str | None = None
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "FAILED"
        if self.aim is None:
            return "-"
        return "met" if self.aim.met_by(self.value) else "MISSED"

    @property
    def shown(self) -> str:
        return "-" if self.value is None else f"{number(self.value)} {self.unit}".strip()


def failed(group: str, name: str, problem: str) -> Result:
    return Result(group, name, None, problem=problem)


# --- where and with what --------------------------------------------------------------------


def conditions(command: Sequence[str], **more: str) -> dict[str, str]:
    """What a reader must know to judge the numbers, by name. Names no paths."""
    packages = ("mlx", "mlx-lm", "mlx-router", "numpy", "uvloop")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    one, five, _ = os.getloadavg()
    return {
        "command": shlex.join(command),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": _revision(),
        "versions": f"{versions}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, "
        f"{os.cpu_count()} cores",
        "load at start": f"{one:.2f} (1 min), {five:.2f} (5 min)",
        **more,
    }


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def quotient(
    group: str,
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    aim: Aim | None = None,
    remark: str = "",
) -> Result:
    """``above`` ÷ ``below``, both in seconds, round by round."""
    quotients = ratios(above, below)
    detail = f"{number(1e3 * median(above))} ÷ {number(1e3 * median(below))} ms; "
    detail += f"rounds {spread(quotients)}"
    return Result(
        group,
        name,
        median(quotients),
        "x",
        aim,
        f"{detail}; {remark}" if remark else detail,
        samples={"above s": list(above), "below s": list(below)},
    )


# --- tables ---------------------------------------------------------------------------------

_COLUMNS = ("measured", "result", "aim", "verdict", "from")


def _row(result: Result) -> tuple[str, str, str, str, str]:
    detail = result.detail
    if result.problem is not None:
        lines = result.problem.splitlines()
        detail = lines[0] if lines else "?"
    return (result.name, result.shown, str(result.aim or "-"), result.verdict, detail)


def summary(results: Sequence[Result]) -> str:
    """``12 aims met, 1 MISSED, 0 FAILED``"""
    verdicts = [result.verdict for result in results]
    counts = (verdicts.count(verdict) for verdict in ("met", "MISSED", "FAILED"))
    return "{} aims met, {} MISSED, {} measurements FAILED".format(*counts)


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def as_text(results: Sequence[Result], facts: Mapping[str, str], warning: str | None) -> str:
    """For a terminal: columns in line, a table a group."""
    lines = [f"{name + ':':<15}{value}" for name, value in facts.items()]
    rows = [_COLUMNS, *map(_row, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for group, members in _groups(results).items():
        lines += ["", group]
        for row in (_COLUMNS, *map(_row, members)):
            padded = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
            lines.append("  " + "  ".join([*padded, row[4]]).rstrip())
    lines += ["", *_problems(results), summary(results)]
    return "\n".join([*lines, *([warning] if warning else [])]) + "\n"


def as_markdown(results: Sequence[Result], facts: Mapping[str, str], warning: str | None) -> str:
    lines = ["# Benchmarks", ""]
    lines += [f"**{warning}**", ""] if warning else []
    lines += [f"{summary(results)}.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    for group, members in _groups(results).items():
        lines += ["", f"## {group}", "", _line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        lines += [_line([_cell(cell) for cell in _row(result)]) for result in members]
    problems = _problems(results)
    if problems:
        lines += ["", "## What failed", "", "```", *problems, "```"]
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[Result], facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything, the single measurements included."""
    return {
        "conditions": dict(facts),
        "results": [{**asdict(result), "verdict": result.verdict} for result in results],
    }


def _problems(results: Sequence[Result]) -> list[str]:
    """The whole text of every problem that has more than a line, each once."""
    whole = dict.fromkeys(r.problem for r in results if r.problem and "\n" in r.problem)
    return [line for problem in whole for line in (*problem.splitlines(), "")]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
