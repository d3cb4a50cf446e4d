"""Memory: what a snapshot means, and where it comes from."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.config.settings import Settings
from mlx_router.domain import MLXMemory, ModelCard, ModelKind, Pressure
from mlx_router.memory import (
    FakeProbe,
    MemoryPolicy,
    MemorySnapshot,
    ResourceMonitor,
    SystemProbe,
    TokenLimits,
)
from mlx_router.memory.probe import FootprintReader
from mlx_router.runtime.limits import token_limits

GB = 2**30
ORDER = list(Pressure)


def policy(threshold_gb: float = 10) -> MemoryPolicy:
    return MemoryPolicy(threshold_bytes=int(threshold_gb * GB))


def snapshot(available_gb: float, total_gb: float = 128, swap_percent: float = 0) -> MemorySnapshot:
    return MemorySnapshot(
        total=int(total_gb * GB),
        available=int(available_gb * GB),
        swap_total=100 * GB,
        swap_used=int(swap_percent * GB),
    )


# --- levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available_gb", "swap_percent", "expected"),
    [
        (64, 0, Pressure.NORMAL),
        (8.0, 0, Pressure.NORMAL),
        (7.9, 0, Pressure.MODERATE),
        (6.0, 0, Pressure.MODERATE),
        (5.9, 0, Pressure.HIGH),
        (4.0, 0, Pressure.HIGH),
        (3.9, 0, Pressure.CRITICAL),
        (0, 0, Pressure.CRITICAL),
        (64, 75, Pressure.NORMAL),
        (64, 76, Pressure.HIGH),
        (64, 90, Pressure.HIGH),
        (64, 91, Pressure.CRITICAL),
        (7.9, 76, Pressure.HIGH),
        (3.9, 76, Pressure.CRITICAL),
    ],
)
def test_level_is_the_worst_of_memory_and_swap(
    available_gb: float, swap_percent: float, expected: Pressure
) -> None:
    assert policy().level(snapshot(available_gb, swap_percent=swap_percent)) is expected


@pytest.mark.parametrize("kernel", [None, *Pressure])
def test_the_kernels_own_pressure_counts_too(kernel: Pressure | None) -> None:
    moderate = replace(snapshot(7), kernel_pressure=kernel)
    expected = max([Pressure.MODERATE, kernel or Pressure.NORMAL], key=ORDER.index)
    assert policy().level(moderate) is expected


@given(
    less=st.integers(0, 200 * GB),
    more=st.integers(0, 200 * GB),
    threshold=st.integers(0, 200 * GB),
    swap=st.integers(0, 100 * GB),
    kernel=st.sampled_from([None, *Pressure]),
)
def test_more_available_memory_never_means_more_pressure(
    less: int, more: int, threshold: int, swap: int, kernel: Pressure | None
) -> None:
    less, more = sorted((less, more))
    rules = MemoryPolicy(threshold_bytes=threshold)
    tight, roomy = (
        MemorySnapshot(
            total=200 * GB,
            available=available,
            swap_total=100 * GB,
            swap_used=swap,
            kernel_pressure=kernel,
        )
        for available in (less, more)
    )
    assert ORDER.index(rules.level(tight)) >= ORDER.index(rules.level(roomy))


SNAPSHOTS = st.builds(
    MemorySnapshot,
    total=st.just(200 * GB),
    available=st.integers(0, 200 * GB),
    swap_total=st.sampled_from([0, 100 * GB]),
    swap_used=st.integers(0, 100 * GB),
    kernel_pressure=st.sampled_from([None, *Pressure]),
)
POLICIES = st.builds(
    MemoryPolicy,
    threshold_bytes=st.integers(1, 300 * GB),
    swap_high_percent=st.integers(0, 80).map(float),
    swap_critical_percent=st.integers(80, 100).map(float),
)


@given(now=SNAPSHOTS, rules=POLICIES)
def test_the_level_is_what_its_definition_says(now: MemorySnapshot, rules: MemoryPolicy) -> None:
    share, swap = now.available / rules.threshold_bytes, now.swap_percent
    memory = 3 if share < 0.4 else 2 if share < 0.6 else 1 if share < 0.8 else 0
    used = 3 if swap > rules.swap_critical_percent else 2 if swap > rules.swap_high_percent else 0
    kernel = ORDER.index(now.kernel_pressure or Pressure.NORMAL)
    assert ORDER.index(rules.level(now)) == max(memory, used, kernel)


@given(now=SNAPSHOTS, rules=POLICIES, before=st.sampled_from(Pressure))
def test_a_level_lingers_but_is_never_too_low_nor_above_what_it_was(
    now: MemorySnapshot, rules: MemoryPolicy, before: Pressure
) -> None:
    plain, level = rules.level(now), rules.level(now, before)
    assert ORDER.index(plain) <= ORDER.index(level)
    assert ORDER.index(level) <= max(ORDER.index(plain), ORDER.index(before))
    assert rules.level(now, level) is level  # asking again changes nothing


@given(
    level=st.sampled_from(ORDER[1:]),
    shares=st.lists(st.floats(0.96, 1.04), min_size=10, max_size=40),
)
def test_memory_that_hovers_around_a_limit_changes_the_level_once(
    level: Pressure, shares: list[float]
) -> None:
    rules, probe = policy(), FakeProbe(snapshot(20))
    monitor = ResourceMonitor(probe, rules, max_age=-1)
    levels = []
    for share in shares:
        probe.current = snapshot(share * rules.limit(level) / GB)
        levels.append(monitor.pressure())
    assert sum(a is not b for a, b in pairwise(levels)) <= 1


@given(
    limit=st.sampled_from([75, 90]),
    shares=st.lists(st.floats(0.96, 1.04), min_size=10, max_size=40),
)
def test_swap_that_hovers_around_a_limit_changes_the_level_once(
    limit: int, shares: list[float]
) -> None:
    probe = FakeProbe(snapshot(64))
    monitor = ResourceMonitor(probe, policy(), max_age=-1)
    levels = []
    for share in shares:
        probe.current = snapshot(64, swap_percent=share * limit)
        levels.append(monitor.pressure())
    assert sum(a is not b for a, b in pairwise(levels)) <= 1


def test_the_default_threshold_is_five_eighths_of_all_memory() -> None:
    assert MemoryPolicy.default_threshold(64 * GB) == 40 * GB


# --- token limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (32768, TokenLimits(32768, 2048, 1024, 512)),
        (4096, TokenLimits(4096, 2048, 1024, 512)),
        (1000, TokenLimits(1000, 500, 250, 125)),
        (1, TokenLimits(1, 1, 1, 1)),
    ],
)
def test_a_discovered_model_gets_full_half_quarter_eighth(
    max_tokens: int, expected: TokenLimits
) -> None:
    assert TokenLimits.for_discovered(max_tokens) == expected


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (4096, TokenLimits(4096, 3072, 2048, 1024)),
        (1000, TokenLimits(1000, 750, 500, 250)),
        (1, TokenLimits(1, 1, 1, 1)),
    ],
)
def test_a_model_with_max_tokens_gets_shares_of_it(max_tokens: int, expected: TokenLimits) -> None:
    assert TokenLimits.for_stated(max_tokens) == expected


def _limits_of(entry: dict[str, Any] | None, context_length: int = 32768) -> TokenLimits:
    models = {} if entry is None else {"m": entry}
    settings = Settings.model_validate({"defaults": {"max_tokens": 8192}, "models": models})
    return token_limits(_card("m", 1, context_length=context_length), settings)


def test_a_models_own_limits_come_before_its_max_tokens_before_what_is_usual() -> None:
    own = {"normal": 9000, "moderate": 3000, "high": 2000, "critical": 10}
    assert _limits_of(None) == TokenLimits(8192, 2048, 1024, 512)
    assert _limits_of(None, context_length=2000) == TokenLimits(2000, 1000, 500, 250)
    assert _limits_of({"pinned": True}) == _limits_of(None)
    assert _limits_of({"max_tokens": 4096}) == TokenLimits(4096, 3072, 2048, 1024)
    assert _limits_of({"memory_pressure_max_tokens": own}) == TokenLimits(9000, 3000, 2000, 10)
    both = _limits_of({"memory_pressure_max_tokens": own, "max_tokens": 2500})
    assert both == TokenLimits(2500, 2500, 2000, 10)


@given(
    max_tokens=st.integers(1, 1 << 20),
    limits=st.sampled_from([TokenLimits.for_discovered, TokenLimits.for_stated]),
)
def test_token_limits_are_between_one_and_max_tokens_and_never_rise_with_pressure(
    max_tokens: int, limits: Callable[[int], TokenLimits]
) -> None:
    of_each = [limits(max_tokens).at(level) for level in ORDER]
    assert of_each[0] == max_tokens
    assert of_each == sorted(of_each, reverse=True)
    assert of_each[-1] >= 1


# --- loading --------------------------------------------------------------------------------


def test_a_load_needs_its_memory_times_the_safety_margin() -> None:
    rules = policy()
    assert rules.check_load(10 * GB, snapshot(12.1)).allowed
    refused = rules.check_load(10 * GB, snapshot(11.9))
    assert not refused.allowed
    assert (refused.need, refused.room) == (12 * GB, int(11.9 * GB))


def test_a_refused_load_names_need_room_and_what_could_be_unloaded() -> None:
    verdict = policy().check_load(50 * GB, snapshot(8), reclaimable_bytes=4 * GB)
    assert not verdict.allowed
    assert "needs 60.0 GB" in verdict.reason
    assert "room for 12.0 GB" in verdict.reason
    assert "4.0 GB that idle models would free" in verdict.reason


def test_memory_that_idle_models_would_free_counts_as_room() -> None:
    rules = policy()
    assert not rules.check_load(10 * GB, snapshot(6)).allowed
    assert rules.check_load(10 * GB, snapshot(6), reclaimable_bytes=6 * GB).allowed


@pytest.mark.parametrize(
    ("available_gb", "swap_percent", "required_gb", "allowed"),
    [
        (60, 94, 40, True),
        (60, 96, 40, False),
        (60, 96, 16, True),  # 19.2 GB with the margin: it fits three times over
        (30, 89, 20, True),
        (30, 91, 20, False),
        (30, 91, 8, True),
        (10, 49, 5, True),
        (10, 51, 5, False),
        (10, 51, 2, True),
    ],
)
def test_a_load_into_a_swapping_system_is_refused_unless_it_fits_three_times(
    available_gb: float, swap_percent: float, required_gb: int, allowed: bool
) -> None:
    verdict = policy().check_load(
        required_gb * GB, snapshot(available_gb, swap_percent=swap_percent)
    )
    assert verdict.allowed is allowed
    assert ("swap" in verdict.reason) is not allowed


@given(
    required=st.integers(0, 300 * GB),
    available=st.integers(0, 200 * GB),
    reclaimable=st.integers(0, 200 * GB),
    swap=st.integers(0, 100 * GB),
)
def test_no_load_is_allowed_that_does_not_fit(
    required: int, available: int, reclaimable: int, swap: int
) -> None:
    now = MemorySnapshot(total=200 * GB, available=available, swap_total=100 * GB, swap_used=swap)
    verdict = policy().check_load(required, now, reclaimable)
    assert verdict.room == available + reclaimable
    assert verdict.need <= verdict.room or not verdict.allowed


def test_critical_pressure_refuses_loads_unless_idle_models_would_relieve_it() -> None:
    rules = policy()
    assert rules.refuses_loads(snapshot(3))
    assert not rules.refuses_loads(snapshot(3), reclaimable_bytes=2 * GB)
    assert not rules.refuses_loads(snapshot(5))
    assert rules.refuses_loads(snapshot(64, swap_percent=95), reclaimable_bytes=64 * GB)


def test_loads_are_refused_as_long_as_pressure_is_said_to_be_critical() -> None:
    rules = policy()
    assert not rules.refuses_loads(snapshot(4.1))
    assert rules.refuses_loads(snapshot(4.1), before=Pressure.CRITICAL)
    assert not rules.refuses_loads(snapshot(4.3), before=Pressure.CRITICAL)


def _card(name: str, required_gb: float, **changes: object) -> ModelCard:
    card = ModelCard(
        id=name,
        path=Path(name),
        kind=ModelKind.TEXT,
        architecture="llama",
        required_bytes=int(required_gb * GB),
    )
    return replace(card, **changes)  # type: ignore[arg-type]


def test_the_recommended_model_is_the_largest_that_fits_in_four_fifths() -> None:
    cards = [
        _card("small", 2),
        _card("middle", 8),
        _card("large", 9),
        _card("broken", 7.9, problem="model.safetensors is missing"),
        _card("encoder", 7.9, kind=ModelKind.EMBEDDING),
    ]
    rules = policy()
    for available_gb, expected in ((10, "middle"), (100, "large"), (8.1, "small")):
        chosen = rules.recommended_model(cards, snapshot(available_gb), Pressure.MODERATE)
        assert chosen is not None
        assert chosen.id == expected
    for level in (Pressure.HIGH, Pressure.CRITICAL):
        smallest = rules.recommended_model(cards, snapshot(100), level)
        assert smallest is not None
        assert smallest.id == "small"
    assert rules.recommended_model([_card("huge", 99)], snapshot(10), Pressure.NORMAL) is None
    assert rules.recommended_model([], snapshot(1), Pressure.CRITICAL) is None


# --- snapshots ------------------------------------------------------------------------------


def test_snapshot_percentages() -> None:
    now = MemorySnapshot(total=100, available=40, free=30, swap_total=50, swap_used=10, used=60)
    assert now.used_percent == pytest.approx(60)
    assert now.swap_percent == pytest.approx(20)
    assert now.fragmentation_score == pytest.approx(0.25)


@given(
    total=st.integers(0, 1 << 50),
    available=st.integers(0, 1 << 50),
    free=st.integers(0, 1 << 50),
)
def test_percentages_and_score_stay_in_range(total: int, available: int, free: int) -> None:
    now = MemorySnapshot(total=total, available=available, free=free)
    assert 0 <= now.used_percent <= 100
    assert now.swap_percent == 0
    assert 0 <= now.fragmentation_score <= 1


def test_the_system_probe_tells_plausible_numbers() -> None:
    now = SystemProbe().snapshot()
    assert 0 < now.available <= now.total
    assert now.used + now.available == now.total
    assert now.free <= now.total
    if sys.platform != "darwin":
        assert now.kernel_pressure is None


@pytest.mark.parametrize(
    ("kernel_level", "expected"),
    [
        (1, Pressure.NORMAL),
        (2, Pressure.MODERATE),
        (4, Pressure.CRITICAL),
        (7, None),
        (None, None),
    ],
)
def test_macos_pressure_levels(kernel_level: int | None, expected: Pressure | None) -> None:
    probe = SystemProbe(kernel_level=lambda: kernel_level)
    assert probe.snapshot().kernel_pressure is expected


def test_where_swap_grows_on_demand_its_share_is_of_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS has made one small swap file, and uses most of it."""
    nowhere = Path("/nowhere")
    swap = SimpleNamespace(total=GB, used=700 * 2**20)
    monkeypatch.setattr("psutil.swap_memory", lambda: swap)
    fixed = SystemProbe(nowhere, nowhere, swap_grows=False).snapshot()
    assert fixed.swap_percent == pytest.approx(100 * swap.used / GB)
    grows = SystemProbe(nowhere, nowhere, swap_grows=True).snapshot()
    assert grows.swap_total == grows.total > swap.total
    assert grows.swap_used == swap.used
    swap.total = swap.used = 1 << 50
    assert SystemProbe(swap_grows=True).snapshot().swap_percent == 100


