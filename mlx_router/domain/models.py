"""Models, and the memory that they take."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

USUAL_TOKENS = 8192  # of a conversation: what memory is reckoned for, unless the context is shorter
GIB = 2**30  # bytes in a GB, as memory is counted here: in settings, logs, tables and answers


class ModelKind(StrEnum):
    """What a model is for."""

    TEXT = "text"
    VISION = "vision"
    EMBEDDING = "embedding"
    RERANKER = "reranker"


class ModelState(StrEnum):
    """Where a model is in its life."""

    UNLOADED = "unloaded"
    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNUSABLE = "unusable"


class Pressure(StrEnum):
    """How short memory is."""

    NORMAL = "normal"
    MODERATE = "moderate"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class MLXMemory:
    """What MLX holds, in bytes: ``active`` is in use, ``cache`` is kept for reuse and can be
    dropped, ``peak`` is the most that was ever active. ``in_ram``: it is the machine's memory, not
    a graphics card's own."""

    active: int = 0
    cache: int = 0
    peak: int = 0
    in_ram: bool = True


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model from its files, without importing or running anything.

    Sizes are bytes. ``required_bytes`` is what the model takes while it computes a conversation of
    :attr:`usual_tokens`: weights, ``cache_bytes`` of KV cache, and what a step needs besides.
    ``fingerprint`` changes with the model's config and weights; empty for one without files.
    ``blind``: it was made to see, but mlx-vlm is not installed, so its language half is served.
    ``problem`` says in one sentence why the model cannot be used, naming the file; None if it can.
    """

    id: str
    path: Path
    kind: ModelKind
    architecture: str
    size_bytes: int = 0
    weight_bytes: int = 0
    parameters: int = 0
    quantization: str | None = None
    context_length: int = 4096
    kv_bytes_per_token: int = 0
    cache_bytes: int = 0
    required_bytes: int = 0
    supports_tools: bool = False
    supports_reasoning: bool = False
    blind: bool = False
    created: int = 0
    fingerprint: str = ""
    problem: str | None = None

    @property
    def short_name(self) -> str:
        """The part after the slash: ``mlx-community/Qwen3-4B`` is also known as ``Qwen3-4B``."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def usual_tokens(self) -> int:
        """The length of the conversation that memory is reckoned for."""
        return min(self.context_length, USUAL_TOKENS)

    @property
    def supports_vision(self) -> bool:
        return self.kind is ModelKind.VISION
