"""One request on a loaded model: encode, check, start the sequences, hand out the events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from mlx_router.domain import (
    ChatPrompt,
    Completed,
    GenerationEvent,
    GenerationRequest,
    Pressure,
    Started,
    Tool,
)
from mlx_router.engine.base import Job, Sampling, TextCodec
from mlx_router.errors import InvalidRequest, RequestTimeout
from mlx_router.parsing import CHANNELLED, OutputParser
from mlx_router.runtime.answer import Answer, Choice
from mlx_router.runtime.limits import TokenLimit, check_token_ids
from mlx_router.runtime.resident import Resident

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided for a request before it touches the model. ``limit`` maps the number of
    prompt tokens to the token limit of the answer; ``timeout`` in seconds."""

    request: GenerationRequest
    sampling: Callable[[TextCodec], Sampling]
    limit: Callable[[int], TokenLimit]
    pressure: Pressure
    timeout: float
    chunk_tokens: int


async def run(
    plan: Plan, resident: Resident, executor: Executor, new_id: Callable[[], int], arrived: float
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of one request; closing the iterator drops its sequences before the next step.

    ``arrived``: perf_counter() when the request came in.
    """
    request, codec, model = plan.request, resident.codec, resident.model
    assert codec is not None
    assert model is not None
    loop = asyncio.get_running_loop()
    ids = await loop.run_in_executor(executor, _encode, request, codec)
    if resident.ended is not None:  # meanwhile
        raise resident.ended
    check_token_ids(ids, model.vocab_size, "prompt")
    check_token_ids(request.logit_bias, model.vocab_size, "logit_bias")
    limit = plan.limit(len(ids))
    if limit.clamped is not None:
        log.info("at most %d tokens: %s", limit.max_tokens, limit.clamped)
    sampling = plan.sampling(codec)
    answer = Answer(len(ids), resident.drop)
    answer.queued_seconds = time.perf_counter() - arrived
    _start(plan, resident, codec, answer, ids, limit, sampling, new_id)
    timer = loop.call_later(plan.timeout, _on_timeout, answer, plan.timeout)
    try:
        yield Started(
            model=resident.card.id,
            prompt_tokens=len(ids),
            max_tokens=limit.max_tokens,
            pressure=plan.pressure,
            clamped=limit.clamped,
            prompt_token_ids=tuple(ids),
        )
        async for event in answer:
            if isinstance(event, Completed):
                _log_speed(event)
            yield event
    finally:
        timer.cancel()
        answer.abort_all()


def _start(
    plan: Plan,
    resident: Resident,
    codec: TextCodec,
    answer: Answer,
    ids: list[int],
    limit: TokenLimit,
    sampling: Sampling,
    new_id: Callable[[], int],
) -> None:
    request = plan.request
    tools: tuple[Tool, ...] = ()
    if isinstance(request.prompt, ChatPrompt) and request.prompt.tool_choice != "none":
        tools = request.prompt.tools
    is_chat = isinstance(request.prompt, ChatPrompt)
    tool_format = codec.markers.tool_format if is_chat else None
    in_reasoning = is_chat and codec.starts_in_reasoning(ids)
    for index in range(request.n):
        seed = None if sampling.seed is None else sampling.seed + index
        job = Job(
            id=new_id(),
            prompt=ids,
            max_tokens=limit.max_tokens,
            sampling=replace(sampling, seed=seed),
            logprobs=request.logprobs,
            stop_ids=frozenset() if request.ignore_eos else codec.eos_ids,
        )
        parser = OutputParser(
            codec.markers.think_start if is_chat else None,
            codec.markers.think_end if is_chat else None,
            tool_format if tools or tool_format in CHANNELLED else None,
            stop=request.stop,
            tools=tools,
            starts_in_reasoning=in_reasoning,
        )
        choice = Choice(
            answer,
            index,
            codec,
            parser,
            stop=request.stop,
            chunk_tokens=plan.chunk_tokens,
            in_reasoning=in_reasoning,
        )
        answer.add_choice(job.id, choice)
        resident.answers[job.id] = answer
        resident.thread.add(job)


def _encode(request: GenerationRequest, codec: TextCodec) -> list[int]:
    """Prompt to token ids, on a CPU thread. Raises InvalidRequest."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        ids = codec.encode_chat(prompt)
    elif prompt.text is not None:
        ids = codec.encode(prompt.text)
    else:
        ids = list(prompt.token_ids)
    if not ids:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    return ids


def _log_speed(event: Completed) -> None:
    usage, timings = event.usage, event.timings
    log.info(
        "%d prompt tokens in %.2f s, %d tokens in %.2f s (%.1f a second), waited %.2f s",
        usage.prompt_tokens,
        timings.prefill,
        usage.completion_tokens,
        timings.decode,
        usage.completion_tokens / timings.decode if timings.decode else 0.0,
        timings.queued,
    )


def _on_timeout(answer: Answer, seconds: float) -> None:
    if answer.closed:
        return
    if answer.has_tokens:
        answer.time_out()
    else:
        answer.fail(RequestTimeout(f"No token was generated within {seconds:.0f} seconds."))
