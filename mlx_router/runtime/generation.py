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
)
from mlx_router.engine.base import Constraint, Encoded, Job, Sampling, TextCodec
from mlx_router.errors import InvalidRequest, RequestTimeout
from mlx_router.parsing import CHANNELLED, OutputParser
from mlx_router.runtime.answer import Answer, Choice
from mlx_router.runtime.limits import TokenLimit, check_token_ids
from mlx_router.runtime.resident import Resident

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided for a request before it touches the model. ``limit`` maps the number of
    prompt tokens to the token limit of the answer; ``timeout`` in seconds; ``notices`` are for the
    client."""

    request: GenerationRequest
    sampling: Callable[[TextCodec], Sampling]
    limit: Callable[[int], TokenLimit]
    pressure: Pressure
    timeout: float
    chunk_tokens: int
    notices: tuple[str, ...] = ()


async def run(
    plan: Plan,
    resident: Resident,
    executor: Executor,
    *,
    compile_in: Executor,
    new_id: Callable[[], int],
    arrived: float,
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of one request; closing the iterator drops its sequences before the next step.

    ``compile_in``: where grammars are compiled, which may take long; ``arrived``: perf_counter()
    when the request came in.
    """
    request, codec, model = plan.request, resident.codec, resident.model
    assert codec is not None
    assert model is not None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + plan.timeout
    try:
        async with asyncio.timeout_at(deadline):
            encoded = await loop.run_in_executor(executor, _encode, request, codec)
    except TimeoutError:
        raise RequestTimeout(
            f"The prompt was not read within {plan.timeout:.3g} seconds."
        ) from None
    ids = encoded.ids
    check_token_ids(ids, model.vocab_size, "prompt")
    check_token_ids(request.logit_bias, model.vocab_size, "logit_bias")
    limit = plan.limit(len(ids))
    if limit.clamped is not None:
        log.info("at most %d tokens: %s", limit.max_tokens, limit.clamped)
    constraint = None
    if isinstance(request.prompt, ChatPrompt) and request.prompt.restricts_answer:
        try:
            async with asyncio.timeout_at(deadline):
                constraint = await loop.run_in_executor(
                    compile_in, codec.constraint, request.prompt, ids
                )
        except TimeoutError:
            raise RequestTimeout(
                f"The schema was not compiled within {plan.timeout:.3g} seconds."
            ) from None
    if resident.ended is not None:  # meanwhile
        raise resident.ended
    sampling = plan.sampling(codec)
    answer = Answer(len(ids), resident.drop)
    answer.queued_seconds = time.perf_counter() - arrived
    _start(plan, resident, codec, answer, encoded, limit, sampling, constraint, new_id)
    timer = loop.call_at(deadline, _on_timeout, answer, plan.timeout)
    try:
        yield Started(
            model=resident.card.id,
            prompt_tokens=len(ids),
            max_tokens=limit.max_tokens,
            pressure=plan.pressure,
            clamped=limit.clamped,
            prompt_token_ids=tuple(ids),
            notices=plan.notices,
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
    encoded: Encoded,
    limit: TokenLimit,
    sampling: Sampling,
    constraint: Constraint | None,
    new_id: Callable[[], int],
) -> None:
    request = plan.request
    chat = request.prompt if isinstance(request.prompt, ChatPrompt) else None
    tools = chat.tools if chat is not None and chat.tool_choice != "none" else ()
    tool_format = codec.markers.tool_format if chat is not None else None
    if constraint is not None and constraint.tool_format is not None:
        tool_format = constraint.tool_format
    in_reasoning = chat is not None and codec.starts_in_reasoning(encoded.ids)
    jobs: list[Job] = []
    for index in range(request.n):
        seed = None if sampling.seed is None else sampling.seed + index
        job = Job(
            id=new_id(),
            prompt=encoded.ids,
            max_tokens=limit.max_tokens,
            sampling=replace(sampling, seed=seed),
            logprobs=request.logprobs,
            stop_ids=frozenset() if request.ignore_eos else codec.eos_ids,
            constraint=constraint,
            fork_of=jobs[0].id if jobs else None,
            media=encoded.media,
            cache_scope=request.cache_scope,
            boundaries=encoded.boundaries,
        )
        parser = OutputParser(
            codec.markers.think_start if chat is not None else None,
            codec.markers.think_end if chat is not None else None,
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
            one_call=chat is not None and not chat.parallel_tool_calls,
        )
        answer.add_choice(job.id, choice)
        resident.answers[job.id] = answer
        jobs.append(job)
    resident.thread.add(*jobs)


def _encode(request: GenerationRequest, codec: TextCodec) -> Encoded:
    """Prompt to token ids, on a CPU thread. Raises InvalidRequest."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        encoded = codec.encode_chat(prompt, scope=request.cache_scope)
    elif prompt.text is not None:
        encoded = Encoded(codec.encode(prompt.text))
    else:
        encoded = Encoded(list(prompt.token_ids))
    if not encoded.ids:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    return encoded


def _log_speed(event: Completed) -> None:
    usage, timings = event.usage, event.timings
    log.info(
        "%d prompt tokens (%d reused) in %.2f s, %d tokens in %.2f s (%.1f a second), "
        "waited %.2f s",
        usage.prompt_tokens,
        usage.cached_tokens,
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
        answer.fail(RequestTimeout(f"No token was generated within {seconds:.3g} seconds."))
