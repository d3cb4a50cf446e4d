"""Several requests, answered as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Preparing,
    Started,
    Timings,
    Usage,
)

Events = AsyncGenerator[GenerationEvent, None]


@dataclass(frozen=True, slots=True)
class StartedOne(Started):
    """One of the merged requests was admitted: number ``source``. ``max_tokens`` and ``clamped``
    are those of the request that was clamped most so far; ``notices`` are of all so far."""

    source: int = 0


def merge(
    generate: Callable[[GenerationRequest], Events],
    requests: Sequence[GenerationRequest],
    at_once: int,
) -> Events:
    """The events of all requests as they come; choice i of request k is choice k * n + i. One
    Started for each request, in any order, and one Completed: the sum of the usages, the longest of
    the timings; Preparing only before the first Started.

    At most ``at_once`` requests are under way at any time. Raises the first error of any, and
    closes all when one fails or when the generator itself is closed. All have the same n.
    """
    return generate(requests[0]) if len(requests) == 1 else _merge(generate, requests, at_once)


async def _merge(
    generate: Callable[[GenerationRequest], Events],
    requests: Sequence[GenerationRequest],
    at_once: int,
) -> Events:
    places = asyncio.Semaphore(at_once)
    news: asyncio.Queue[tuple[int, GenerationEvent] | asyncio.Task[None]] = asyncio.Queue()

    async def read(source: int, request: GenerationRequest) -> None:
        async with places, aclosing(generate(request)) as events:
            async for event in events:
                news.put_nowait((source, event))

    tasks = [asyncio.create_task(read(*numbered)) for numbered in enumerate(requests)]
    for task in tasks:
        task.add_done_callback(news.put_nowait)
    running = len(tasks)
    completed: list[Completed] = []
    tightest: Started | None = None
    notices: dict[str, None] = {}  # in order, each once
    try:
        while running:
            item = await news.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
                continue
            source, event = item
            if isinstance(event, Completed):
                completed.append(event)
            elif isinstance(event, Started):
                tightest = _tighter(tightest, event)
                notices.update(dict.fromkeys(event.notices))
                yield _started(event, tightest, tuple(notices), source)
            elif isinstance(event, Preparing):
                if tightest is None:
                    yield event
            else:
                yield _renumbered(event, source * requests[0].n)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if len(completed) == len(requests):  # else the reader sees that the end is missing
        yield _sum(completed)


def _renumbered(event: Delta | Finished, offset: int) -> Delta | Finished:
    return replace(event, index=event.index + offset)


def _tighter(tightest: Started | None, event: Started) -> Started:
    if tightest is None or tightest.clamped is None:
        return event
    return event if event.clamped and event.max_tokens < tightest.max_tokens else tightest


def _started(
    event: Started, tightest: Started, notices: tuple[str, ...], source: int
) -> StartedOne:
    return StartedOne(
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        max_tokens=tightest.max_tokens,
        pressure=event.pressure,
        clamped=tightest.clamped,
        prompt_token_ids=event.prompt_token_ids,
        notices=notices,
        source=source,
    )


def _sum(completed: Sequence[Completed]) -> Completed:
    usages = [one.usage for one in completed]
    timings = [one.timings for one in completed]
    return Completed(
        Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        ),
        Timings(
            queued=max(timing.queued for timing in timings),
            prefill=max(timing.prefill for timing in timings),
            decode=max(timing.decode for timing in timings),
        ),
    )
