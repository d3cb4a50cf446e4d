"""From settings to the parts of a manager."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlx_router.catalog.catalog import Catalog, ModelOverride
from mlx_router.catalog.inspect import inspect_folder
from mlx_router.catalog.observed import Observed, ObservedBatching, ObservedMemory, ObservedModels
from mlx_router.catalog.stores import hugging_face_cache, lm_studio_folders
from mlx_router.config.fields import expand
from mlx_router.config.settings import ModelSettings, Settings
from mlx_router.domain import GIB, MLXMemory, ModelCard
from mlx_router.engine.base import BatchTrial, EngineFactory, LoadedModel
from mlx_router.errors import ModelLoadFailed, ModelNotFound
from mlx_router.memory.monitor import ResourceMonitor
from mlx_router.memory.policy import MemoryPolicy
from mlx_router.memory.probe import SystemProbe
from mlx_router.runtime.residents import ResidentOptions
from mlx_router.scheduling import Limits, Wanted

DEMO_MODEL = "demo"
_DEMO = Path(__file__).parent.parent / "demo"
_DEMO_MODELS = {DEMO_MODEL: _DEMO / "model", "demo-vision": _DEMO / "vision"}


def with_demo(settings: Settings) -> Settings:
    """The settings with the built-in demo models added; the one for text is the default model
    unless another one is configured."""
    models = dict(settings.models)
    for name, folder in _DEMO_MODELS.items():
        entry = models.get(name, ModelSettings())
        models[name] = entry.model_copy(update={"path": str(folder)})
    update: dict[str, object] = {"models": models}
    if settings.defaults.model is None:
        update["defaults"] = settings.defaults.model_copy(update={"model": DEMO_MODEL})
        update["default_model"] = DEMO_MODEL
    return settings.model_copy(update=update)


def with_folders(settings: Settings, folders: str | Path | list[str | Path]) -> Settings:
    """The settings with other model directories."""
    listed = folders if isinstance(folders, list) else [folders]
    changed = {"model_directory": [str(folder) for folder in listed]}
    defaults = settings.defaults.model_copy(update=changed)
    return settings.model_copy(update={"defaults": defaults})


def make_catalog(settings: Settings, engine: str) -> Catalog:
    if engine == "scripted":
        from mlx_router.engine.scripted import scripted_cards

        return Catalog([], fixed=scripted_cards())
    folders = settings.defaults.model_directories()
    hub = hugging_face_cache(os.environ, Path.home())
    studio = lm_studio_folders(Path.home())
    if settings.defaults.hf_cache:
        folders.append(hub)
    if settings.defaults.lmstudio:
        folders += studio
    overrides = {name: _override(entry) for name, entry in settings.models.items()}
    # Tools link the files of one program's models into another's folder, served or not.
    return Catalog(
        folders,
        overrides,
        link_roots=[hub, *studio],
        observed=ObservedModels(settings.defaults.state_folder()),
        prefill_tokens=settings.defaults.prefill_step_size,
    )


def observe(catalog: Catalog, card: ModelCard, model: LoadedModel) -> None:
    """Remember what a model proved to be, for the next refresh and the next start."""
    trial = model.batch_trial
    observed = Observed(
        ObservedMemory(model.memory_bytes, model.cache_bytes),
        ObservedBatching(trial.batches, trial.reason, trial.versions)
        if trial and trial.lasting
        else None,
    )
    if catalog.observed is not None:
        catalog.observed.put(card, observed)


def adapted(
    settings: Settings,
    *,
    folders: str | Path | list[str | Path] | None,
    demo: bool,
    engine: str,
) -> Settings:
    """The settings under what a manager was made with, which comes first."""
    if folders is not None:
        settings = with_folders(settings, folders)
    if engine == "scripted":  # which could not load what is downloaded
        defaults = settings.defaults.model_copy(update={"allow_downloads": False})
        settings = settings.model_copy(update={"defaults": defaults})
    return with_demo(settings) if demo else settings


def make_monitor(settings: Settings) -> ResourceMonitor:
    probe = SystemProbe()
    policy = make_policy(settings, probe.snapshot().total)
    return ResourceMonitor(probe, policy, mlx_memory=mlx_memory)


def make_policy(settings: Settings, total_bytes: int) -> MemoryPolicy:
    """``total_bytes``: the machine's memory, which the default threshold is a share of."""
    defaults = settings.defaults
    threshold = defaults.memory_threshold_gb
    return MemoryPolicy(
        threshold_bytes=MemoryPolicy.default_threshold(total_bytes)
        if threshold is None
        else int(threshold * GIB),
        safety_margin=defaults.safety_margin,
        swap_high_percent=defaults.swap_high_percent,
        swap_critical_percent=defaults.swap_critical_percent,
    )