class Rusage:
    """macOS's proc_pid_rusage, as its header describes it: fills in a struct rusage_info_v0."""

    def __init__(self, footprint: int, result: int = 0) -> None:
        self.footprint, self.result = footprint, result

    def __call__(self, pid: int, flavor: int, buffer: Any) -> int:
        assert (pid, flavor) == (os.getpid(), 0)
        numbers = [*range(1, 8), self.footprint, 9, 10]
        filled = struct.pack("=16s10Q", b"u" * 16, *numbers)
        ctypes.memmove(buffer, filled, len(filled))
        return self.result


def test_the_footprint_is_read_where_macos_puts_it() -> None:
    assert FootprintReader(Rusage(7 * GB + 1))() == 7 * GB + 1
    probe = SystemProbe(process=FootprintReader(Rusage(5 * GB)))
    assert probe.snapshot().process == 5 * GB


def test_a_kernel_that_does_not_tell_the_footprint_leaves_the_resident_size() -> None:
    assert 0 < FootprintReader(Rusage(1 << 60, result=-1))() < 1 << 50


def test_the_process_is_told_from_the_machine() -> None:
    before = SystemProbe().snapshot()
    held = b"x" * (64 * 2**20)
    after = SystemProbe().snapshot()
    assert after.process - before.process > len(held) // 2
    assert after.process < after.total


