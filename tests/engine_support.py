"""Engines, driven from a test."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Engine, Job, StepResult
from mlx_router.engine.text import TextEngine
from mlx_router.runtime.engine_thread import (
    Closed,
    EngineThread,
    Loaded,
    LoadFailed,
    Report,
    Stepped,
)


class Driver:
    """Loads the model of a folder; close it."""

    def __init__(self, folder: Path) -> None:
        card = ModelCard(id=folder.name, path=folder, kind=ModelKind.TEXT, architecture="")
        self.engine = TextEngine(card)
        self.reports: queue.Queue[Report] = queue.Queue()
        self.thread = EngineThread(folder.name, lambda: self.engine, self.reports.put)
        self.thread.start()
        report = self.reports.get(timeout=60)
        if isinstance(report, LoadFailed):
            self.close()
            raise report.error
        assert isinstance(report, Loaded)
        self.loaded = report.model

    def run(self, jobs: list[Job]) -> dict[int, list[StepResult]]:
        """All results of the jobs, which run together."""
        results: dict[int, list[StepResult]] = {job.id: [] for job in jobs}
        self.thread.add(*jobs)
        ended = 0
        while ended < len(jobs):
            report = self.reports.get(timeout=60)
            assert isinstance(report, Stepped), report
            for result in report.results:
                results[result.job_id].append(result)
                ended += result.finish is not None or result.error is not None
        return results

    def close(self) -> None:
        self.thread.close()
        while not isinstance(self.reports.get(timeout=60), Closed):
            pass
        assert self.thread.join(10)


def drain(engine: Engine, most: int = 10_000) -> list[StepResult]:
    """All that an engine has to say, within so many steps."""
    results: list[StepResult] = []
    while engine.busy and most:
        results += engine.step()
        most -= 1
    return results


def tokens(results: Mapping[int, Sequence[StepResult]]) -> dict[int, list[int | None]]:
    return {job_id: [result.token for result in got] for job_id, got in results.items()}
