"""What GET /metrics tells: the counts of :class:`Activity` and the state of this moment.

Prometheus's families are made anew at each scrape, so nothing of its library is on the way of a
token. Imported at the first scrape.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from mlx_router.api.service import RouterService
from mlx_router.config.settings import Settings
from mlx_router.domain import ModelState
from mlx_router.memory.policy import ORDER, THRESHOLD_SHARES
from mlx_router.runtime.status import ModelInfo, RouterStatus
from mlx_router.telemetry.activity import ModelTally, Phase
from mlx_router.telemetry.histogram import Histogram

OPEN_METRICS = "application/openmetrics-text"


class Snapshot(Collector):
    """All metrics of one moment. Make it on the router's loop; on any thread :meth:`encode` it,
    which may take some milliseconds."""

    def __init__(self, service: RouterService) -> None:
        activity = service.activity
        self._settings = service.settings
        self._status = service.status()
        self._infos = service.models()
        # What these hold only grows, and no harm is done if it does so meanwhile.
        self._tallies = dict(activity.tallies)
        # A model's name is known once it is found: until then it is only what a client wrote.
        self._phases = Counter(
            (live.model if live.tally is not None and live.model else "", live.phase)
            for live in activity.live.values()
        )

    def collect(self) -> Iterator[Metric]:
        yield from _requests(self._tallies, self._phases)
        yield from _tallies({model: tally for model, tally in self._tallies.items() if model})
        yield from _models(self._infos, self._status)
        yield from _memory(self._status)
        yield from _limits(self._settings, self._status)
        yield from _process(self._status)

    def encode(self, accept: str) -> tuple[bytes, str]:
        """The text for a client that sent this Accept header, and its media type."""
        if OPEN_METRICS in accept:
            text: bytes = openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self), exposition.CONTENT_TYPE_PLAIN_0_0_4


def _requests(
    tallies: Mapping[str, ModelTally], phases: Counter[tuple[str, Phase]]
) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "mlx_router_requests",
        "Requests that have ended, by how: completed, cancelled (the client left), or the code of "
        "the error. An empty model: none that there is was asked for. What is refused before a "
        "model is looked for (a wrong key, a malformed body) is not counted.",
        labels=["model", "outcome"],
    )
    under_way = GaugeMetricFamily(
        "mlx_router_requests_in_progress",
        "Requests under way: waiting (for the model: its turn, its load, its download), prefill or "
        "decoding.",
        labels=["model", "phase"],
    )
    for model in dict.fromkeys([*tallies, *(model for model, _ in phases)]):
        for phase in Phase:
            under_way.add_metric([model, phase], phases[model, phase])
    for model, tally in tallies.items():
        for outcome, count in dict(tally.requests).items():
            ended.add_metric([model, outcome], count)
    yield ended
    yield under_way


def _tallies(tallies: Mapping[str, ModelTally]) -> Iterator[Metric]:
    def counter(name: str, meaning: str, value: Callable[[ModelTally], int]) -> Metric:
        family = CounterMetricFamily(f"mlx_router_{name}", meaning, labels=["model"])
        for model, tally in tallies.items():
            family.add_metric([model], value(tally))
        return family

    def histogram(name: str, meaning: str, value: Callable[[ModelTally], Histogram]) -> Metric:
        family = HistogramMetricFamily(f"mlx_router_{name}", meaning, labels=["model"])
        for model, tally in tallies.items():
            found = value(tally)
            family.add_metric([model], list(found.cumulative()), found.total)
        return family

    yield histogram(
        "queue_wait_seconds",
        "From a request's arrival until its model had a place for it; a load included.",
        lambda tally: tally.waiting,
    )
    yield histogram(
        "time_to_first_token_seconds",
        "From a request's arrival to the first piece of its answer.",
        lambda tally: tally.first_token,
    )
    yield histogram(
        "inter_token_seconds",
        "Between the tokens of an answer; those that come together share the time.",
        lambda tally: tally.between_tokens,
    )
    yield counter(
        "prompt_tokens",
        "Prompt tokens of completed requests, those from the prefix cache included.",
        lambda tally: tally.prompt_tokens,
    )
    yield counter(
        "prompt_tokens_cached",
        "Prompt tokens of completed requests that the prefix cache had.",
        lambda tally: tally.cached_tokens,
    )
    yield counter("completion_tokens", "Tokens generated.", lambda tally: tally.completion_tokens)
    yield histogram(
        "model_load_seconds",
        "How long loading the model took; the count is the number of its loads.",
        lambda tally: tally.loading,
    )
    yield counter("model_load_failures", "Loads that failed.", lambda tally: tally.load_failures)
    unloads = CounterMetricFamily(
        "mlx_router_model_unloads",
        "Unloads, by reason: asked, idle (ttl_seconds are over), limits (they were lowered), "
        "pressure (memory is short) or swap (another model took its place).",
        labels=["model", "reason"],
    )
    for model, tally in tallies.items():
        for reason, count in dict(tally.unloads).items():
            unloads.add_metric([model, reason], count)
    yield unloads
    yield counter(
        "engine_deaths", "How often the model's engine failed for good.", lambda tally: tally.deaths
    )


def _models(infos: Iterable[ModelInfo], status: RouterStatus) -> Iterator[Metric]:
    loaded = GaugeMetricFamily(
        "mlx_router_model_loaded", "1: in memory and ready; 0: not.", labels=["model"]
    )
    for info in infos:
        loaded.add_metric([info.card.id], info.state is ModelState.READY)
    yield loaded
    memory = GaugeMetricFamily(
        "mlx_router_model_memory_bytes",
        "What unloading the model would give back; of models in memory only.",
        labels=["model"],
    )
    for held in status.loaded:
        memory.add_metric([held.id], held.memory_bytes)
    yield memory
    states = Counter(info.state for info in infos)
    models = GaugeMetricFamily("mlx_router_models", "Models found, by state.", labels=["state"])
    for state in ModelState:
        models.add_metric([state], states[state])
    yield models


def _memory(status: RouterStatus) -> Iterator[Metric]:
    memory = status.memory
    yield _gauge("memory_total_bytes", "Memory of the machine, or of its container.", memory.total)
    yield _gauge(
        "memory_available_bytes", "Memory that can be had without swapping.", memory.available
    )
    yield _gauge("memory_used_bytes", "Memory in use, by whatever program.", memory.used)
    yield _gauge("process_memory_bytes", "Memory of this process.", memory.process)
    yield _gauge("mlx_active_bytes", "Memory that MLX uses.", memory.mlx_active)
    yield _gauge("mlx_cache_bytes", "Memory that MLX keeps for reuse.", memory.mlx_cache)
    yield _gauge("mlx_peak_bytes", "The most that MLX ever used.", memory.mlx_peak)
    yield _gauge("swap_total_bytes", "Swap space.", memory.swap_total)
    yield _gauge("swap_used_bytes", "Swap space in use.", memory.swap_used)
    yield _gauge(
        "memory_pressure",
        "0: normal, 1: moderate, 2: high, 3: critical.",
        ORDER.index(status.pressure),
    )


def _limits(settings: Settings, status: RouterStatus) -> Iterator[Metric]:
    policy, defaults = status.policy, settings.defaults
    below = GaugeMetricFamily(
        "mlx_router_memory_limit_bytes",
        "With less memory available, pressure is at least this.",
        labels=["pressure"],
    )
    for level in THRESHOLD_SHARES:
        below.add_metric([level], policy.limit(level))
    yield below
    swap = GaugeMetricFamily(
        "mlx_router_swap_limit_ratio",
        "With more of the swap space in use, pressure is at least this.",
        labels=["pressure"],
    )
    swap.add_metric(["high"], policy.swap_high_percent / 100)
    swap.add_metric(["critical"], policy.swap_critical_percent / 100)
    yield swap
    yield _gauge("loaded_models_limit", "Models in memory at once.", defaults.cache_size)
    yield _gauge(
        "active_requests_limit", "Requests that a model serves at once.", defaults.max_batch_size
    )
    yield _gauge(
        "waiting_requests_limit",
        "Requests that may wait for a model; more get a 429.",
        settings.server.max_queue,
    )


def _process(status: RouterStatus) -> Iterator[Metric]:
    yield _gauge("uptime_seconds", "Since the start.", status.uptime_seconds)
    yield InfoMetricFamily(
        "mlx_router_build",
        "What runs here.",
        {"version": status.version, "python": platform.python_version(), "mlx": _installed("mlx")},
    )


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mlx_router_{name}", meaning, value)


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # scripted answers need none
        return ""
