"""An engine that is stepped by hand, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.engine.speculation.pace import Pace
from mlx_router.engine.text import TextEngine, TextEngineOptions
from tests.test_correctness import OnOneThread

GREEDY = Sampling()


def card_of(folder: Path, fingerprint: str = "") -> ModelCard:
    return ModelCard(
        id=folder.name,
        path=folder,
        kind=ModelKind.TEXT,
        architecture="",
        fingerprint=fingerprint,
    )


def make_job(number: int, prompt: Sequence[int], tokens: int, **more: Any) -> Job:
    values: dict[str, Any] = {"sampling": GREEDY} | more
    return Job(number, prompt, tokens, **values)


def words(count: int, start: int = 0) -> list[int]:
    """A prompt of ids that every small model of the tests has; it begins with ``start``."""
    return [(7 * i * i + 3 * i + start) % 400 + 30 for i in range(count)]


class Eager(Pace):
    """Finds drafting worth it whatever it costs."""

    measured = True

    def count(self, likely: float) -> int:
        return 4

    def gain(self, likely: float) -> float:
        return 2.0


class Watched:
    """What a model computes: the rows and tokens of each forward pass. ``before`` is called with
    the ids of a pass, and may raise."""

    def __init__(self, model: Any) -> None:
        self.passes: list[tuple[int, int]] = []
        self.before: Callable[[mx.array], object] = lambda ids: None
        kind, watch = type(model), self

        class Seen(kind):  # type: ignore[misc, valid-type]
            def __call__(self, ids: mx.array, *args: Any, **kwargs: Any) -> Any:
                watch.before(ids)
                rows, tokens = ids.shape
                watch.passes.append((rows, tokens))
                return super().__call__(ids, *args, **kwargs)

        model.__class__ = Seen

    def failing_on(self, token: int) -> None:
        """Let every pass fail that has this token in it."""

        def fail(ids: mx.array) -> None:
            if (ids == token).any().item():
                raise RuntimeError("injected")

        self.before = fail


class ByHand:
    """The engine of a folder's model on a thread of its own; a step is made when it is asked for.
    ``eager``: drafts are used whatever they cost."""

    def __init__(
        self, folder: Path, *, fingerprint: str = "", eager: bool = True, **options: Any
    ) -> None:
        options = {"prefill_step_size": 16} | options
        self.engine: Any = TextEngine(card_of(folder, fingerprint), TextEngineOptions(**options))
        self.call = OnOneThread()
        self.closed = False
        try:
            self.loaded = self.call(self.engine.load)
        except Exception:
            self.close()
            raise
        self.model = Watched(self.engine._model)
        self.draft = Watched(self.engine._draft._model) if self.engine._draft else None
        if eager and self.engine._drafting is not None:
            self.engine._drafting._pace = Eager()

    @property
    def runner(self) -> Any:
        return self.engine._runner

    def add(self, *jobs: Job) -> None:
        self.call(lambda: [self.engine.add(job) for job in jobs])

    def abort(self, job_id: int) -> None:
        self.call(lambda: self.engine.abort(job_id))

    def step(self) -> list[StepResult]:
        results: list[StepResult] = self.call(self.engine.step)
        return results

    def until(self, reached: Callable[[], bool], most: int = 500) -> dict[int, list[StepResult]]:
        """Step until then; the results by job."""
        found: dict[int, list[StepResult]] = {}
        while not reached():
            assert most, "it did not come to that"
            most -= 1
            for result in self.step():
                found.setdefault(result.job_id, []).append(result)
        return found

    def run(self, *jobs: Job) -> dict[int, list[StepResult]]:
        """All results of the jobs, which run together with what there is."""
        self.add(*jobs)
        return self.until(lambda: not self.engine.busy, most=3000)

    def answer(self, job: Job) -> list[int | None]:
        """Its tokens; it must not fail."""
        results = self.run(job)[job.id]
        assert results[-1].error is None
        return [result.token for result in results]

    def close(self) -> None:
        self.closed = True
        try:
            self.call(self.engine.close)
        finally:
            self.call.close()