# --- what MLX holds ---------------------------------------------------------------------------


@given(
    total=st.integers(0, 100 * GB),
    share=st.floats(0, 1),
    active=st.integers(0, 100 * GB),
    cache=st.integers(0, 100 * GB),
    in_ram=st.booleans(),
)
def test_what_mlx_keeps_for_reuse_is_available(
    total: int, share: float, active: int, cache: int, in_ram: bool
) -> None:
    available = int(total * share)
    plain = MemorySnapshot(total=total, available=available, used=total - available)
    now = plain.with_mlx(MLXMemory(active, cache, active + cache, in_ram))
    assert (now.mlx_active, now.mlx_cache, now.mlx_peak) == (active, cache, active + cache)
    assert now.available == (min(available + cache, total) if in_ram else available)
    assert now.used == now.total - now.available


def test_the_monitor_asks_mlx_only_when_it_reads() -> None:
    told = [None, MLXMemory(3 * GB, 2 * GB, 6 * GB)]
    monitor = ResourceMonitor(
        FakeProbe(snapshot(3)), policy(), mlx_memory=lambda: told.pop(0), clock=lambda: 0.0
    )
    assert monitor.snapshot().available == 3 * GB
    assert monitor.pressure() is Pressure.CRITICAL
    assert monitor.fresh().available == 5 * GB
    assert monitor.pressure() is Pressure.HIGH
    assert told == []


