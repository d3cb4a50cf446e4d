"""The only reader of the machine's memory: psutil, and what psutil does not tell."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import psutil

from mlx_router.domain import MLXMemory, Pressure

_KERNEL_LEVELS = {1: Pressure.NORMAL, 2: Pressure.MODERATE, 4: Pressure.CRITICAL}


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """The memory of this machine, or of the container it is for us. All sizes are bytes.

    ``available`` can be had without swapping: free memory and caches that can be dropped.
    ``kernel_pressure`` is what the kernel itself says (macOS); None where it says nothing.
    ``process`` is what the system counts as this process's own; the rest is MLX's account of it.
    """

    total: int
    available: int
    used: int = 0
    free: int = 0
    buffers: int = 0
    cached: int = 0
    swap_total: int = 0
    swap_used: int = 0
    kernel_pressure: Pressure | None = None
    process: int = 0
    mlx_active: int = 0
    mlx_cache: int = 0
    mlx_peak: int = 0

    @property
    def used_percent(self) -> float:
        """The share of all memory that is not available, 0 to 100."""
        return 100.0 * (1.0 - min(self.available / self.total, 1.0)) if self.total else 0.0

    @property
    def swap_percent(self) -> float:
        """The share of swap in use, 0 to 100; 0 without swap."""
        return 100.0 * self.swap_used / self.swap_total if self.swap_total else 0.0

    @property
    def fragmentation_score(self) -> float:
        """How much of the available memory must first be reclaimed from caches, 0 to 1.

        0: all of it is free now. Near 1: a large load makes the system drop caches first.
        """
        if self.available <= 0:
            return 0.0
        return min(max(1.0 - self.free / self.available, 0.0), 1.0)

    def with_mlx(self, memory: MLXMemory) -> MemorySnapshot:
        """The snapshot with MLX's account. Buffers that MLX keeps for reuse are available: to the
        system they are in use, but MLX takes them first, and drops them when asked to."""
        kept = min(memory.cache, self.total - self.available) if memory.in_ram else 0
        return replace(
            self,
            available=self.available + max(kept, 0),
            used=max(self.used - max(kept, 0), 0),
            mlx_active=memory.active,
            mlx_cache=memory.cache,
            mlx_peak=memory.peak,
        )


class Probe(Protocol):
    """Where snapshots come from."""

    def snapshot(self) -> MemorySnapshot:
        """The memory now. Cheap (well under a millisecond), safe on any thread."""


class SystemProbe:
    """Asks the system. In a container with a memory limit (cgroup v2) below the machine's memory,
    the limit is the total."""

    def __init__(
        self,
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        membership: Path = Path("/proc/self/cgroup"),
        kernel_level: Callable[[], int | None] | None = None,
        process: Callable[[], int] | None = None,
        swap_grows: bool = sys.platform == "darwin",
    ) -> None:
        """The arguments stand in for this system's own, in tests."""
        self._swap_grows = swap_grows
        self._cgroups = _cgroups(cgroup_root, membership)
        if kernel_level is None and sys.platform == "darwin":
            kernel_level = _SysctlReader(b"kern.memorystatus_vm_pressure_level")
        self._kernel_level = kernel_level
        if process is None:
            process = FootprintReader() if sys.platform == "darwin" else _resident_size
        self._process = process

    def snapshot(self) -> MemorySnapshot:
        memory = psutil.virtual_memory()
        swap = psutil.swap_memory()
        total, available, free = memory.total, memory.available, memory.free
        for cgroup in self._cgroups:
            limit = _cgroup_number(cgroup / "memory.max")
            if limit is None or limit >= memory.total:
                continue
            room = limit - (_cgroup_number(cgroup / "memory.current") or 0)
            total = min(total, limit)
            free = min(free, max(room, 0))
            available = min(available, max(room + _inactive_file(cgroup), 0))
        swap_total = swap.total
        if self._swap_grows:
            # macOS adds swap files as it needs them, and tells only of those that it has: 0.7 of
            # 1 GB in use would pass for 70 %, with all of the disk still there.
            swap_total = max(swap.total, memory.total)
        level = self._kernel_level() if self._kernel_level else None
        return MemorySnapshot(
            total=total,
            available=available,
            used=total - available,
            free=free,
            buffers=getattr(memory, "buffers", 0),
            # macOS has no such number; inactive pages are what comes nearest.
            cached=getattr(memory, "cached", getattr(memory, "inactive", 0)),
            swap_total=swap_total,
            swap_used=swap.used,
            kernel_pressure=_KERNEL_LEVELS.get(level) if level is not None else None,
            process=self._process(),
        )


class FakeProbe:
    """Says what it was told, for tests: set :attr:`current`. ``reads`` counts the snapshots."""

    def __init__(self, current: MemorySnapshot) -> None:
        self.current = current
        self.reads = 0

    def snapshot(self) -> MemorySnapshot:
        self.reads += 1
        return self.current


def _cgroups(root: Path, membership: Path) -> list[Path]:
    """The folders of our cgroup and those above it: each may set a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:  # not cgroup v2
        return []
    folders = [root]
    for part in Path(own.lstrip("/")).parts:
        folders.append(folders[-1] / part)
    return [folder for folder in folders if (folder / "memory.max").is_file()]


def _cgroup_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _inactive_file(cgroup: Path) -> int:
    """Bytes of cached files that the kernel drops when the group needs memory."""
    try:
        for line in (cgroup / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _resident_size() -> int:
    """Bytes of physical memory that this process has mapped."""
    resident: int = psutil.Process().memory_info().rss
    return resident


class FootprintReader:
    """The physical footprint of this process on macOS, in bytes, as Activity Monitor shows it. The
    resident size would not do: it misses what Metal holds and counts files that are mapped.

    ``rusage`` stands in for the system's ``proc_pid_rusage`` in tests.
    """

    # struct rusage_info_v0: 16 bytes of uuid, then uint64 each: user and system time, idle and
    # interrupt wake-ups, page-ins, wired size, resident size, physical footprint, and more.
    _VERSION = 0
    _FOOTPRINT = struct.Struct("=16x56xQ")

    def __init__(self, rusage: Callable[[int, int, object], int] | None = None) -> None:
        if rusage is None:
            system = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
            system.proc_pid_rusage.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
            rusage = system.proc_pid_rusage
        self._rusage = rusage

    def __call__(self) -> int:
        buffer = ctypes.create_string_buffer(512)  # more than any version writes
        if self._rusage(os.getpid(), self._VERSION, ctypes.byref(buffer)):
            return _resident_size()
        footprint: int = self._FOOTPRINT.unpack_from(buffer)[0]
        return footprint


class _SysctlReader:
    """Reads one integer of the macOS kernel; None where it has none of that name."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)

    def __call__(self) -> int | None:
        value = ctypes.c_int(0)
        size = ctypes.c_size_t(ctypes.sizeof(value))
        failed = self._libc.sysctlbyname(
            self._name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
        )
        return None if failed else value.value
