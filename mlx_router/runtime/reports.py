"""What the manager tells about models and memory, computed from its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mlx_router.config.settings import Settings
from mlx_router.domain import ModelCard, ModelState
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.budget import MemoryBudget
from mlx_router.runtime.core import Core
from mlx_router.runtime.limits import model_max_tokens, token_limits
from mlx_router.runtime.status import LoadedInfo, ModelInfo, RouterStatus
from mlx_router.version import __version__


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the answers for all models share. ``refusal``: why a model that needs so many bytes
    cannot be loaded, even if idle ones go; None if it can."""

    core: Core | None
    budget: MemoryBudget
    refusal: Callable[[int], str | None]

    @classmethod
    def of(cls, core: Core | None, monitor: ResourceMonitor) -> _Moment:
        occupied = core.fleet.occupied() if core is not None else []
        reclaimable = sum(s.gives_back for s in occupied if s.idle and not s.pinned)
        budget = MemoryBudget.of(monitor)
        return cls(core, budget, budget.refusals(reclaimable))

    def state(self, card: ModelCard) -> ModelState:
        if not card.usable:
            return ModelState.UNUSABLE
        return self.core.fleet.state(card.id) if self.core is not None else ModelState.UNLOADED

    def can_load(self, card: ModelCard) -> tuple[bool, str]:
        """Whether it could be loaded now, or is; and a reason."""
        if card.problem is not None:
            return False, card.problem
        if self.state(card) is ModelState.READY:
            return True, "loaded"
        refusal = self.refusal(card.required_bytes)
        return refusal is None, refusal or "it fits"


def model_infos(
    cards: list[ModelCard], core: Core | None, settings: Settings, monitor: ResourceMonitor
) -> list[ModelInfo]:
    """What there is to tell of these models, at one moment."""
    moment = _Moment.of(core, monitor)
    return [_model_info(card, moment, settings) for card in cards]


def _model_info(card: ModelCard, moment: _Moment, settings: Settings) -> ModelInfo:
    entry, limits = settings.for_model(card.id), token_limits(card, settings)
    can_load, reason = moment.can_load(card)
    slot = moment.core.fleet.slot(card.id) if moment.core is not None else None
    last_used = None
    if slot is not None and slot.last_used:
        last_used = time.time() - (time.monotonic() - slot.last_used)
    return ModelInfo(
        card=card,
        state=moment.state(card),
        max_tokens=model_max_tokens(card, settings),
        token_limits=limits,
        max_tokens_now=limits.at(moment.budget.pressure),
        chat_template=entry.chat_template,
        can_load_now=can_load,
        load_status_reason=reason,
        last_used=last_used,
        pinned=moment.core.pinned(card) if moment.core is not None else entry.pinned,
        aliases=tuple(entry.aliases),
    )


def router_status(
    core: Core | None, cards: list[ModelCard], monitor: ResourceMonitor, born: float
) -> RouterStatus:
    """``born``: time.monotonic() of the start."""
    now = time.monotonic()
    loaded = []
    if core is not None:
        loaded = [
            LoadedInfo(
                id=slot.model,
                state=core.fleet.state(slot.model),
                memory_bytes=slot.gives_back,
                active=len(slot.active),
                waiting=len(slot.waiting),
                idle_seconds=max(0.0, now - slot.last_used) if slot.idle else 0.0,
            )
            for slot in core.fleet.occupied()
        ]
    moment = _Moment.of(core, monitor)
    pressure, memory, policy = moment.budget.pressure, moment.budget.snapshot, moment.budget.policy
    recommended = policy.recommended_model(cards, memory, pressure)
    return RouterStatus(
        version=__version__,
        pressure=pressure,
        policy=policy,
        uptime_seconds=now - born,
        request_count=core.activity.request_count if core is not None else 0,
        current_model=core.finder.current_model() if core is not None else None,
        loaded=loaded,
        memory=memory,
        recommended_model=recommended.id if recommended is not None else None,
        can_load_models=[card.id for card in cards if moment.can_load(card)[0]],
        stopping=core is not None and core.stopping,
    )
