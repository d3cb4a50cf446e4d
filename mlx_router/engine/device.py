"""What is set once for the whole process: backend defaults, wired memory, giving memory back."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Literal
from unittest.mock import patch

import mlx.core as mx

from mlx_router.domain import GIB, MLXMemory
from mlx_router.version import __version__

log = logging.getLogger(__name__)

Backend = Literal["metal", "cuda", "cpu"]
WiredLimit = float | Literal["off", "recommended"]

_lock = threading.Lock()
_own = threading.local()
_idle_streams: list[mx.Stream] = []


def backend() -> Backend:
    """The backend that MLX computes with here."""
    if mx.metal.is_available():
        return "metal"
    if mx.cuda.is_available():
        return "cuda"
    return "cpu"


@cache
def _prepare_once() -> None:
    # On the CPU backend mx.compile runs g++ for every new kernel (seconds each); interpreting is
    # faster for all that a server does. The environment variable still decides if it is set.
    if backend() == "cpu" and "MLX_DISABLE_COMPILE" not in os.environ:
        mx.disable_compile()
    # "PyTorch was not found" is no news here, and alarms whoever reads the log.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Importing mlx-lm lowers the process's limit on open files, for good: the hard limit too.
    with patch("resource.setrlimit"):
        import mlx_lm.utils  # noqa: F401


def prepare() -> None:
    """Import mlx-lm and undo what its import does to the process. Takes seconds the first time;
    safe from several threads at once."""
    with _lock:
        _prepare_once()


def prepare_process() -> None:
    """For a process that serves and has nothing to do yet: import now what the first load would
    have to, and spare it from garbage collection ever after. To look through all of that takes a
    tenth of a second, in which no stream goes on; what comes later is a small part of it."""
    prepare()
    import mlx_router.engine.batch
    import mlx_router.engine.codec
    import mlx_router.engine.serial  # noqa: F401

    gc.collect()
    gc.freeze()


def begin_thread() -> None:
    """The first act of a thread that owns a model: :func:`prepare`, and a stream for the CPU.

    MLX never ends the system's thread behind such a stream, not even when the stream is cleared. So
    a stream is handed on: else every load would leave threads behind.
    """
    prepare()
    with _lock:
        stream = _idle_streams.pop() if _idle_streams else mx.new_thread_unsafe_stream(mx.cpu)
    mx.set_default_stream(stream)
    _own.stream, _own.failed = stream, False


@cache
def versions() -> str:
    """The versions of all that decides how a model computes."""
    found = []
    for package in ("mlx", "mlx-lm", "mlx-vlm"):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join([*found, f"mlx-router {__version__}"])


def apply_wired_limit(limit: WiredLimit) -> None:
    """Set how much memory stays wired, in GB; BatchGenerator sets it by itself, and the last one
    to close restores what it found, so this is called after each is made or closed."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended is None:  # no Metal, no wired memory
        return
    if limit == "off":
        mx.set_wired_limit(0)
    elif limit == "recommended":
        mx.set_wired_limit(int(recommended))
    else:
        mx.set_wired_limit(min(int(limit * GIB), int(recommended)))


def drop_cache() -> None:
    """Return what MLX keeps for reuse to the system."""
    mx.clear_cache()


def settle() -> None:
    """Wait for all that this thread computes. MLX raises the error of a computation that nobody
    has looked at here, once; whoever ends something is not to be stopped by it, so it is logged."""
    for stream in (mx.default_stream(mx.default_device()), getattr(_own, "stream", None)):
        try:
            if stream is not None:
                mx.synchronize(stream)
        except Exception:
            log.exception("a computation whose result nobody took had failed")
            _own.failed = True


def give_memory_back() -> None:
    """Return what freed arrays held to the system. Call on the thread that held them."""
    gc.collect()  # module graphs are cyclic
    settle()
    mx.clear_cache()
    if sys.platform == "linux":
        # glibc keeps mid-size chunks: without this 500 MB of a freed model stay in the process.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def end_thread() -> None:
    """The last act of a thread that used MLX: without it the process may abort at exit."""
    settle()
    stream: mx.Stream | None = getattr(_own, "stream", None)
    if stream is not None:
        del _own.stream
        if not _own.failed:  # else nobody else gets it
            _idle_streams.append(stream)
    mx.clear_streams()


def memory() -> MLXMemory:
    """What MLX holds in this process. Takes microseconds; safe on any thread."""
    return MLXMemory(
        active=mx.get_active_memory(),
        cache=mx.get_cache_memory(),
        peak=mx.get_peak_memory(),
        in_ram=backend() != "cuda",
    )
