"""The text engine: one model of mlx-lm, loaded, driven and freed on one thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
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
from mlx_router.engine.prefix.cache import PrefixCache
from mlx_router.engine.prefix.disk import PrefixDisk
from mlx_router.engine.probe import try_batching
from mlx_router.engine.quantized import QuantizedCache
from mlx_router.engine.runner import LiveSequence, Runner
from mlx_router.engine.speculation.draft import DraftModel, load_draft
from mlx_router.engine.speculation.drafting import Drafting
from mlx_router.errors import ModelLoadFailed, RouterError

log = logging.getLogger(__name__)

_WRITING_SECONDS = 5.0  # that an unload waits for computed prompts to be written


@dataclass(frozen=True, slots=True)
class TextEngineOptions:
    """How a model is loaded and driven. ``prefill_step_size`` is in tokens: all streams of a model
    wait while one slice of a prompt is computed. ``batch_trial``: what an earlier load found out;
    it is tried again if that was with other versions. ``prefix_cache_bytes``: for computed prompts,
    to be reused; ``prefix_disk``: where they are kept on disk, and how many bytes of them.
    ``kv_bits``: of the numbers in the KV cache; None: as the model computes. ``draft``: the model
    that drafts; ``prompt_lookup``: draft from the prompt."""

    prefill_step_size: int = 512
    max_batch_size: int = 32
    wired_limit: device.WiredLimit = "off"
    adapter_path: Path | None = None
    trust_remote_code: bool = False
    batch_trial: BatchTrial | None = None
    prefix_cache_bytes: int = 0
    prefix_disk: tuple[Path, int] | None = None
    kv_bits: int | None = None
    draft: ModelCard | None = None
    prompt_lookup: bool = False


class TextEngine:
    """Implements :class:`mlx_router.engine.base.Engine`."""

    def __init__(self, card: ModelCard, options: TextEngineOptions | None = None) -> None:
        self._card = card
        self._options = options or TextEngineOptions()
        self._model: Any = None
        self._runner: Runner | None = None
        self._prefixes = PrefixCache(self._options.prefix_cache_bytes)
        self._disk: PrefixDisk | None = None
        self._make_cache: Callable[[], list[Any]] = list
        self._drafting: Drafting | None = None
        self._draft: DraftModel | None = None
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
        vocab_size = vocabulary_size(self._model, self._card)
        self._equip(vocab_size)
        self._weight_bytes = weight_bytes(self._model)
        if self._draft is not None:
            self._weight_bytes += self._draft.weight_bytes
        trial = self._try_batching(vocab_size)
        self._batches = trial.batches
        if not trial.batches:
            log.info("%s is served one request at a time (%s)", self._card.id, trial.reason)
        self._runner = self._make_runner(self._batches)
        return LoadedModel(
            vocab_size=vocab_size,
            memory_bytes=self._weight_bytes,
            cache_bytes=cache_bytes(self._model, self._make_cache(), self._card.usual_tokens),
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
        if self._live.pop(job_id, None) is None:
            return
        try:
            self._running.remove(job_id)
        except Exception:
            log.exception("a job of %s could not be dropped by itself", self._card.id)
            self._recover()

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
        drafts = self._draft.cache_bytes if self._draft is not None else 0
        return self._weight_bytes + self._prefixes.nbytes + drafts

    def drop_caches(self) -> None:
        self._prefixes.clear()
        if self._disk is not None:
            self._disk.drop_writes()
        if self._draft is not None:
            self._draft.clear()
        device.drop_cache()

    def close(self) -> None:
        self._live.clear()
        self._prefixes.clear()
        with contextlib.ExitStack() as stack:  # the last is done first, and all of them are
            stack.callback(device.end_thread)
            stack.callback(device.give_memory_back)
            stack.callback(self._free)
            if self._disk is not None:
                stack.callback(self._disk.close, _WRITING_SECONDS)
            if self._runner is not None:
                stack.callback(self._runner.close)

    def _free(self) -> None:
        """The weights, and all that leads to them."""
        model, draft = self._model, self._draft
        self._runner = self._model = self._drafting = self._draft = None
        self._make_cache = list
        if draft is not None:
            draft.close()
        if model is not None:
            dismantle(model)

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

    def _equip(self, vocab_size: int) -> None:
        """What the options ask for besides the model. Raises ModelLoadFailed for what it cannot
        have."""
        from mlx_lm.models.cache import make_prompt_cache

        from mlx_router.engine.prefix.layers import cuttable

        card, options = self._card, self._options
        self._make_cache = partial(make_prompt_cache, self._model)
        if options.kv_bits is not None:
            self._make_cache = QuantizedCache(self._model, card.id, options.kv_bits)
        self._disk = self._open_disk()
        if options.draft is None and not options.prompt_lookup:
            return
        if not all(map(cuttable, self._make_cache())):
            reason = "a sliding window or a recurrent state cannot go back after a wrong guess"
            if options.draft is not None:
                raise ModelLoadFailed(
                    f"{card.id} cannot use a draft_model: {reason}. Leave it out of its config."
                )
            log.info("prompt_lookup is of no use to %s: %s", card.id, reason)
            return
        if options.draft is not None:
            self._draft = load_draft(
                options.draft,
                card,
                vocab_size,
                prefill_step_size=options.prefill_step_size,
                trust_remote_code=options.trust_remote_code,
            )
        self._drafting = Drafting(self._model, self._draft, lookup=options.prompt_lookup)

    def _open_disk(self) -> PrefixDisk | None:
        card, options = self._card, self._options
        if options.prefix_disk is None or not card.fingerprint:
            return None
        parts: list[object] = [card.fingerprint, str(card.path.resolve()), options.kv_bits]
        parts.append(device.versions())
        if options.adapter_path is not None:
            parts.append(_files(options.adapter_path, "*"))
        if options.trust_remote_code:
            parts.append(_files(card.path, "*.py"))
        folder, max_bytes = options.prefix_disk
        return PrefixDisk(folder, max_bytes, repr(parts))

    def _try_batching(self, vocab_size: int) -> BatchTrial:
        if self._options.kv_bits is not None:
            return BatchTrial(False, "kv_bits is set", device.versions(), lasting=False)
        known = self._options.batch_trial
        if known is not None and known.versions == device.versions():
            return known
        return try_batching(self._model, partial(self._make_runner, batches=True), vocab_size)

    def _make_runner(self, batches: bool) -> Runner:
        # Imported here, on the engine's thread: they import mlx-lm, which takes seconds.
        from mlx_router.engine.batch import BatchRunner
        from mlx_router.engine.prefix.keeper import Keeper
        from mlx_router.engine.serial import SerialRunner

        step_size = self._options.prefill_step_size
        keeper = Keeper(self._prefixes, self._disk)
        if not batches:
            return SerialRunner(
                self._model,
                make_cache=self._make_cache,
                prefill_step_size=step_size,
                keeper=keeper,
                drafting=self._drafting,
            )
        return BatchRunner(
            self._model,
            prefill_step_size=step_size,
            max_batch_size=self._options.max_batch_size,
            wired_limit=self._options.wired_limit,
            keeper=keeper,
            drafting=self._drafting,
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


def _files(folder: Path, pattern: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a folder: they tell one content from another."""
    found = [(path.name, path.stat()) for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]
