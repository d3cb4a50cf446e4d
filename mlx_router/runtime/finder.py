"""Which models there are, and which one a request means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Container
from concurrent.futures import ThreadPoolExecutor

from mlx_router.catalog.catalog import Catalog
from mlx_router.catalog.names import is_model_name
from mlx_router.config.settings import Settings
from mlx_router.domain import ModelCard, ModelKind, ModelState, Preparing
from mlx_router.errors import InvalidRequest, ModelCorrupt, ModelNotFound, RouterError
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.downloading import make_downloads
from mlx_router.runtime.fleet import Fleet

log = logging.getLogger(__name__)

_REFRESH_SECONDS = 1.0
_REFRESH_PATIENCE = 5.0


class Finder:
    """Looks at the disk every second, and when somebody asks for what it does not know. Lives on
    the running event loop; call :meth:`stop` at the end."""

    def __init__(
        self, settings: Settings, catalog: Catalog, fleet: Fleet, monitor: ResourceMonitor
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._catalog = catalog
        self._fleet = fleet
        self._downloads = make_downloads(
            lambda: self._settings, monitor, lambda: self._catalog.refresh()
        )
        self._looker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalog")
        self._refreshing: asyncio.Task[None] | None = None
        self._next_look = self._loop.call_later(_REFRESH_SECONDS, self._watch)
        self._stopped = False

    def configure(self, settings: Settings, catalog: Catalog) -> None:
        """Other settings from now on, and a catalog that is by them."""
        self._settings, self._catalog = settings, catalog

    def stop(self) -> None:
        """No more looks, and the end of all downloads."""
        self._stopped = True
        self._next_look.cancel()
        self._downloads.stop()
        self._looker.shutdown(wait=False, cancel_futures=True)

    async def find(self, name: str | None) -> ModelCard:
        """The model that a request means; looks at the disk again before it says no, and on the
        Hugging Face Hub if ``allow_downloads`` is on. Raises ModelNotFound, ModelCorrupt,
        InvalidRequest, and what :meth:`Downloads.fetch` raises."""
        try:
            return await self.find_here(name)
        except ModelNotFound as missing:
            async for _ in self.download(name, missing):
                pass
            return await self.find_here(name)

    def download(self, name: str | None, missing: ModelNotFound) -> AsyncGenerator[Preparing, None]:
        """See :meth:`Downloads.fetch`."""
        return self._downloads.fetch(name or self._settings.defaults.model, missing)

    async def find_here(self, name: str | None) -> ModelCard:
        """As :meth:`find`, on this machine."""
        try:
            card = self.resolve(name)
            if self._fleet.state(card.id) is not ModelState.UNLOADED:
                return card
        except RouterError:
            if name is not None and not is_model_name(name):
                raise
        # Before it is loaded, too: its folder may have been removed or replaced a moment ago.
        await self.refresh()
        return self.resolve(name)

    def resolve(self, name: str | None) -> ModelCard:
        """As :meth:`find`, on this machine and from what is known now."""
        card = self._default() if name is None else self._catalog.resolve(name)
        if card.problem is not None:
            raise ModelCorrupt(f"The model {card.id} cannot be used: {card.problem}", param="model")
        return card

    def _default(self) -> ModelCard:
        """Configured, else the one used last, else the only one there is."""
        if self._settings.defaults.model is not None:
            return self._catalog.resolve(self._settings.defaults.model)
        cards = [
            card
            for card in self._catalog.cards()
            if card.usable and card.kind in (ModelKind.TEXT, ModelKind.VISION)
        ]
        current = self.current_model({card.id for card in cards})
        for card in cards:
            if card.id == current or len(cards) == 1:
                return card
        if not cards:
            raise ModelNotFound("There is no model yet; put one into the model directory.")
        raise InvalidRequest(
            "Which model? Send its name in the field model (GET /v1/models lists them), or set "
            "defaults.model in the config.",
            param="model",
        )

    async def refresh(self) -> None:
        """Look for new, changed and removed models. Returns after a few seconds even where a
        network volume hangs."""
        under_way = self._refreshing
        if under_way is not None:  # it may have looked already where something changed since
            _, late = await asyncio.wait([under_way], timeout=_REFRESH_PATIENCE)
            if late:
                return
        if self._refreshing is under_way:
            self._refresh_soon()
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing], timeout=_REFRESH_PATIENCE)

    def _watch(self) -> None:
        """Every second, so that the list of the models is right whenever somebody asks."""
        self._next_look = self._loop.call_later(_REFRESH_SECONDS, self._watch)
        self._refresh_soon()

    def _refresh_soon(self) -> None:
        if not self._stopped and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._loop.create_task(self._refresh())

    async def _refresh(self) -> None:
        self._catalog.hold(slot.model for slot in self._fleet.occupied())
        try:
            await self._loop.run_in_executor(self._looker, self._catalog.refresh)
        except Exception:
            log.exception("a fault while looking for models; what was known stays")

    def cards(self) -> list[ModelCard]:
        return self._catalog.cards()

    def current_model(self, among: Container[str] | None = None) -> str | None:
        """The most recently used loaded model, of all or of these."""
        loaded = [slot for slot in self._fleet.occupied() if slot.state is ModelState.READY]
        chosen = [slot for slot in loaded if among is None or slot.model in among]
        return max(chosen, key=lambda slot: slot.last_used).model if chosen else None
