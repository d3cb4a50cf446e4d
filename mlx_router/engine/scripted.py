"""An engine without a model: deterministic, cheap, and able to fail on request.

It drives tests and measurements through the real server: what it answers is in
:mod:`mlx_router.engine.scripted_text`. Needs no mlx.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlx_router.domain import FinishReason, ModelCard, ModelKind
from mlx_router.engine.base import Job, LoadedModel, StepResult
from mlx_router.engine.scripted_text import (
    EOS,
    VOCAB_SIZE,
    ScriptedCodec,
    ScriptedDetokenizer,
    answer,
    encode,
)
from mlx_router.errors import RouterError

_LOGPROB = -0.125


class SimulatedDeath(BaseException):
    """What no handler of ordinary errors catches: the engine's thread dies of it."""


@dataclass(frozen=True, slots=True)
class ScriptedOptions:
    """How a scripted engine behaves, or misbehaves.

    Delays are in seconds. A gate holds the engine until it is set; ``loading`` and ``stepping``
    are set by the engine when a load or a step begins, before the gate. ``prefill_tokens`` is the
    slice of prompt that one step takes in, ``batch_limit`` the sequences that run at once. Steps
    are counted from 1: at ``fail_at_step`` the oldest sequence fails, at ``die_at_step`` the step
    raises SimulatedDeath. ``text`` is answered to everything, ``load_error`` is raised by load.
    """

    text: str | None = None
    load_delay: float = 0.0
    step_delay: float = 0.0
    prefill_tokens: int = 2048
    batch_limit: int = 1024
    memory_bytes: int = 50_000_000
    load_error: RouterError | None = None
    fail_at_step: int | None = None
    die_at_step: int | None = None
    load_gate: threading.Event | None = None
    step_gate: threading.Event | None = None
    close_gate: threading.Event | None = None
    loading: threading.Event | None = None
    stepping: threading.Event | None = None


class _Row:
    """A sequence: first its prompt is taken in, then its results are handed out."""

    __slots__ = ("at", "job", "missing", "results")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.missing = len(job.prompt)
        self.results: Sequence[StepResult] = ()
        self.at = 0


class ScriptedEngine:
    """Implements :class:`mlx_router.engine.base.Engine`; decodes in one batch, as real ones do."""

    def __init__(self, options: ScriptedOptions | None = None) -> None:
        self._options = options or ScriptedOptions()
        self._waiting: deque[_Row] = deque()
        self._running: dict[int, _Row] = {}
        self._loaded = False
        self.steps = 0
        self.warmed_up = 0
        self.caches_dropped = 0

    def load(self) -> LoadedModel:
        options = self._options
        _pass(options.loading, options.load_gate, options.load_delay)
        if options.load_error is not None:
            raise options.load_error
        self._loaded = True
        return LoadedModel(VOCAB_SIZE, options.memory_bytes)

    def warm_up(self, tokens: int) -> None:
        self.warmed_up += tokens

    def add(self, job: Job) -> None:
        self._waiting.append(_Row(job))

    def abort(self, job_id: int) -> None:
        if self._running.pop(job_id, None) is None:
            self._waiting = deque(row for row in self._waiting if row.job.id != job_id)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def step(self) -> list[StepResult]:
        options = self._options
        _pass(options.stepping, options.step_gate, options.step_delay)
        self.steps += 1
        if self.steps == options.die_at_step:
            raise SimulatedDeath
        results: list[StepResult] = []
        finished: list[int] = []
        if self.steps == options.fail_at_step:
            results += self._fail_oldest()
        for job_id, row in self._running.items():
            result = row.results[row.at]
            row.at += 1
            results.append(result)
            if result.finish is not None:
                finished.append(job_id)
        for job_id in finished:
            del self._running[job_id]
        self._prefill()
        return results

    def memory_bytes(self) -> int:
        return self._options.memory_bytes if self._loaded else 0

    def drop_caches(self) -> None:
        self.caches_dropped += 1

    def close(self) -> None:
        _pass(None, self._options.close_gate, 0.0)
        self._loaded = False
        self._waiting.clear()
        self._running.clear()

    def _prefill(self) -> None:
        """Take in one slice of the prompts that wait, first come, first served."""
        room = self._options.prefill_tokens
        while self._waiting and room > 0 and len(self._running) < self._options.batch_limit:
            row = self._waiting[0]
            taken = min(room, row.missing)
            row.missing -= taken
            room -= taken
            if row.missing == 0:
                self._waiting.popleft()
                row.results = _script(row.job, self._options.text)
                self._running[row.job.id] = row

    def _fail_oldest(self) -> list[StepResult]:
        if self._running:
            job_id = next(iter(self._running))
            del self._running[job_id]
        elif self._waiting:
            job_id = self._waiting.popleft().job.id
        else:
            return []
        return [StepResult(job_id, None, error="The script says that this sequence fails.")]


