"""The text engine: one model of mlx-lm, loaded, driven and freed on one thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_router.domain import ModelCard
from mlx_router.engine import device
from mlx_router.engine.base import BatchTrial, Job, LoadedModel, Sampling, StepResult
from mlx_router.engine.loading import (
    cache_bytes,
    dismantle,
    load_error,
    vocabulary_size,
    weight_bytes,
)
from mlx_router.engine.prefix import PrefixCache
from mlx_router.engine.probe import try_batching
from mlx_router.engine.runner import LiveSequence, Runner
from mlx_router.errors import RouterError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextEngineOptions:
    """How a model is loaded and driven. ``prefill_step_size`` is in tokens: all streams of a model
    wait while one slice of a prompt is computed. ``batch_trial``: what an earlier load found out;
    it is tried again if that was with other versions. ``prefix_cache_bytes``: for computed prompts,
    to be reused."""

    prefill_step_size: int = 512
    max_batch_size: int = 32
    wired_limit: device.WiredLimit = "off"
    adapter_path: Path | None = None
    trust_remote_code: bool = False
    batch_trial: BatchTrial | None = None
    prefix_cache_bytes: int = 0


class TextEngine:
    """Implements :class:`mlx_router.engine.base.Engine`."""

    def __init__(self, card: ModelCard, options: TextEngineOptions | None = None) -> None:
        self._card = card
        self._options = options or TextEngineOptions()
        self._model: Any = None
        self._runner: Runner | None = None
        self._prefixes = PrefixCache(self._options.prefix_cache_bytes)
        self._live: dict[int, LiveSequence] = {}
        self._weight_bytes = 0
        self._batches = True
        self._failed: list[StepResult] = []

    def load(self) -> LoadedModel:
        device.begin_thread()
        failure: RouterError | None = None
        try:
            self._model = self._load_model()
        except Exception as error:
            log.exception("loading %s failed", self._card.id)
            failure = load_error(self._card, error)
        if failure is not None:  # raised out here: the traceback above holds half a model
            raise failure
        self._weight_bytes = weight_bytes(self._model)
        vocab_size = vocabulary_size(self._model, self._card)
        trial = self._try_batching(vocab_size)
        self._batches = trial.batches
        if not trial.batches:
            log.info("%s is served one request at a time (%s)", self._card.id, trial.reason)
        self._runner = self._make_runner(self._batches)
        return LoadedModel(
            vocab_size=vocab_size,
            memory_bytes=self._weight_bytes,
            cache_bytes=cache_bytes(self._model, self._card.usual_tokens),
            batch_trial=trial,
        )

    def warm_up(self, tokens: int) -> None:
        """Compiles kernels and touches all weights."""
        if tokens > 0:
            self.add(Job(id=-1, prompt=[0, 0], max_tokens=tokens, sampling=Sampling()))
            while self.busy:
                self.step()

    def add(self, job: Job) -> None:
        self._insert(LiveSequence(job))

    def abort(self, job_id: int) -> None:
        if self._live.pop(job_id, None) is not None:
            self._running.remove(job_id)

    def step(self) -> list[StepResult]:
        failed, self._failed = self._failed, []
        results = self._attempt()
        if results is None:
            self._recover()
            return failed
        for result in results:
            sequence = self._live[result.job_id]
            if result.token is not None:
                sequence.tokens.append(result.token)
                sequence.retried = False
            if result.finish is not None or result.error is not None:
                del self._live[result.job_id]
        return failed + results

    @property
    def busy(self) -> bool:
        return bool(self._live or self._failed)

    def memory_bytes(self) -> int:
        return self._weight_bytes + self._prefixes.nbytes

    def drop_caches(self) -> None:
        self._prefixes.clear()
        device.drop_cache()

    def close(self) -> None:
        self._live.clear()
        self._prefixes.clear()
        try:
            if self._runner is not None:
                self._runner.close()
        finally:
            try:
                if self._model is not None:
                    dismantle(self._model)
            finally:
                self._runner = self._model = None
                try:
                    device.give_memory_back()
                finally:
                    device.end_thread()

    @property
    def _running(self) -> Runner:
        assert self._runner is not None, "load() comes first"
        return self._runner

    def _load_model(self) -> Any:
        from mlx_lm.utils import load_adapters, load_model

        model, _ = load_model(self._card.path, trust_remote_code=self._options.trust_remote_code)
        if self._options.adapter_path is not None:
            model = load_adapters(model, str(self._options.adapter_path))
            mx.eval(model.parameters())
        model.eval()
        return model

    def _try_batching(self, vocab_size: int) -> BatchTrial:
        known = self._options.batch_trial
        if known is not None and known.versions == device.versions():
            return known
        return try_batching(self._model, partial(self._make_runner, batches=True), vocab_size)

    def _make_runner(self, batches: bool) -> Runner:
        # Imported here, on the engine's thread: they import mlx-lm, which takes seconds.
        from mlx_router.engine.batch import BatchRunner
        from mlx_router.engine.serial import SerialRunner

        step_size = self._options.prefill_step_size
        if not batches:
            return SerialRunner(self._model, prefill_step_size=step_size)
        return BatchRunner(
            self._model,
            prefill_step_size=step_size,
            max_batch_size=self._options.max_batch_size,
            wired_limit=self._options.wired_limit,
            prefixes=self._prefixes,
        )

    def _insert(self, sequence: LiveSequence) -> None:
        """A job that the runner does not take fails, and nothing else does."""
        try:
            self._running.insert(sequence)
        except Exception:
            log.exception("a job of %s was not taken", self._card.id)
            self._fail(sequence)
        else:
            self._live[sequence.job.id] = sequence

    def _attempt(self) -> list[StepResult] | None:
        """A step's results; None if it failed. The traceback, which holds the caches, ends here."""
        try:
            return self._running.step()
        except Exception:
            log.exception("a step of %s failed with %d sequences", self._card.id, len(self._live))
            return None

    def _recover(self) -> None:
        """A failed step leaves caches moved on for some rows and not for others, so the runner is
        thrown away, and every sequence is recomputed in a fresh one. One that has been recomputed
        before, and has had no token since, fails: it may be the cause."""
        self._running.close()
        self._runner = None
        device.give_memory_back()
        self._runner = self._make_runner(self._batches)
        sequences = list(self._live.values())
        self._live.clear()
        for sequence in sequences:
            if sequence.retried:
                self._fail(sequence)
            else:
                sequence.retried = True
                self._insert(sequence)

    def _fail(self, sequence: LiveSequence) -> None:
        message = "The model failed while it computed this answer; the log has the reason."
        self._failed.append(StepResult(job_id=sequence.job.id, token=None, error=message))
