"""The measurements, one after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from mlx_router.bench.results import Measured, Plan, Prompt, Results, Swap, Together
from mlx_router.bench.target import Answer, Subject, Target
from mlx_router.errors import RouterError

USUAL_RUNS = 3
LONG_SECONDS = 10.0  # nothing that took so long is measured once more, unless runs are asked for
STREAM_PROMPT = 16  # tokens
MORE_PROMPT = 16  # tokens at the end of a prompt that is asked again, as where a chat goes on
WARM_UP_PROMPT = 64
_WARM_UP_TOKENS = 8
_TEXT = """
river stone window garden morning letter silver number island mountain paper doctor winter bridge
market candle engine forest harbour kitchen ladder mirror needle orange pencil queen railway shadow
table umbrella village whisper yellow answer button castle dinner evening finger guitar hammer
infant jacket kettle lemon machine north ocean piano question rabbit summer tower under valley
water always before carry dance early follow gather happen invite listen measure notice offer
"""

# What is measured now, which measurement it is, counted from 1, and of how many.
Say = Callable[[str, int, int], None]


class Suite:
    """Measures models and puts what comes of it into ``results`` at once, so that whoever ends it
    early has what there is."""

    def __init__(self, target: Target, plan: Plan, results: Results, tell: Say) -> None:
        self._target = target
        self._plan = plan
        self._results = results
        self._tell = tell
        self._begun = self._models = self._failed = 0
        self._random = random.Random()
        self._vocabulary = _TEXT.split()

    async def run(self, subjects: Sequence[Subject]) -> None:
        """Measure them all, and the swaps between them. What goes wrong with one is among the
        failures of the results, and the others are measured all the same."""
        self._begun, self._failed, self._models = 0, 0, len(subjects)
        measured = [subject.id for subject in subjects if await self._model(subject)]
        if len(measured) > 1:
            await self._swaps(measured)

    def _say(self, what: str) -> None:
        each = 1 + len(self._plan.prompts) + len(self._plan.streams)
        swaps = self._models if self._models > 1 else 0
        self._begun += 1
        self._tell(what, self._begun, self._failed + self._models * each + swaps)

    async def _model(self, subject: Subject) -> bool:
        """Whether the model could be loaded."""
        model = Measured(subject)
        self._say(f"{subject.id}: loading")
        if not await self._step(subject.id, partial(self._load, model)):
            self._failed, self._models = self._failed + 1, self._models - 1
            return False
        self._results.models.append(model)
        for tokens in self._plan.prompts:
            what = f"{subject.id}: prompt of {tokens} tokens"
            self._say(what)
            if refusal := self._too_long(model, tokens):
                self._note(f"{what}: left out, {refusal}.")
                continue
            prompt = Prompt(tokens)
            model.prompts.append(prompt)
            await self._step(what, partial(self._prompt, subject.id, prompt))
        for streams in self._plan.streams:
            what = f"{subject.id}: {streams} stream{'s' if streams > 1 else ''}"
            self._say(what)
            together = Together(streams)
            model.streams.append(together)
            await self._step(what, partial(self._together, subject, together))
        return await self._step(subject.id, partial(self._target.unload, subject.id))

    def _too_long(self, model: Measured, tokens: int) -> str | None:
        """Why a prompt of that length is left out; None: it is not."""
        context = model.subject.context_length
        if tokens + MORE_PROMPT >= context:
            return f"its context is {context} tokens"
        if self._plan.longest_prompt is None or not model.prompts:
            return None
        before = model.prompts[-1]
        expected = (before.cold_seconds or 0.0) * tokens / before.tokens
        if expected <= self._plan.longest_prompt:
            return None
        return f"it would take over {expected:.0f} s (--prompt {tokens} measures it all the same)"

    async def _load(self, model: Measured) -> None:
        name = model.subject.id
        if await self._target.is_ready(name):
            await self._target.unload(name)
        if await self._target.is_ready(name):
            self._note(f"{name}: was in memory already, so its load was not measured.")
        else:

            async def load() -> None:
                await self._target.unload(name)
                if not await self._target.is_ready(name):
                    began = time.perf_counter()
                    await self._target.load(name)
                    model.load_seconds.append(time.perf_counter() - began)

            await self._repeat(load)
        prompt = await self._words(name, min(WARM_UP_PROMPT, model.subject.context_length // 2))
        await self._target.ask(name, prompt, _WARM_UP_TOKENS)

    async def _prompt(self, name: str, prompt: Prompt) -> None:
        async def once() -> None:
            ids = await self._words(name, prompt.tokens)
            more = await self._words(name, MORE_PROMPT)
            prompt.cold.append(await self._target.ask(name, ids, 1))
            prompt.warm.append(await self._target.ask(name, [*ids, *more], 1))

        await self._repeat(once)

    async def _together(self, subject: Subject, together: Together) -> None:
        length = min(STREAM_PROMPT, subject.context_length // 2)

        async def once() -> None:
            prompts = [await self._words(subject.id, length) for _ in range(together.streams)]
            asks = [self._target.ask(subject.id, ids, self._plan.tokens) for ids in prompts]
            together.runs.append(await _all(asks))

        await self._repeat(once)
        shortest = min(answer.completion_tokens for run in together.runs for answer in run)
        if shortest < self._plan.tokens:
            self._note(
                f"{subject.id}: {together.streams} streams: answers of {shortest} tokens, since "
                "its max_tokens, its context or memory pressure allow no more."
            )

    async def _swaps(self, names: Sequence[str]) -> None:
        """Round the models, each to the next one."""
        for out, into in zip(names, [*names[1:], names[0]], strict=True):
            what = f"swap from {out} to {into}"
            self._say(what)
            swap = Swap(out, into)
            self._results.swaps.append(swap)
            await self._step(what, partial(self._swap, swap))

    async def _swap(self, swap: Swap) -> None:
        async def once() -> None:
            await self._target.load(swap.out)
            if await self._target.is_ready(swap.into):
                return
            ids = await self._words(swap.into, STREAM_PROMPT)
            answer = await self._target.ask(swap.into, ids, 1)
            swap.seconds.append(answer.first_token_seconds)

        await self._repeat(once)
        if not swap.seconds:
            self._note(f"{swap.out} and {swap.into} are in memory together: nothing is swapped.")

    async def _repeat(self, once: Callable[[], Awaitable[None]]) -> None:
        """As often as the plan says."""
        began = time.perf_counter()
        for run in range(self._plan.runs or USUAL_RUNS):
            late = time.perf_counter() - began > LONG_SECONDS
            if run and self._plan.runs is None and late:
                return
            await once()

    async def _step(self, what: str, step: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well."""
        try:
            await step()
        except RouterError as error:
            self._results.failures.append(f"{what}: {error.message}")
            return False
        return True

    async def _words(self, model: str, count: int) -> list[int]:
        """So many token ids of a text that nobody has asked about."""
        ids: list[int] = []
        words = count
        while len(ids) < count:
            text = " ".join(self._random.choices(self._vocabulary, k=words))
            ids = await self._target.tokenize(model, text)
            words *= 2
        return ids[:count]

    def _note(self, note: str) -> None:
        self._results.notes.append(note)


async def _all(asks: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Ask at the same moment. One that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask) for ask in asks]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
