"""The embedding engine: one model of mlx-vlm, loaded, driven and freed on one thread."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_router.domain import FinishReason, ModelCard
from mlx_router.engine import device
from mlx_router.engine.base import Job, LoadedModel, Sampling, StepResult
from mlx_router.engine.loading import dismantle, load_error, vocabulary_size, weight_bytes
from mlx_router.engine.vlm import import_vlm
from mlx_router.errors import INSTALL_VISION, ModelLoadFailed, RouterError

log = logging.getLogger(__name__)

# Of one step: aborts, and other models if steps are serialised, wait while it is computed.
STEP_TOKENS = 2048
STEP_ROWS = 64

_MAX_CACHE_BYTES = 256 * 2**20
_FLOAT_BYTES = 4


class EmbeddingEngine:
    """Implements :class:`mlx_router.engine.base.Engine`: a job's only result is the vector of its
    prompt. Of the job nothing but ``id`` and ``prompt`` counts."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._model: Any = None
        self._pad_id = 0
        self._weight_bytes = 0
        self._queue: dict[int, Job] = {}

    def load(self) -> LoadedModel:
        device.begin_thread()
        failure: RouterError | None = None
        try:
            self._load_model()
            words = vocabulary_size(self._model, self._card)
            stated = getattr(getattr(self._model, "config", None), "pad_token_id", None)
            self._pad_id = stated if isinstance(stated, int) and 0 <= stated < words else 0
            loaded = LoadedModel(
                vocab_size=words,
                memory_bytes=self._weight_bytes,
                vector_size=self._vector_size(),
                max_positions=_max_positions(self._model),
            )
        except Exception as error:
            log.exception("loading %s failed", self._card.id)
            failure = load_error(self._card, error)
        if failure is not None:  # raised out here: the traceback above holds half a model
            raise failure
        return loaded

    def warm_up(self, tokens: int) -> None:
        """Compiles kernels and touches all weights."""
        if tokens > 0:
            self.add(Job(id=-1, prompt=[0] * 8, max_tokens=0, sampling=Sampling()))
            self.step()

    def add(self, job: Job) -> None:
        self._queue[job.id] = job

    def abort(self, job_id: int) -> None:
        self._queue.pop(job_id, None)

    def step(self) -> list[StepResult]:
        """The vectors of some of the jobs, computed together."""
        batch = self._take_batch()
        vectors = self._attempt(batch)
        if vectors is None:  # one of them is the cause: each by itself
            vectors = [vector for job in batch for vector in self._attempt([job]) or [None]]
        if not self._queue and mx.get_cache_memory() > _MAX_CACHE_BYTES:
            mx.clear_cache()  # the buffers of one batch seldom fit the next
        return [_result(job, vector) for job, vector in zip(batch, vectors, strict=True)]

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def memory_bytes(self) -> int:
        return self._weight_bytes

    def drop_caches(self) -> None:
        device.drop_cache()

    def close(self) -> None:
        self._queue.clear()
        try:
            if self._model is not None:
                dismantle(self._model)
        finally:
            self._model = None
            try:
                device.give_memory_back()
            finally:
                device.end_thread()

    def _load_model(self) -> None:
        try:
            import_vlm()
            from mlx_vlm.embedding_loader import load_embedding_model
        except ModuleNotFoundError as error:
            if error.name != "mlx_vlm":
                raise
            raise ModelLoadFailed(
                f"{self._card.id} is an embedding model, and these need mlx-vlm. Install it: "
                f"{INSTALL_VISION}."
            ) from None
        self._model = load_embedding_model(self._card.path)
        self._weight_bytes = weight_bytes(self._model)
        # The loader leaves this to its caller; without it each class pools in a way of its own.
        self._model.pooling_config = _pooling(self._card.path)

    def _vector_size(self) -> int:
        """Tries the model out; raises ModelLoadFailed if it gives no vector for a text."""
        shape: tuple[int, ...] = ()
        try:
            shape = self._forward([[0, 0]]).shape
        except (TypeError, AttributeError):  # a model that was made for something else
            log.exception("%s was tried out", self._card.id)
        if len(shape) != 2:
            raise ModelLoadFailed(
                f"{self._card.id} cannot be used: mlx-vlm gives no vector for a text with the "
                f"architecture {self._card.architecture}."
            )
        return shape[1]

    def _take_batch(self) -> list[Job]:
        """The job that has waited longest, and others of about its length, for little padding."""
        length = len(next(iter(self._queue.values())).prompt)

        def distance(job: Job) -> int:
            return abs(len(job.prompt) - length)

        alike = [job for job in self._queue.values() if distance(job) <= 32 + length // 2]
        batch: list[Job] = []
        longest = 0
        for job in sorted(alike, key=distance)[:STEP_ROWS]:
            longest = max(longest, len(job.prompt))
            if batch and longest * (len(batch) + 1) > STEP_TOKENS:
                break
            batch.append(self._queue.pop(job.id))
        return batch

    def _attempt(self, batch: Sequence[Job]) -> list[bytes | None] | None:
        """The jobs' vectors, None for one that is not finite; None if all of it failed. The
        traceback, which holds the activations, ends here."""
        try:
            vectors = self._forward([job.prompt for job in batch]).astype(mx.float32)
            # Again: the model does it in its own precision, which may be half.
            norms = mx.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = mx.contiguous(vectors / mx.where(norms == 0, 1, norms))
            finite: Any = mx.isfinite(vectors).all(axis=-1)
            mx.eval(vectors, finite)
            if not all(finite.tolist()):
                log.error("%s gave a vector with infinite numbers", self._card.id)
            row = vectors.shape[1] * _FLOAT_BYTES
            packed = bytes(memoryview(cast(Any, vectors)))
            return [
                packed[i * row : (i + 1) * row] if good else None
                for i, good in enumerate(finite.tolist())
            ]
        except Exception:
            log.exception("a batch of %d texts failed in %s", len(batch), self._card.id)
            return None

    def _forward(self, prompts: Sequence[Sequence[int]]) -> mx.array:
        """The model's vectors, one a row. Padding is on the right, where it moves no position."""
        longest = max(map(len, prompts))
        missing = [longest - len(prompt) for prompt in prompts]
        rows = [[*prompt, *[self._pad_id] * n] for prompt, n in zip(prompts, missing, strict=True)]
        mask = [[1] * (longest - n) + [0] * n for n in missing]
        return self._pooled(mx.array(rows), mx.array(mask))

    def _pooled(self, ids: mx.array, mask: mx.array) -> mx.array:
        vectors: mx.array
        if self._model.model_type == "qwen3_embedding":
            # Causal attention does not look at padding on the right. By itself the class builds a
            # mask for it, with a number for every two tokens: gigabytes for the longest texts.
            from mlx_vlm.models.pooling import pool_by_config

            pooling = self._model.pooling_config or {"pooling_mode": "lasttoken"}
            vectors = pool_by_config(self._model.model(ids), mask, pooling)
        else:
            vectors = self._model(ids, attention_mask=mask).text_embeds
        return vectors


def _result(job: Job, vector: bytes | None) -> StepResult:
    if vector is None:
        message = "The model failed while it computed this embedding; the log has the reason."
        return StepResult(job_id=job.id, token=None, error=message)
    return StepResult(job_id=job.id, token=None, finish=FinishReason.STOP, vector=vector)


def _pooling(folder: Path) -> dict[str, Any] | None:
    """How a model of sentence-transformers pools: its pooling_mode entries; None if its files do
    not say. What else they say is about instructions before the text, of which there are none."""
    place = "1_Pooling"
    modules = _read_json(folder / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            place = Path(str(module.get("path"))).name or place
    stated = _read_json(folder / place / "config.json")
    if not isinstance(stated, dict):
        return None
    return {k: v for k, v in stated.items() if k.startswith("pooling_mode")} or None


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None


def _max_positions(model: nn.Module) -> int | None:
    """How many tokens fit into the model's table of positions: MLX would read beyond its end."""
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:
        return None
    # RoBERTa counts positions from the padding's id on, and leaves that one out.
    taken = getattr(embeddings, "padding_idx", -1) + 1
    return int(table.weight.shape[0]) - taken
