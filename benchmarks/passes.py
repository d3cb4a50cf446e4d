"""Counts forward passes: ``python -m benchmarks.passes MODEL TOKENS STREAMS...``.

The server does not say how often it ran its model, so this drives the server's own engine,
:class:`mlx_router.engine.text.TextEngine`, in process, with as many jobs as there are streams, and
counts calls of the model, prefill included. The answer is one line of JSON: streams to passes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlx_lm.models.llama import Model

from benchmarks.bare import protocol_output, send
from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.text import TextEngine

PROMPT_TOKENS = 30


def count_passes(folder: Path, tokens: int, streams: list[int]) -> dict[int, int]:
    """Forward passes for that many answers of ``tokens`` tokens at once, by number of streams."""
    calls = 0
    forward = Model.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(self, *args, **kwargs)

    Model.__call__ = counted
    engine = TextEngine(ModelCard("random", folder, ModelKind.TEXT, "llama"))
    engine.load()
    passes = {}
    for count in streams:
        calls = 0
        for number in range(count):
            prompt = [100 + number + i for i in range(PROMPT_TOKENS)]
            engine.add(Job(id=number, prompt=prompt, max_tokens=tokens, sampling=Sampling()))
        generated = 0
        while engine.busy:
            results = engine.step()
            failed = [result.error for result in results if result.error is not None]
            if failed:
                raise RuntimeError(failed[0])
            generated += len(results)
        if generated != count * tokens:
            raise RuntimeError(f"{generated} tokens in place of {count * tokens}")
        passes[count] = calls
    engine.close()
    return passes


def main() -> None:
    answer = protocol_output()
    folder, tokens, *streams = sys.argv[1:]
    send(answer, count_passes(Path(folder), int(tokens), [int(count) for count in streams]))


if __name__ == "__main__":
    main()
