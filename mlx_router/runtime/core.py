"""The asynchronous heart of MLX Router: which model a request means, and what it may use.

Lives on one event loop. :class:`~mlx_router.runtime.manager.MLXModelManager` is its front door.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

from mlx_router.catalog.catalog import Catalog
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    ChatPrompt,
    GenerationEvent,
    GenerationRequest,
    ModelCard,
    ModelState,
    Prompt,
)
from mlx_router.engine.base import EngineFactory
from mlx_router.errors import ModelNotFound, RouterError, ShuttingDown
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.admission import check_ability, check_sight, make_plan
from mlx_router.runtime.budget import MemoryBudget
from mlx_router.runtime.build import limits, observe, resident_options, wanted
from mlx_router.runtime.codecs import Codecs, Vocabulary
from mlx_router.runtime.embedding import EmbeddingRequest, Embeddings, embed, find_model
from mlx_router.runtime.finder import Finder
from mlx_router.runtime.fleet import Fleet
from mlx_router.runtime.generation import Plan, run
from mlx_router.runtime.limits import check_request
from mlx_router.runtime.pictures import Pictures, has_images
from mlx_router.runtime.readahead import ReadAhead
from mlx_router.runtime.resident import Resident
from mlx_router.runtime.summarize import within_context
from mlx_router.scheduling import Wanted
from mlx_router.telemetry.activity import SAMPLE_SECONDS, Activity, LiveRequest
from mlx_router.telemetry.logging import request_id

log = logging.getLogger(__name__)


class Core:
    """Start it on the loop that it is to live on; all methods are called there."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        monitor: ResourceMonitor,
        factory: EngineFactory,
        activity: Activity,
    ) -> None:
        self.activity = activity
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._catalog = catalog
        self._monitor = monitor
        self._executor = ThreadPoolExecutor(
            max_workers=max(2, (os.cpu_count() or 2) // 2), thread_name_prefix="cpu"
        )
        # Loads may take long, and must not keep requests from being tokenised.
        self._loader = ThreadPoolExecutor(max_workers=8, thread_name_prefix="load")
        self._compiler = ThreadPoolExecutor(max_workers=2, thread_name_prefix="grammar")
        self._memory = MemoryBudget.of(monitor)
        self.fleet = Fleet(
            limits(settings),
            factory,
            self._loader,
            self._budget,
            resident_options(settings),
            lambda card, model: observe(self._catalog, card, model),
            ReadAhead(lambda: self._memory.snapshot.available).follow,
            lambda card: self._codecs.get(card),
            activity,
        )
        self._codecs = Codecs(factory, self._loader)
        self._pictures = Pictures(settings.media)
        self.finder = Finder(settings, catalog, self.fleet, monitor)
        self._grace: asyncio.TimerHandle | None = None
        self.stopping = False
        self._pins: dict[str, bool] = {}
        self._sample()

    # --- generating -------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See :meth:`MLXModelManager.generate`."""
        kind = "chat" if isinstance(request.prompt, ChatPrompt) else "completion"
        with self.activity.request(
            kind, request.model, request.request_id, choices=request.n
        ) as live:
            self._check_open()
            check_request(request)
            arrived = live.arrived
            try:
                card = await self.finder.find_here(request.model)
            except ModelNotFound as missing:
                async with aclosing(self.finder.download(request.model, missing)) as waiting:
                    async for step in waiting:
                        live.on_event(step)
                        yield step
                arrived = time.perf_counter()
                card = await self.finder.find_here(request.model)
            self.activity.meets(live, card.id)
            check_ability(card, request, self._settings)
            plan = self._plan(card, request)
            began = time.perf_counter()
            # Before a lease: what is no image costs nobody's model its place.
            async with self._pictures.shown(request.prompt, plan.timeout) as (prompt, notices):
                if prompt is not request.prompt:
                    left = plan.timeout - (time.perf_counter() - began)
                    plan = self._plan(card, replace(request, prompt=prompt))
                    plan = replace(plan, notices=notices, timeout=max(left, 0.001))
                async with aclosing(self._answer(card, plan, arrived, live)) as events:
                    async for event in events:
                        live.on_event(event)
                        yield event

    async def _answer(
        self, card: ModelCard, plan: Plan, arrived: float, live: LiveRequest
    ) -> AsyncGenerator[GenerationEvent, None]:
        prompt = plan.request.prompt
        sees = isinstance(prompt, ChatPrompt) and bool(prompt.pictures)
        encode_in: Executor = self._pictures.encoder if sees else self._executor
        async with self.lease(card, plan.timeout) as (resident, timeout):
            self.activity.granted(live)
            plan = replace(plan, timeout=timeout)
            start = partial(
                run, compile_in=self._compiler, new_id=self.fleet.new_id, arrived=arrived
            )
            plan_for = partial(self._plan, card)
            events = within_context(plan, resident, encode_in, start, plan_for, self._settings)
            async with aclosing(events):
                async for event in events:
                    yield event
            self.fleet.served(card.id)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See :meth:`MLXModelManager.embed`."""
        with self.activity.request("embedding", request.model, request_id.get()) as live:
            self._check_open()
            card = await find_model(self.finder, request.model)
            self.activity.meets(live, card.id)
            patience = request.timeout or self._settings.defaults.timeout
            async with self.lease(card, patience) as (resident, timeout):
                self.activity.granted(live)
                vectors = await embed(request, resident, self._executor, self.fleet.new_id, timeout)
                self.fleet.served(card.id)
            self.activity.tally(card.id).prompt_tokens += vectors.prompt_tokens
            return vectors

    @asynccontextmanager
    async def lease(
        self, card: ModelCard, timeout: float, *, answers: bool = True
    ) -> AsyncIterator[tuple[Resident, float]]:
        """The model in memory for as long as the block runs, and how many of the ``timeout``
        seconds are left for an answer. Waits at most ``timeout``; if the model has to be loaded
        first, ``load_timeout`` more, and then all of them are left. ``answers``: see
        :meth:`Fleet.lease`."""
        self._check_open()
        began, is_ready = time.perf_counter(), self.fleet.state(card.id) is ModelState.READY
        patience = timeout if is_ready else timeout + self._settings.defaults.load_timeout
        terms = self._wanted(card)
        async with self.fleet.lease(card, terms, patience, answers=answers) as resident:
            waited = time.perf_counter() - began if is_ready else 0.0
            yield resident, max(timeout - waited, 0.001)

    def configure(self, settings: Settings, catalog: Catalog, factory: EngineFactory) -> None:
        """Other settings from now on, and what follows from them. Answers under way go on, and
        models in memory stay as they were loaded."""
        self._settings, self._catalog = settings, catalog
        self.finder.configure(settings, catalog)
        self._codecs = Codecs(factory, self._loader)
        self._pictures.configure(settings.media)
        self.fleet.configure(
            limits(settings),
            self._wanted,
            resident_options(settings),
            factory,
            {card.id: card for card in catalog.cards()},
        )

    def pin(self, card: ModelCard, pinned: bool) -> None:
        """Whether the model stays in memory once it is loaded, until the router ends: whatever the
        config says."""
        self._pins[card.id] = pinned
        self.fleet.review(limits(self._settings), self._wanted)

    def pinned(self, card: ModelCard) -> bool:
        return self._pins.get(card.id, self._settings.for_model(card.id).pinned)

    def _wanted(self, card: ModelCard) -> Wanted:
        return replace(wanted(card, self._settings), pinned=self.pinned(card))

    def _sample(self) -> None:
        """Remember how memory is, now and then."""
        self._sampling = self._loop.call_later(SAMPLE_SECONDS, self._sample)
        budget = self._budget(False)
        memory = budget.snapshot
        self.activity.sample(memory.available, memory.process, memory.swap_used, budget.pressure)

    def _check_open(self) -> None:
        if self.stopping:
            raise ShuttingDown("The server is shutting down; try again in a moment.", retry_after=5)

    def _budget(self, fresh: bool) -> MemoryBudget:
        try:
            self._memory = MemoryBudget.of(self._monitor, fresh=fresh)
        except OSError:  # out of descriptors, say: what was true a moment ago must do
            log.exception("the memory could not be read")
        return self._memory

    def _plan(self, card: ModelCard, request: GenerationRequest) -> Plan:
        return make_plan(card, request, self._settings, self._monitor.pressure())

    # --- tokens -----------------------------------------------------------------------------

    async def tokenize(
        self, model: str | None, prompt: Prompt, add_special_tokens: bool
    ) -> list[int]:
        """See :meth:`MLXModelManager.tokenize`."""
        words = await self._vocabulary(model)
        executor: Executor = self._executor
        if isinstance(prompt, ChatPrompt) and has_images(prompt):
            check_sight(await self.finder.find(model), prompt)
            executor = self._pictures.encoder
        async with self._pictures.shown(prompt, self._settings.defaults.timeout) as (shown, _):
            encode = partial(words.encode, shown, add_special_tokens=add_special_tokens)
            return await self._loop.run_in_executor(executor, encode)

    async def detokenize(self, model: str | None, ids: Sequence[int]) -> str:
        """See :meth:`MLXModelManager.detokenize`."""
        words = await self._vocabulary(model)
        return await self._loop.run_in_executor(self._executor, words.decode, ids)

    async def token_texts(self, model: str | None, ids: Sequence[int]) -> list[str]:
        """See :meth:`MLXModelManager.token_texts`."""
        words = await self._vocabulary(model)
        return await self._loop.run_in_executor(self._executor, words.decode_each, ids)

    async def _vocabulary(self, model: str | None) -> Vocabulary:
        self._check_open()
        card = await self.finder.find(model)
        resident = self.fleet.resident(card.id)
        if resident is None or resident.codec is None or resident.model is None:
            return await self._codecs.get(card)
        return Vocabulary(resident.codec, resident.model.vocab_size)

    # --- start and end ----------------------------------------------------------------------

    async def preload(self) -> list[RouterError]:
        """Load the default model and those with ``preload``, one after the other; what fails is
        returned, not raised: the other models can be served."""
        names = [name for name, entry in self._settings.models.items() if entry.preload]
        if self._settings.defaults.model is not None:
            names.insert(0, self._settings.defaults.model)
        failures = []
        for name in dict.fromkeys(names):
            try:
                card = await self.finder.find(name)
                async with self.lease(card, self._settings.defaults.timeout, answers=False):
                    pass
            except RouterError as error:
                failures.append(error)
            except Exception:  # a fault of ours with one model: the others are loaded all the same
                log.exception("preloading %s failed", name)
        return failures

    def begin_shutdown(self) -> None:
        """New requests are refused; answers have ``grace_seconds``, then they end with an error."""
        if not self.stopping:
            self.stopping = True
            self._sampling.cancel()
            self.finder.stop()
            self.fleet.begin_shutdown()
            self._grace = self._loop.call_later(
                self._settings.server.grace_seconds, self.fleet.fail_answers
            )

    async def close(self) -> None:
        self.begin_shutdown()
        if self._grace is not None:
            self._grace.cancel()
        await self.fleet.close()
        self._pictures.close()
        for executor in (self._executor, self._loader, self._compiler):
            executor.shutdown(wait=False, cancel_futures=True)
