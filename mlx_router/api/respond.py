"""From the events of an answer to the response that carries it, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from mlx_router.api.generation import Call
from mlx_router.api.service import service_of
from mlx_router.api.stream import Encoder, StreamingAnswer, unless_client_leaves
from mlx_router.api.wire import dumps, header_value, started_headers
from mlx_router.domain import GenerationEvent, Started


class WholeAnswer(Protocol):
    """Gathers events, then tells what they come to. Only :meth:`gather` may be called first."""

    async def gather(self, events: AsyncGenerator[GenerationEvent, None]) -> None: ...

    @property
    def started(self) -> Started: ...

    @property
    def timed_out(self) -> bool: ...

    def body(self) -> dict[str, Any]: ...


async def respond(
    request: Request,
    call: Call,
    events: AsyncGenerator[GenerationEvent, None],
    *,
    encoder: Encoder,
    answer: WholeAnswer,
) -> Response:
    """The answer through ``encoder`` or by ``answer``, as the call wants it. ``events`` are closed
    in any case, also when the client leaves."""
    headers = notes(call.ignored, call.warnings)
    if call.delivery.stream:
        return StreamingAnswer(
            events,
            encoder,
            keep_alive_seconds=service_of(request).settings.server.keep_alive_seconds,
            headers=headers,
        )
    await unless_client_leaves(request.receive, answer.gather(events))
    headers.update(started_headers(answer.started))
    if answer.timed_out:
        headers["x-mlx-router-timed-out"] = "true"
    return Response(dumps(answer.body()), media_type="application/json", headers=headers)


def notes(ignored: tuple[str, ...], warnings: tuple[str, ...] = ()) -> dict[str, str]:
    """Headers about what was left out of a request."""
    headers = {}
    if ignored:
        headers["x-mlx-router-ignored"] = header_value(",".join(name[:64] for name in ignored))
    if warnings:
        headers["x-mlx-router-warning"] = header_value("; ".join(warnings))
    return headers