def test_reading_memory_imports_no_mlx_and_sees_it_once_it_is_there() -> None:
    code = (
        "import sys\n"
        "from mlx_router.config.settings import Settings\n"
        "from mlx_router.runtime.build import make_monitor\n"
        "monitor = make_monitor(Settings())\n"
        "now = monitor.fresh()\n"
        "assert now.process > 0 and now.mlx_active == 0\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'mlx']\n"
        "import mlx_router.engine.device, mlx.core as mx\n"
        "weights = mx.ones((1000, 1000))\n"
        "mx.eval(weights)\n"
        "now = monitor.fresh()\n"
        "assert now.mlx_active >= 4_000_000 and now.mlx_peak >= now.mlx_active\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _cgroup(folder: Path, limit: str, current: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\nslab 5\n")


def test_a_container_limit_below_ram_is_the_total(tmp_path: Path) -> None:
    membership = tmp_path / "self"
    membership.write_text("0::/box/inner\n")
    root = tmp_path / "cgroup"
    mib = 2**20
    _cgroup(root / "box", str(200 * mib), 80 * mib, inactive=30 * mib)
    _cgroup(root / "box" / "inner", "max", 10 * mib)
    now = SystemProbe(root, membership).snapshot()
    assert now.total == 200 * mib
    assert now.available == 150 * mib
    assert now.free == 120 * mib
    assert now.used == 50 * mib


