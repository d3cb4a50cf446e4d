"""Memory: what a snapshot means, and where it comes from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.domain import ModelCard, ModelKind, Pressure
from mlx_router.memory import (
    FakeProbe,
    MemoryPolicy,
    MemorySnapshot,
    ResourceMonitor,
    SystemProbe,
    TokenLimits,
)

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


def test_the_default_threshold_is_five_eighths_of_all_memory() -> None:
    assert MemoryPolicy.default_threshold(64 * GB) == 40 * GB


# --- token limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "own", "expected"),
    [
        (Pressure.NORMAL, None, 4096),
        (Pressure.MODERATE, None, 3072),
        (Pressure.HIGH, None, 2048),
        (Pressure.CRITICAL, None, 1024),
        (Pressure.NORMAL, TokenLimits(8192, 2000, 1000, 500), 4096),
        (Pressure.MODERATE, TokenLimits(8192, 2000, 1000, 500), 2000),
        (Pressure.HIGH, TokenLimits(8192, 2000, 1000, 500), 1000),
        (Pressure.CRITICAL, TokenLimits(8192, 2000, 1000, 500), 500),
    ],
)
def test_token_limit_follows_pressure(
    level: Pressure, own: TokenLimits | None, expected: int
) -> None:
    assert policy().token_limit(level, own, 4096) == expected


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


@given(
    level=st.sampled_from(Pressure),
    max_tokens=st.integers(1, 1 << 20),
    own=st.none() | st.integers(1, 1 << 20).map(TokenLimits.for_discovered),
)
def test_token_limit_is_between_one_and_max_tokens(
    level: Pressure, max_tokens: int, own: TokenLimits | None
) -> None:
    assert 1 <= policy().token_limit(level, own, max_tokens) <= max_tokens


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
        chosen = rules.recommended_model(cards, snapshot(available_gb))
        assert chosen is not None
        assert chosen.id == expected
    under_high = rules.recommended_model(cards, snapshot(100, swap_percent=80))
    assert under_high is not None
    assert under_high.id == "small"
    assert rules.recommended_model([_card("huge", 99)], snapshot(10)) is None
    assert rules.recommended_model([], snapshot(1)) is None


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
