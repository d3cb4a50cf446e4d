"""Models measured in this process, through the same library as the server's."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_router.bench.target import PATIENCE_SECONDS, Answer, Stopwatch, Subject
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    Completed,
    Delta,
    GenerationRequest,
    ModelCard,
    ModelKind,
    ModelState,
    TextPrompt,
    Usage,
)
from mlx_router.errors import ModelCorrupt
from mlx_router.runtime.manager import MLXModelManager


def bench_settings(settings: Settings, most_streams: int) -> Settings:
    """The settings under which models are measured: one in memory at a time, so that two are
    swapped; nothing is written into the cache on disk, and no stream is turned away."""
    defaults = settings.defaults.model_copy(update={"cache_size": 1})
    queue = max(settings.server.max_queue, most_streams)
    models = {
        name: entry.model_copy(update={"pinned": False, "ttl_seconds": None})
        for name, entry in settings.models.items()
    }
    return settings.model_copy(
        update={
            "defaults": defaults,
            "server": settings.server.model_copy(update={"max_queue": queue}),
            "prefix_cache": settings.prefix_cache.model_copy(update={"disk_gb": 0.0}),
            "models": models,
        }
    )


class LibraryTarget:
    """A :class:`~mlx_router.bench.target.Target` on a manager that lives on the running loop."""

    def __init__(self, manager: MLXModelManager) -> None:
        self._manager = manager

    async def find(self, name: str) -> Subject:
        return self._subject(await self._manager.afind(name))

    async def subjects(self) -> list[Subject]:
        found = [self._subject(card) for card in self._manager.cards() if card.usable]
        return [subject for subject in found if subject.writes_text]

    async def default(self) -> str | None:
        return self._manager.settings.defaults.model

    async def tokenize(self, model: str, text: str) -> list[int]:
        return await self._manager.atokenize(model, TextPrompt(text))

    async def is_ready(self, model: str) -> bool:
        return self._manager.model(model).state is ModelState.READY

    async def unload(self, model: str) -> None:
        await self._manager.aunload(model)

    async def load(self, model: str) -> None:
        await self._manager.aload(model)

    async def ask(self, model: str, prompt: Sequence[int], max_tokens: int) -> Answer:
        request = GenerationRequest(
            TextPrompt(token_ids=tuple(prompt)),
            model=model,
            max_tokens=max_tokens,
            timeout=PATIENCE_SECONDS,
            ignore_eos=True,
        )
        watch, usage = Stopwatch(), Usage()
        async for event in self._manager.generate(request):
            if isinstance(event, Delta):
                watch.piece(len(event.token_ids))
            elif isinstance(event, Completed):
                usage = event.usage
        return watch.answer(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def _subject(self, card: ModelCard) -> Subject:
        if card.problem is not None:
            raise ModelCorrupt(f"The model {card.id} cannot be used: {card.problem}")
        info = self._manager.model(card.id)
        return Subject(
            id=card.id,
            context_length=card.context_length,
            writes_text=card.kind in (ModelKind.TEXT, ModelKind.VISION),
            refusal=None if info.can_load_now else info.load_status_reason,
            architecture=card.architecture,
            quantization=card.quantization,
            parameters=card.parameters or None,
            size_bytes=card.size_bytes,
        )
