"""What a runner keeps of its sequences, and finds for them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlx_router.engine.base import Job
from mlx_router.engine.prefill import Prefill
from mlx_router.engine.prefix.cache import NOTHING, Prefix, PrefixCache, text_key
from mlx_router.engine.prefix.disk import PrefixDisk
from mlx_router.engine.prefix.layers import Key, evaluate
from mlx_router.engine.runner import LiveSequence

log = logging.getLogger(__name__)

_WORTH_KEEPING = 256  # tokens: of a prompt whose answer is not there yet, or on disk
_WORTH_READING = 256  # tokens more than are in memory


class Keeper:
    """The prefix caches of a model, in memory and on disk, in terms of sequences. ``prompt_key``:
    the key of a job's prompt. Never raises: what is not kept costs time, and no answer."""

    def __init__(
        self,
        prefixes: PrefixCache,
        disk: PrefixDisk | None = None,
        *,
        prompt_key: Callable[[Job], Key] | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._disk = disk
        self._prompt_key = prompt_key or (lambda job: text_key(job.prompt))

    @property
    def enabled(self) -> bool:
        return self._prefixes.enabled or self._disk is not None

    def find(self, sequence: LiveSequence) -> Prefix:
        """What is known of the context of a sequence."""
        if not self.enabled:
            return NOTHING
        try:
            return self._find(sequence)
        except Exception:  # out of memory, say
            log.exception("computed prompts could not be looked for")
            return NOTHING

    def _find(self, sequence: LiveSequence) -> Prefix:
        scope, key = sequence.job.cache_scope, self._key(sequence, sequence.tokens)
        found = self._prefixes.find(scope, key)
        if self._disk is None:
            return found
        on_disk = self._disk.longest(scope, key, len(key) - 1)
        if on_disk < found.tokens + _WORTH_READING:
            return found
        return replace(found, reading=self._disk.read(scope, key, on_disk), on_disk=on_disk)

    def keep(self, sequence: LiveSequence, cache: list[Any], generated: Sequence[int]) -> None:
        """Keep the cache of a sequence that has ended; it holds the prompt and ``generated``."""
        if self.enabled:
            self._keep(sequence, cache, generated, len(sequence.job.prompt) + len(generated))

    def keep_begun(self, prefill: Prefill) -> None:
        """Keep what is computed of a prompt: others may begin as it does, or it may come again."""
        if self._prefixes.enabled and prefill.done >= _WORTH_KEEPING:
            sequence = prefill.sequences[0]
            sequence.marks = prefill.marks
            cache = copy.deepcopy(prefill.cache)
            self._keep(sequence, cache, sequence.tokens, prefill.done, disk=False)

    def _keep(
        self,
        sequence: LiveSequence,
        cache: list[Any],
        generated: Sequence[int],
        tokens: int,
        *,
        disk: bool = True,
    ) -> None:
        """``tokens``: how many ``cache`` holds, of the prompt and what was ``generated``."""
        job = sequence.job
        parts_at = job.boundaries[-1] if job.boundaries else len(job.prompt)
        try:
            key = self._key(sequence, generated)[:tokens]
            if self._prefixes.enabled:
                kept = self._prefixes.keep(job.cache_scope, key, cache, sequence.marks, parts_at)
            else:
                evaluate(cache)
                kept = True
            if disk and kept and self._disk is not None and tokens >= _WORTH_KEEPING:
                self._disk.write(job.cache_scope, key, cache, sequence.marks)
        except Exception:  # out of memory, say: the answer is there, and the next one costs more
            log.exception("a computed prompt could not be kept")
            self._prefixes.clear()

    def _key(self, sequence: LiveSequence, generated: Sequence[int]) -> Key:
        return np.concatenate([self._prompt_key(sequence.job), text_key(generated)])
