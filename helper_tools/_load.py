"""Loads one model, measures it if asked to, and ends. No tool of its own: the others start it.

Reads an order (JSON) from stdin and writes what came of it (JSON) to stdout. A model's own code is
never run, and nothing is remembered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from typing import Any

from mlx_router.bench.library import LibraryTarget, bench_settings
from mlx_router.bench.results import Plan, Results
from mlx_router.bench.suite import Suite
from mlx_router.catalog.observed import ObservedModels
from mlx_router.cli.bench import Progress
from mlx_router.config.settings import Settings
from mlx_router.errors import InsufficientMemory, RouterError
from mlx_router.runtime.build import mlx_memory
from mlx_router.runtime.manager import MLXModelManager


async def work(order: dict[str, Any], state: str) -> dict[str, Any]:
    """Raises RouterError."""
    plan = Plan(**order["plan"]) if order["plan"] else None
    defaults = {"model_directory": order["folders"], "state_directory": state}
    entry = {"path": order["path"], "trust_remote_code": False}
    settings = Settings.model_validate({"defaults": defaults, "models": {order["model"]: entry}})
    manager = MLXModelManager(bench_settings(settings, max(plan.streams) if plan else 1))
    await manager.astart(preload=False)
    try:
        card = await manager.afind(order["model"])
        from mlx_router.engine.device import prepare_process  # imports MLX, which takes seconds

        await asyncio.to_thread(prepare_process)  # else it would count as a model's load
        told: dict[str, Any] = {}
        if plan is None:
            began = time.perf_counter()
            await manager.aload(card.id)
            told["load_seconds"] = time.perf_counter() - began
        else:
            told.update(await measure(manager, card.id, plan))
        memory = mlx_memory()
    finally:
        await manager.aclose()
    observed = ObservedModels(settings.defaults.state_folder()).get(card)
    if observed is not None and observed.memory is not None:
        card = observed.memory.correct(card)
        told["weights_bytes"] = observed.memory.weights
    told["cache_bytes"], told["required_bytes"] = card.cache_bytes, card.required_bytes
    told["peak_bytes"] = memory.peak if memory is not None else None
    return told


async def measure(manager: MLXModelManager, model: str, plan: Plan) -> dict[str, Any]:
    """The model's figures, as `mlx-router bench` has them. Raises RouterError if it cannot be
    loaded."""
    target, results, progress = LibraryTarget(manager), Results(plan, {}), Progress(quiet=False)
    subject = await target.find(model)
    if subject.refusal is not None:
        raise InsufficientMemory(subject.refusal)
    try:
        await Suite(target, plan, results, progress.step).run([subject])
    finally:
        progress.end()
    if not results.models:
        raise RouterError("; ".join(results.failures))
    figures = results.models[0].as_json()
    told = {"notes": results.notes, "failures": results.failures, **figures}
    return {"load_seconds": figures["load"]["seconds"], "benchmark": told}


def main() -> int:
    logging.disable(logging.ERROR)  # what goes wrong is in the answer, in one sentence
    order = json.load(sys.stdin)
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    with tempfile.TemporaryDirectory(prefix="mlx-router-") as state:
        try:
            told = asyncio.run(work(order, state))
        except RouterError as error:
            told = {"error": error.message, "memory": isinstance(error, InsufficientMemory)}
        except Exception as error:
            told = {"error": f"{order['model']}: {type(error).__name__}: {error}"}
    with os.fdopen(answer, "w") as out:
        json.dump(told, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
