"""Many models wanted at once, and room for two: who waits how long, and how often models swap."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from mlx_router import Delta, GenerationRequest, MLXModelManager, Settings
from mlx_router.domain import ChatPrompt, Message, ModelCard
from mlx_router.engine.scripted import ScriptedEngine, ScriptedFactory, ScriptedOptions
from tests.models import ARCHITECTURES

MODELS = tuple(f"tiny/{kind}" for kind in ARCHITECTURES)
PLACES = 2
REQUESTS = 50  # of each model
BATCH = 32  # answers of a model under way at once
# Longer than a turn, which is three loads: a model cannot serve all of its requests in one.
LOAD_SECONDS, STEP_SECONDS, TOKENS = 0.05, 0.005, 40


class WatchedFactory(ScriptedFactory):
    """``cut_off``: answers that were under way when their model was unloaded."""

    def __init__(self) -> None:
        super().__init__(ScriptedOptions(load_delay=LOAD_SECONDS, step_delay=STEP_SECONDS))
        self.loads: list[str] = []
        self.cut_off = 0

    def engine(self, card: ModelCard) -> ScriptedEngine:
        self.loads.append(card.id)
        engine = super().engine(card)
        close = engine.close

        def watched() -> None:
            self.cut_off += engine.busy
            close()

        engine.close = watched  # type: ignore[method-assign]
        return engine


@dataclass
class Outcome:
    """``waits``: seconds until the first words, of every request; ``seconds``: until all ended."""

    waits: list[float]
    texts: set[str]
    seconds: float
    factory: WatchedFactory


async def ask_at_once(models: Path, names: tuple[str, ...]) -> Outcome:
    """All requests for all models named at the same moment; none may fail."""
    factory = WatchedFactory()
    settings = Settings.model_validate(
        {"defaults": {"cache_size": PLACES, "warmup_tokens": 0, "max_batch_size": BATCH}}
    )
    texts: set[str] = set()

    async def ask(model: str, begun: float) -> float:
        request = GenerationRequest(
            ChatPrompt((Message("user", "Hello"),)), model=model, max_tokens=TOKENS
        )
        wait, text = math.inf, ""
        async with aclosing(manager.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    wait = min(wait, time.monotonic() - begun)
                    text += event.content
        texts.add(text)
        return wait

    async with MLXModelManager(settings, model_directory=models, factory=factory) as manager:
        begun = time.monotonic()
        waits = await asyncio.gather(
            *(ask(model, begun) for _ in range(REQUESTS) for model in names)
        )
        seconds = time.monotonic() - begun
        assert all(info.active == info.waiting == 0 for info in manager.status().loaded)
    return Outcome(waits, texts, seconds, factory)


async def test_six_models_in_two_places_serve_fifty_requests_each_in_turns(
    tiny_models: Path,
) -> None:
    """Fair is what the last model would wait if each were loaded once, in one of two places, and
    served all of its requests before the next one came."""
    alone = await ask_at_once(tiny_models, MODELS[:1])
    fair = alone.seconds * len(MODELS) / PLACES
    together = await ask_at_once(tiny_models, MODELS)
    assert together.texts == alone.texts
    assert len(together.texts) == 1
    assert together.factory.cut_off == 0, "a model was unloaded while it served"
    assert set(together.factory.loads) == set(MODELS)
    turns = math.ceil(REQUESTS / BATCH)
    assert len(together.factory.loads) <= len(MODELS) * turns
    assert max(together.waits) <= 3 * fair