class ScriptedFactory:
    """Implements :class:`mlx_router.engine.base.EngineFactory`.

    ``options`` go for every model, or for each by its id. ``engines`` are those made so far.
    """

    def __init__(
        self, options: ScriptedOptions | Mapping[str, ScriptedOptions] | None = None
    ) -> None:
        self._options = options
        self.engines: list[ScriptedEngine] = []

    def engine(self, card: ModelCard) -> ScriptedEngine:
        options = self._options
        if isinstance(options, Mapping):
            options = options.get(card.id)
        self.engines.append(ScriptedEngine(options))
        return self.engines[-1]

    def codec(self, card: ModelCard) -> ScriptedCodec:
        return ScriptedCodec(sees=card.supports_vision)


def scripted_cards() -> list[ModelCard]:
    """The models that a server without weights has."""
    return [
        ModelCard(
            id=name,
            path=Path("scripted"),
            kind=kind,
            architecture="scripted",
            context_length=32768,
            required_bytes=50_000_000,
            supports_tools=True,
            supports_reasoning=True,
            created=1_700_000_000,
        )
        for name, kind in (
            ("scripted", ModelKind.TEXT),
            ("scripted-2", ModelKind.TEXT),
            ("scripted-vision", ModelKind.VISION),
        )
    ]


def _pass(begun: threading.Event | None, gate: threading.Event | None, seconds: float) -> None:
    if begun is not None:
        begun.set()
    if gate is not None:
        gate.wait()
    if seconds:
        time.sleep(seconds)


@lru_cache(maxsize=64)
def _answer_tokens(prompt: tuple[int, ...]) -> tuple[int, ...]:
    # Many streams with one prompt are usual in measurements, and n choices always have one.
    return tuple(encode(answer(prompt)))


def _script(job: Job, text: str | None) -> list[StepResult]:
    """All results of a job. A token that comes again is the same object again: making one costs
    more than everything else that a step does for it."""
    tokens = list(_answer_tokens(tuple(job.prompt))) if text is None else encode(text)
    if EOS in job.stop_ids:
        tokens.append(EOS)
    elif tokens:
        tokens *= -(-job.max_tokens // len(tokens))  # it may not end: it starts again
    else:
        tokens = [ord(" ")] * job.max_tokens
    tokens = tokens[: job.max_tokens]
    made: dict[int, StepResult] = {}
    for token in tokens:
        if token not in made:
            made[token] = _result(job, token, FinishReason.STOP if token == EOS else None)
    results = [made[token] for token in tokens]
    if results[-1].finish is None:
        results[-1] = _result(job, tokens[-1], FinishReason.LENGTH)
    return results


def _result(job: Job, token: int, finish: FinishReason | None) -> StepResult:
    if job.logprobs is None:
        return StepResult(job.id, token, finish)
    others = (other for other in range(job.logprobs + 1) if other != token)
    ranked = [token, *others][: job.logprobs]
    top = tuple((one, _LOGPROB - rank) for rank, one in enumerate(ranked))
    return StepResult(job.id, token, finish, _LOGPROB, top)


__all__ = [
    "ScriptedCodec",
    "ScriptedDetokenizer",
    "ScriptedEngine",
    "ScriptedFactory",
    "ScriptedOptions",
    "SimulatedDeath",
    "scripted_cards",
]