def change_policy(monitor: ResourceMonitor, before: Settings, after: Settings) -> None:
    """Let the monitor judge by other settings, if they say anything else about memory: a program
    may have given it a policy of its own."""
    total = monitor.snapshot().total
    policy = make_policy(after, total)
    if policy != make_policy(before, total):
        monitor.policy = policy


def mlx_memory() -> MLXMemory | None:
    """What MLX holds; None as long as no model has needed it. Never imports it."""
    memory = getattr(sys.modules.get("mlx_router.engine.device"), "memory", None)
    return memory() if memory is not None else None


def limits(settings: Settings) -> Limits:
    """What the scheduler keeps to."""
    return Limits(
        cache_size=settings.defaults.cache_size,
        max_active=settings.defaults.max_batch_size,
        max_queue=settings.server.max_queue,
    )


def wanted(card: ModelCard, settings: Settings) -> Wanted:
    """The model, and how long it may stay, as the config has it."""
    entry = settings.for_model(card.id)
    group = settings.group_of(entry)
    ttl = entry.ttl_seconds
    if ttl is None and group.idle_unload_minutes is not None:
        ttl = 60.0 * group.idle_unload_minutes
    return Wanted(
        card.id,
        card.required_bytes,
        pinned=entry.pinned,
        ttl_seconds=ttl,
        group=entry.group,
        group_limit=group.max_loaded,
    )


def resident_options(settings: Settings) -> ResidentOptions:
    defaults = settings.defaults
    return ResidentOptions(
        warm_up_tokens=defaults.warmup_tokens,
        load_timeout=defaults.load_timeout,
        serialize_steps=defaults.serialize_steps,
    )


def make_factory(settings: Settings, engine: str, catalog: Catalog) -> EngineFactory:
    """``catalog``: for what was observed of its models."""
    if engine == "scripted":
        from mlx_router.engine.scripted import ScriptedFactory

        return ScriptedFactory()
    from mlx_router.engine.factory import MLXFactory, ModelOptions

    total = SystemProbe().snapshot().total
    disk_bytes = int(settings.prefix_cache.disk_gb * GIB)

    def options(card: ModelCard) -> ModelOptions:
        # It imports MLX, which commands that load no model start without.
        from mlx_router.engine.text import TextEngineOptions

        entry = settings.for_model(card.id)
        defaults = settings.defaults
        return ModelOptions(
            TextEngineOptions(
                prefill_step_size=defaults.prefill_step_size,
                max_batch_size=defaults.max_batch_size,
                wired_limit=defaults.wired_limit,
                adapter_path=Path(entry.adapter_path).expanduser() if entry.adapter_path else None,
                trust_remote_code=entry.trust_remote_code,
                batch_trial=_batch_trial(catalog, card),
                prefix_cache_bytes=settings.prefix_cache.memory_bytes(total),
                prefix_disk=(settings.prefix_cache.folder(), disk_bytes) if disk_bytes else None,
                kv_bits=entry.kv_bits,
                draft=_draft(catalog, card, entry),
                prompt_lookup=defaults.prompt_lookup
                if entry.prompt_lookup is None
                else entry.prompt_lookup,
            ),
            chat_template=entry.chat_template,
        )

    return MLXFactory(options)


def _draft(catalog: Catalog, card: ModelCard, entry: ModelSettings) -> ModelCard | None:
    """The model that drafts for this one: one of the catalog, or a folder. Raises ModelLoadFailed
    if there is none of that name."""
    if entry.draft_model is None:
        return None
    draft: ModelCard | None
    try:
        draft = catalog.resolve(entry.draft_model)
    except ModelNotFound as error:
        draft, problem = inspect_folder(expand(entry.draft_model), entry.draft_model), error.message
    if draft is not None and draft.problem is None:
        return draft
    reason = str(problem if draft is None else draft.problem).rstrip(".")
    raise ModelLoadFailed(
        f"The draft_model of {card.id} cannot be used: {reason}. "
        "Name a small model of the same family in draft_model, or leave it out."
    )


def _batch_trial(catalog: Catalog, card: ModelCard) -> BatchTrial | None:
    known = catalog.observed.get(card) if catalog.observed is not None else None
    if known is None or known.batching is None:
        return None
    return BatchTrial(known.batching.batches, known.batching.reason, known.batching.versions)


def _override(entry: ModelSettings) -> ModelOverride:
    required = entry.required_memory_gb
    return ModelOverride(
        path=entry.directory(),
        aliases=tuple(entry.aliases),
        required_bytes=None if required is None else int(required * GIB),
        context_length=entry.context_length,
        supports_tools=entry.supports_tools,
        supports_vision=entry.supports_vision,
        trust_remote_code=entry.trust_remote_code,
        adapter=entry.adapter_path,
    )
