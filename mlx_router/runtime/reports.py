"""What the manager tells about models and memory, computed from its parts."""

from __future__ import annotations

import time

from mlx_router.config.settings import ModelSettings, Settings
from mlx_router.domain import ModelCard, ModelState
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.runtime.core import Core
from mlx_router.runtime.status import LoadedInfo, ModelInfo, RouterStatus
from mlx_router.version import __version__


def model_info(
    card: ModelCard, core: Core | None, settings: Settings, monitor: ResourceMonitor
) -> ModelInfo:
    entry = settings.models.get(card.id) or ModelSettings()
    state = _state(card, core)
    can_load, reason = _can_load(card, state, core, monitor)
    slot = core.fleet.slot(card.id) if core is not None else None
    last_used = None
    if slot is not None and slot.last_used:
        last_used = time.time() - (time.monotonic() - slot.last_used)
    return ModelInfo(
        card=card,
        state=state,
        max_tokens=entry.max_tokens or min(card.context_length, settings.defaults.max_tokens),
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
                memory_bytes=slot.need_bytes,
                active=len(slot.active),
                waiting=len(slot.waiting),
                idle_seconds=0.0 if slot.active else max(0.0, now - slot.last_used),
            )
            for slot in core.fleet.occupied()
        ]
    recommended = monitor.policy.recommended_model(cards, monitor.snapshot())
    return RouterStatus(
        version=__version__,
        pressure=monitor.pressure(),
        uptime_seconds=now - born,
        request_count=core.request_count if core is not None else 0,
        current_model=core.current_model() if core is not None else None,
        loaded=loaded,
        memory=monitor.snapshot(),
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
        idle = sum(slot.need_bytes for slot in core.fleet.occupied() if slot.idle)
    verdict = monitor.policy.check_load(card.required_bytes, monitor.snapshot(), idle)
    return verdict.allowed, verdict.reason
