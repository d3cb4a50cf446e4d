"""What the manager tells about models and memory, computed from its parts."""

from __future__ import annotations

import time

from mlx_router.config.settings import Settings
from mlx_router.domain import ModelCard, ModelState
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.budget import MemoryBudget
from mlx_router.runtime.core import Core
from mlx_router.runtime.limits import model_max_tokens, token_limits
from mlx_router.runtime.status import LoadedInfo, ModelInfo, RouterStatus
from mlx_router.version import __version__


def model_info(
    card: ModelCard, core: Core | None, settings: Settings, monitor: ResourceMonitor
) -> ModelInfo:
    entry, limits = settings.for_model(card.id), token_limits(card, settings)
    state = _state(card, core)
    can_load, reason = _can_load(card, state, core, monitor)
    slot = core.fleet.slot(card.id) if core is not None else None
    last_used = None
    if slot is not None and slot.last_used:
        last_used = time.time() - (time.monotonic() - slot.last_used)
    return ModelInfo(
        card=card,
        state=state,
        max_tokens=model_max_tokens(card, settings),
        token_limits=limits,
        max_tokens_now=limits.at(monitor.pressure()),
        chat_template=entry.chat_template,
        can_load_now=can_load,
        load_status_reason=reason,
        last_used=last_used,
        pinned=entry.pinned,
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
    pressure, memory, policy = monitor.pressure(), monitor.snapshot(), monitor.policy
    recommended = policy.recommended_model(cards, memory, pressure)
    return RouterStatus(
        version=__version__,
        pressure=pressure,
        policy=policy,
        uptime_seconds=now - born,
        request_count=core.request_count if core is not None else 0,
        current_model=core.finder.current_model() if core is not None else None,
        loaded=loaded,
        memory=memory,
        recommended_model=recommended.id if recommended is not None else None,
        can_load_models=[
            card.id for card in cards if _can_load(card, _state(card, core), core, monitor)[0]
        ],
    )


def _state(card: ModelCard, core: Core | None) -> ModelState:
    if not card.usable:
        return ModelState.UNUSABLE
    return core.fleet.state(card.id) if core is not None else ModelState.UNLOADED


def _can_load(
    card: ModelCard, state: ModelState, core: Core | None, monitor: ResourceMonitor
) -> tuple[bool, str]:
    if card.problem is not None:
        return False, card.problem
    if state is ModelState.READY:
        return True, "loaded"
    idle = 0
    if core is not None:
        idle = sum(s.gives_back for s in core.fleet.occupied() if s.idle and not s.pinned)
    refusal = MemoryBudget.of(monitor).refusal(card.required_bytes, idle)
    return refusal is None, refusal or "it fits"