@pytest.mark.parametrize("limit", ["max", str(1 << 60), "nonsense"])
def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path, limit: str) -> None:
    membership = tmp_path / "self"
    membership.write_text("0::/\n")
    _cgroup(tmp_path / "cgroup", limit, 5)
    limited = SystemProbe(tmp_path / "cgroup", membership).snapshot()
    assert limited.total == SystemProbe(tmp_path / "none", tmp_path / "none").snapshot().total


# --- the monitor ----------------------------------------------------------------------------


def test_the_monitor_reads_at_most_once_a_quarter_second() -> None:
    now = 100.0
    probe = FakeProbe(snapshot(20))
    monitor = ResourceMonitor(probe, policy(), clock=lambda: now)
    assert monitor.pressure() is Pressure.NORMAL
    probe.current = snapshot(1)
    now += 0.2
    assert monitor.pressure() is Pressure.NORMAL
    assert probe.reads == 1
    now += 0.1
    assert monitor.pressure() is Pressure.CRITICAL
    assert probe.reads == 2


def test_a_fresh_snapshot_does_not_wait() -> None:
    probe = FakeProbe(snapshot(20))
    monitor = ResourceMonitor(probe, policy(), clock=lambda: 0.0)
    assert monitor.snapshot().available == 20 * GB
    probe.current = snapshot(1)
    assert monitor.snapshot().available == 20 * GB
    assert monitor.fresh().available == 1 * GB
    assert monitor.snapshot().available == 1 * GB


def test_pressure_rises_at_once_and_falls_with_hysteresis() -> None:
    probe = FakeProbe(snapshot(20))
    monitor = ResourceMonitor(probe, policy(), max_age=-1)

    def pressure_at(available_gb: float) -> Pressure:
        probe.current = snapshot(available_gb)
        return monitor.pressure()

    steps = [pressure_at(gb) for gb in (20, 7.9, 8.1, 8.3, 8.5, 3.9, 4.1, 5.0, 20)]
    assert steps == [
        Pressure.NORMAL,
        Pressure.MODERATE,
        Pressure.MODERATE,  # hardly above the limit of 8
        Pressure.MODERATE,
        Pressure.NORMAL,
        Pressure.CRITICAL,
        Pressure.CRITICAL,
        Pressure.HIGH,
        Pressure.NORMAL,
    ]


def test_a_new_policy_takes_effect_at_once() -> None:
    monitor = ResourceMonitor(FakeProbe(snapshot(9)), policy(10))
    assert monitor.pressure() is Pressure.NORMAL
    monitor.policy = policy(20)
    assert monitor.pressure() is Pressure.HIGH
