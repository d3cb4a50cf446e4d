"""Whether MLX computes here. Run as a program it says so on stdout, as a line of JSON: a backend
that is broken may take its process with it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

_SIZE = 512


@dataclass(frozen=True, slots=True)
class Computed:
    """``backend`` is metal, cuda or cpu; ``right``: whether a product of matrices was. ``gflops``:
    how many billions of operations a second it took, in float32; ``blas`` where OpenBLAS is in
    use on a CPU. ``device`` is its name, ``memory`` its bytes for models, if it has its own say."""

    backend: str
    device: str
    right: bool
    gflops: float
    openblas: bool
    memory: int | None


def compute() -> Computed:
    """Multiply two small matrices on the default device. Raises what MLX raises."""
    ones = mx.ones((_SIZE, _SIZE))
    right = bool(mx.all(ones @ ones == _SIZE).item())
    began = time.perf_counter()
    mx.eval(ones @ ones)
    seconds = time.perf_counter() - began
    backend = "metal" if mx.metal.is_available() else "cuda" if mx.cuda.is_available() else "cpu"
    info = mx.device_info()
    memory = info.get("max_recommended_working_set_size")
    return Computed(
        backend=backend,
        device=str(info.get("device_name", mx.default_device())),
        right=right,
        gflops=2 * _SIZE**3 / seconds / 1e9,
        openblas=_openblas(),
        memory=int(memory) if memory is not None else None,
    )


def _openblas() -> bool:
    try:
        return "openblas" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


if __name__ == "__main__":
    print(json.dumps(asdict(compute())))
