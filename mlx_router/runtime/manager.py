"""The front door of MLX Router, for a program and for the HTTP server alike."""

from __future__ import annotations

import asyncio
import atexit
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

from mlx_router.catalog.catalog import Catalog
from mlx_router.config.changes import Change, changes, in_force
from mlx_router.config.settings import Settings
from mlx_router.domain import GenerationEvent, GenerationRequest, ModelCard
from mlx_router.engine.base import EngineFactory
from mlx_router.errors import ConfigError, ShuttingDown
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.bridge import Bridge
from mlx_router.runtime.build import (
    adapted,
    change_policy,
    make_catalog,
    make_factory,
    make_monitor,
)
from mlx_router.runtime.chat import ChatOptions, ChatResult, Messages, collect, make_request
from mlx_router.runtime.core import Core
from mlx_router.runtime.embedding import EmbeddingRequest, Embeddings, Text
from mlx_router.runtime.reports import model_infos, router_status
from mlx_router.runtime.status import ModelInfo, RouterStatus
from mlx_router.runtime.token_methods import TokenMethods
from mlx_router.telemetry.activity import Activity

log = logging.getLogger(__name__)

T = TypeVar("T")


class MLXModelManager(TokenMethods):
    """Serves every model it finds: discovers, loads, swaps, answers.

    ::

        with MLXModelManager(model_directory="~/models") as manager:
            print(manager.chat("What is MLX?", model="Qwen3-4B-4bit"))

    Every method that waits has an async twin whose name begins with ``a``. Inside ``async with``
    the router lives on the running event loop, else on a thread of its own; both kinds of methods
    work either way, but a blocking one raises RuntimeError on the router's own loop. Safe to use
    from several threads. Errors are those of :mod:`mlx_router.errors`.

    Args:
        settings: the config; :func:`mlx_router.config.load_settings` reads one from a file.
        model_directory: the folder or folders with models, in place of the config's.
        demo: add the tiny model that ships with MLX Router, under the name ``demo``.
        engine: ``mlx``, or ``scripted`` for deterministic answers without any model.
        source: where :meth:`reload` gets the settings from; it may raise ConfigError.
        factory, monitor: stand-ins for tests.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        model_directory: str | Path | list[str | Path] | None = None,
        demo: bool = False,
        engine: Literal["mlx", "scripted"] = "mlx",
        source: Callable[[], Settings] | None = None,
        factory: EngineFactory | None = None,
        monitor: ResourceMonitor | None = None,
    ) -> None:
        self._adapted = partial(adapted, folders=model_directory, demo=demo, engine=engine)
        self._source = source
        self.settings = self._adapted(settings or Settings())
        self._engine = engine
        self._factory = factory
        self._catalog: Catalog = make_catalog(self.settings, engine)
        self._monitor = monitor or make_monitor(self.settings)
        self._bridge = Bridge()
        self._core: Core | None = None
        self._preloading: asyncio.Task[None] | None = None
        self._configuring = asyncio.Lock()
        self._ended = False
        self._closing = False
        self.activity = Activity()
        self._born = time.monotonic()

    # --- answers ----------------------------------------------------------------------------

    def chat(
        self, messages: Messages, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatResult:
        """A whole answer to a chat; a str is one message of the user."""
        request = make_request(messages, model, **options)
        return self._bridge.wait(self._ask(lambda core: collect(core.generate(request))))

    async def achat(
        self, messages: Messages, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatResult:
        """As :meth:`chat`, without blocking."""
        request = make_request(messages, model, **options)
        return await self._bridge.run(self._ask(lambda core: collect(core.generate(request))))

    def stream(
        self, messages: Messages, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> Generator[GenerationEvent, None, None]:
        """The events of an answer as they come: Started, Delta …, Finished, Completed; before them
        Preparing now and then while the model is downloaded. Closing the generator ends the
        generation."""
        request = make_request(messages, model, **options)
        return self._bridge.iterate(lambda: self._stream(request))

    def astream(
        self, messages: Messages, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[GenerationEvent, None]:
        """As :meth:`stream`, asynchronously."""
        return self.generate(make_request(messages, model, **options))

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The events of any request. Closing the generator drops the request before the next
        decoding step. Raises, on the first ``anext``, what admission says (ModelNotFound,
        InvalidRequest, QueueFull, …), and later EngineFailed or ShuttingDown."""
        if self._core is not None and self._bridge.here:
            return self._core.generate(request)
        return self._bridge.stream(lambda: self._stream(request))

    # --- embeddings -------------------------------------------------------------------------

    def embed(
        self, texts: str | Sequence[Text], model: str | None = None, dimensions: int | None = None
    ) -> Embeddings:
        """The vectors of one text or several; lists of token ids are taken as they are. None: the
        only embedding model there is. ``dimensions``: keep that many numbers of each vector."""
        request = EmbeddingRequest.of(texts, model, dimensions)
        return self._bridge.wait(self._ask(lambda core: core.embed(request)))

    async def aembed(
        self, texts: str | Sequence[Text], model: str | None = None, dimensions: int | None = None
    ) -> Embeddings:
        """As :meth:`embed`, without blocking."""
        return await self.embed_request(EmbeddingRequest.of(texts, model, dimensions))

    async def embed_request(self, request: EmbeddingRequest) -> Embeddings:
        """As :meth:`aembed`. Cancelling it drops the request before the engine's next step. Raises
        what :meth:`generate` raises, and RequestTimeout."""
        return await self._bridge.run(self._ask(lambda core: core.embed(request)))

    # --- models -----------------------------------------------------------------------------

    def load(self, model: str) -> ModelInfo:
        """Bring a model into memory; returns when it is ready."""
        return self._bridge.wait(self._load(model))

    async def aload(self, model: str) -> ModelInfo:
        """As :meth:`load`, without blocking."""
        return await self._bridge.run(self._load(model))

    def unload(self, model: str) -> None:
        """Free a model's memory as soon as its answers are done; returns when it is back."""
        self._bridge.wait(self._unload(model))

    async def aunload(self, model: str) -> None:
        """As :meth:`unload`, without blocking."""
        await self._bridge.run(self._unload(model))

    def pin(self, model: str, pinned: bool = True) -> ModelInfo:
        """Keep a model in memory once it is loaded, or no longer: until this manager is closed,
        whatever the config says. Raises ModelNotFound."""
        return self._bridge.wait(self._pin(model, pinned))

    async def apin(self, model: str, pinned: bool = True) -> ModelInfo:
        """As :meth:`pin`, without blocking."""
        return await self._bridge.run(self._pin(model, pinned))

    def find(self, model: str | None = None) -> ModelCard:
        """The model that a request for ``model`` means; None: the default model. Looks at the disk
        again before it says no. Raises ModelNotFound, ModelCorrupt, InvalidRequest."""
        return self._bridge.wait(self._ask(lambda core: core.finder.find(model)))

    async def afind(self, model: str | None = None) -> ModelCard:
        """As :meth:`find`, without blocking."""
        return await self._bridge.run(self._ask(lambda core: core.finder.find(model)))

    def cards(self) -> list[ModelCard]:
        """What is known of every model found, unusable ones included."""
        core = self._core
        if core is None:
            self._catalog.refresh()
            return self._catalog.cards()
        return self._bridge.call(core.finder.cards)

    def models(self) -> list[ModelInfo]:
        """Every model found, with its state."""
        return self._bridge.call(lambda: self._infos(self.cards()))

    def model(self, name: str) -> ModelInfo:
        """One model, by id, alias or short name. Raises ModelNotFound."""
        if self._core is None:
            self._catalog.refresh()
        return self._bridge.call(lambda: self._infos([self._catalog.resolve(name)])[0])

    def status(self) -> RouterStatus:
        """Health, memory and what is loaded."""
        return self._bridge.call(
            lambda: router_status(self._core, self.cards(), self._monitor, self._born)
        )

    # --- settings ---------------------------------------------------------------------------

    def reload(self) -> list[Change]:
        """Read the config anew from ``source`` and act on it; returns what changed. Answers under
        way go on, and models in memory stay as they were loaded. Raises ConfigError, and then
        nothing has changed."""
        return self._bridge.wait(self._reload())

    async def areload(self) -> list[Change]:
        """As :meth:`reload`, without blocking."""
        return await self._bridge.run(self._reload())

    def configure(self, settings: Settings) -> list[Change]:
        """As :meth:`reload`, with these settings."""
        return self._bridge.wait(self._configure(settings))

    async def aconfigure(self, settings: Settings) -> list[Change]:
        """As :meth:`configure`, without blocking."""
        return await self._bridge.run(self._configure(settings))

    # --- life -------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the router lives on until it is closed; one is started if need be."""
        return self._bridge.ensure()

    async def astart(self, *, preload: bool = True) -> None:
        """Live on the running loop. The models to preload load in the background."""
        self._bridge.bind()
        core = await self._started()
        if preload:
            self._preloading = asyncio.get_running_loop().create_task(self._preload(core))

    def begin_shutdown(self) -> None:
        """Refuse new requests for good; answers under way have ``grace_seconds``. Call it on the
        router's loop."""
        self._ended = True
        if self._core is not None:
            self._core.begin_shutdown()

    def close(self) -> None:
        """Free all models. The manager can be used again: it starts anew."""
        if self._bridge.started:
            try:
                self._bridge.wait(self._close())
                self._bridge.stop()
            finally:
                self._closing = False

    async def aclose(self) -> None:
        """As :meth:`close`, without blocking."""
        if self._bridge.here or not self._bridge.started:
            try:
                await self._close()
            finally:
                self._bridge.release()
                self._closing = False
        else:
            await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- on the router's loop ---------------------------------------------------------------

    async def _started(self) -> Core:
        if self._core is None:
            await asyncio.to_thread(self._catalog.refresh)
        if self._ended or self._closing:  # a core that is made now would outlive its loop
            raise ShuttingDown("The server is shutting down.", retry_after=5)
        if self._core is None:  # nobody else has made it meanwhile
            self._core = Core(
                self.settings,
                self._catalog,
                self._monitor,
                self._factory or make_factory(self.settings, self._engine, self._catalog),
                self.activity,
            )
            # A daemon thread that dies with MLX streams open can abort the whole process.
            atexit.register(self._at_exit)
        return self._core

    async def _ask(self, question: Callable[[Core], Awaitable[T]]) -> T:
        return await question(await self._started())

    async def _stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        core = await self._started()
        events = core.generate(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def _load(self, name: str) -> ModelInfo:
        core = await self._started()
        card = await core.finder.find(name)
        async with core.lease(card, self.settings.defaults.timeout, answers=False):
            return self._infos([card])[0]

    async def _pin(self, name: str, pinned: bool) -> ModelInfo:
        core = await self._started()
        card = await core.finder.find_here(name)
        core.pin(card, pinned)
        return self._infos([card])[0]

    async def _unload(self, name: str) -> None:
        core = await self._started()
        await core.fleet.unload(self._catalog.resolve(name).id)

    async def _reload(self) -> list[Change]:
        if self._source is None:
            raise ConfigError("There is no config to read again: the program gave its settings.")
        async with self._configuring:  # in the order in which the source was read
            return await self._take(await asyncio.to_thread(self._source))

    async def _configure(self, settings: Settings) -> list[Change]:
        async with self._configuring:
            return await self._take(settings)

    async def _take(self, settings: Settings) -> list[Change]:
        settings = self._adapted(settings)
        found = changes(self.settings, settings)
        settings = in_force(self.settings, settings)
        catalog = await asyncio.to_thread(make_catalog, settings, self._engine)
        catalog.follow(self._catalog)
        await asyncio.to_thread(catalog.refresh)
        if found:  # from here on nothing waits, and so nobody sees half of the change
            change_policy(self._monitor, self.settings, settings)
            self.settings, self._catalog = settings, catalog
            if self._core is not None:
                factory = self._factory or make_factory(settings, self._engine, catalog)
                self._core.configure(settings, catalog, factory)
        for change in found:
            log.info("config: %s", change)
        log.info("config read again; settings changed: %d", len(found))
        return found

    async def _preload(self, core: Core) -> None:
        for error in await core.preload():
            if not isinstance(error, ShuttingDown):
                log.error("preloading failed: %s", error)

    async def _close(self) -> None:
        self._closing = True
        core, self._core = self._core, None
        atexit.unregister(self._at_exit)
        if self._preloading is not None:
            self._preloading.cancel()
        if core is not None:
            await core.close()

    def _at_exit(self) -> None:
        """The program ends without having closed the manager."""
        if self._bridge.owns_thread:
            self.close()
        elif self._core is not None:  # its loop is gone, and only the threads are left
            self._core.fleet.end_threads()

    def _infos(self, cards: list[ModelCard]) -> list[ModelInfo]:
        return model_infos(cards, self._core, self.settings, self._monitor)
