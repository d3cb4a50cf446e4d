"""What a memory snapshot means: pure functions of numbers, without I/O or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mlx_router.domain import GIB, ModelCard, ModelKind, Pressure
from mlx_router.memory.probe import MemorySnapshot

DEFAULT_THRESHOLD_SHARE = 0.625

ORDER = tuple(Pressure)  # from normal to critical
THRESHOLD_SHARES = {Pressure.MODERATE: 0.8, Pressure.HIGH: 0.6, Pressure.CRITICAL: 0.4}
MAX_TOKENS_SHARES = {
    Pressure.NORMAL: 1.0,
    Pressure.MODERATE: 0.75,
    Pressure.HIGH: 0.5,
    Pressure.CRITICAL: 0.25,
}
RECOVERY_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The most tokens that an answer may have under each pressure."""

    normal: int
    moderate: int
    high: int
    critical: int

    @classmethod
    def for_discovered(cls, max_tokens: int) -> TokenLimits:
        """The limits of a model for which the configuration states none: all of ``max_tokens``, a
        half (at most 2048), a quarter (1024), an eighth (512)."""
        return cls(
            normal=max_tokens,
            moderate=max(min(max_tokens // 2, 2048), 1),
            high=max(min(max_tokens // 4, 1024), 1),
            critical=max(min(max_tokens // 8, 512), 1),
        )

    @classmethod
    def for_stated(cls, max_tokens: int) -> TokenLimits:
        """The limits of a model whose ``max_tokens`` is configured: 1, 0.75, 0.5 and 0.25 of it."""
        shares = {level.value: share for level, share in MAX_TOKENS_SHARES.items()}
        return cls(**{name: max(int(max_tokens * share), 1) for name, share in shares.items()})

    def capped(self, max_tokens: int) -> TokenLimits:
        """These limits, none above ``max_tokens``."""
        return TokenLimits(**{level.value: min(self.at(level), max_tokens) for level in Pressure})

    def at(self, level: Pressure) -> int:
        limit: int = getattr(self, level.value)
        return limit


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """Whether a model may be loaded. ``need`` and ``room`` are bytes; ``reason`` names both, is a
    sentence for people, and says why not if not."""

    allowed: bool
    reason: str
    need: int
    room: int


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """``threshold_bytes`` is the memory that the router counts on; ``safety_margin`` multiplies
    what a model is expected to need; the swap limits are percent of swap in use."""

    threshold_bytes: int
    safety_margin: float = 1.2
    swap_high_percent: float = 75.0
    swap_critical_percent: float = 90.0

    @classmethod
    def default_threshold(cls, total_bytes: int) -> int:
        """The threshold of a machine with so much memory, where none is configured."""
        return int(total_bytes * DEFAULT_THRESHOLD_SHARE)

    def limit(self, level: Pressure) -> float:
        """Bytes of available memory below which pressure is at least ``level``; 0 for normal."""
        return THRESHOLD_SHARES.get(level, 0.0) * self.threshold_bytes

    def level(self, snapshot: MemorySnapshot, before: Pressure = Pressure.NORMAL) -> Pressure:
        """The pressure: the worst that available memory, swap and the kernel say.

        Available memory counts against the threshold: below 0.8 of it moderate, below 0.6 high,
        below 0.4 critical. ``before`` is the pressure until now: a lower one begins when 0.95 of
        the available memory is enough for it, and 0.95 of the swap limit is not exceeded, so that
        hovering around a limit is one change and not many.
        """
        level = self._level(snapshot)
        if ORDER.index(level) >= ORDER.index(before):
            return level
        cautious = replace(
            snapshot,
            available=int(snapshot.available * RECOVERY_SHARE),
            swap_used=min(int(snapshot.swap_used / RECOVERY_SHARE), snapshot.swap_total),
        )
        return min(self._level(cautious), before, key=ORDER.index)

    def _level(self, snapshot: MemorySnapshot) -> Pressure:
        levels = [level for level in Pressure if snapshot.available < self.limit(level)]
        return max([*levels, self.system_level(snapshot)], key=ORDER.index)

    def system_level(self, snapshot: MemorySnapshot) -> Pressure:
        """The pressure that the system is under by its own account, swap and the kernel's word,
        however much is available."""
        levels = [Pressure.NORMAL]
        if snapshot.swap_percent > self.swap_high_percent:
            levels.append(Pressure.HIGH)
        if snapshot.swap_percent > self.swap_critical_percent:
            levels.append(Pressure.CRITICAL)
        if snapshot.kernel_pressure is not None:
            levels.append(snapshot.kernel_pressure)
        return max(levels, key=ORDER.index)

    def need(self, required_bytes: int) -> int:
        """Bytes that must be there for a model that takes ``required_bytes``."""
        return int(required_bytes * self.safety_margin)

    def check_load(
        self, required_bytes: int, snapshot: MemorySnapshot, reclaimable_bytes: int = 0
    ) -> LoadVerdict:
        """Whether a model fits. ``reclaimable_bytes`` is what unloading idle models would free.

        Refused if need (with the margin) is more than the room; and, unless it fits three times
        over, if swap is too full for the memory that is available: over 95 % with over 50 GB,
        over 90 % with over 20 GB, over 50 % with less.
        """
        need = self.need(required_bytes)
        room = snapshot.available + reclaimable_bytes
        numbers = f"it needs {_gb(need)} and there is room for {_gb(room)}"
        if reclaimable_bytes:
            numbers += f", counting {_gb(reclaimable_bytes)} that idle models would free"
        if need > room:
            return LoadVerdict(False, f"The model does not fit: {numbers}.", need, room)
        limit = self._swap_limit(snapshot)
        if snapshot.swap_percent > limit and room < 3 * need:
            used = f"{snapshot.swap_percent:.0f} % of swap is in use (limit {limit:.0f} %)"
            return LoadVerdict(False, f"The system is swapping: {used}; {numbers}.", need, room)
        return LoadVerdict(True, f"The model fits: {numbers}.", need, room)

    def refuses_loads(
        self,
        snapshot: MemorySnapshot,
        reclaimable_bytes: int = 0,
        before: Pressure = Pressure.NORMAL,
    ) -> bool:
        """Whether pressure is critical, and would stay so if idle models were unloaded. ``before``:
        as for :meth:`level`."""
        relieved = replace(snapshot, available=snapshot.available + reclaimable_bytes)
        return self.level(relieved, before) is Pressure.CRITICAL

    @staticmethod
    def recommended_model(
        cards: Iterable[ModelCard], snapshot: MemorySnapshot, pressure: Pressure
    ) -> ModelCard | None:
        """The largest model that fits into 0.8 of the available memory; under high or critical
        pressure the smallest of all. None if there is none that generates text."""
        candidates = sorted(
            (c for c in cards if c.usable and c.kind in (ModelKind.TEXT, ModelKind.VISION)),
            key=lambda card: (card.required_bytes, card.id),
        )
        if pressure in (Pressure.HIGH, Pressure.CRITICAL):
            return candidates[0] if candidates else None
        fitting = [c for c in candidates if c.required_bytes <= 0.8 * snapshot.available]
        return fitting[-1] if fitting else None

    @staticmethod
    def _swap_limit(snapshot: MemorySnapshot) -> float:
        if snapshot.available > 50 * GIB:
            return 95.0
        return 90.0 if snapshot.available > 20 * GIB else 50.0


def _gb(size: int) -> str:
    return f"{size / GIB:.1f} GB"
