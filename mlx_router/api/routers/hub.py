"""GET /hub/…: the status page, and what it and the commands show. What they do is under /admin.

The page needs no key, since it has no secrets; all that it shows does. The log is for those who may
control the server: see the guard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from orjson import Fragment
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from mlx_router.api.openapi import errors
from mlx_router.api.schemas.hub import LogPage, StatusSnapshot
from mlx_router.api.service import RouterService, may_control, service_of
from mlx_router.api.status import memory_sample, status_body
from mlx_router.api.stream import STREAM_HEADERS, drop_connection
from mlx_router.api.wire import dumps
from mlx_router.errors import InvalidRequest, NotFound, QueueFull
from mlx_router.telemetry.recent import LogLine, recent

router = APIRouter(prefix="/hub", tags=["hub"])

PAGE = Path(__file__).parent.parent / "hub"
EVENT_SECONDS = 1.0
STALL_SECONDS = 5.0
MOST_WATCHERS = 64
MOST_LINES = 1000
_PAGE_LINES = 200
_HEADERS = {
    # Everything the page needs comes from this server; images of a chat are data: URIs.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("", include_in_schema=False)
async def redirect() -> Response:
    return RedirectResponse("/hub/")


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return FileResponse(PAGE / "index.html", headers=_HEADERS)


@router.get("/assets/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    for file in (PAGE / "assets").iterdir():  # so that a name is compared, and never a path
        if file.name == name:
            return FileResponse(file, headers=_HEADERS)
    raise NotFound(f"There is no file {name[:60]!r} here.")


@router.get(
    "/status",
    summary="Everything of this moment",
    operation_id="hub_status",
    response_class=Response,
    responses={200: {"model": StatusSnapshot}, **errors(401, 403)},
)
async def status(request: Request) -> Response:
    """Health in detail, every model found, and the requests under way: what `mlx-router status` and
    the status page show. `control` says whether the caller may use /admin."""
    body = {**status_body(service_of(request)), "control": may_control(request)}
    return Response(dumps(body), media_type="application/json")


@router.get(
    "/logs",
    summary="The latest log lines",
    operation_id="hub_logs",
    response_class=Response,
    responses={200: {"model": LogPage}, **errors(400, 401, 403)},
)
async def logs(request: Request, lines: str = "200", after: str = "0") -> Response:
    """The latest `lines` lines, oldest first; with `after`, the first ones whose number is greater:
    so the next page follows the last line of this one. 1000 lines are kept."""
    found = recent.lines(after=_number("after", after), most=_number("lines", lines, MOST_LINES))
    body = {"object": "log.page", "lines": [_log_line(line) for line in found]}
    return Response(dumps(body), media_type="application/json")


@router.get(
    "/events",
    summary="What happens, live",
    operation_id="hub_events",
    response_class=Response,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}},
        **errors(401, 403, 429),
    },
)
async def events(request: Request) -> Response:
    """Server-sent events, once a second: `status` as GET /hub/status, but for `models` where they
    are as they were; `memory` with the new points of the history of memory, first the last hour;
    `log` with new lines, if the caller may read them. Ends when the config changes: whether the
    caller may watch is asked anew."""
    watch: Watch = request.app.state.watch
    if watch.watchers >= MOST_WATCHERS:
        raise QueueFull(
            f"{watch.watchers} pages watch already; close some of them.", retry_after=10
        )
    return EventStream(watch.events(control=may_control(request)), headers=STREAM_HEADERS)


class EventStream(StreamingResponse):
    """Drops a reader that takes nothing for a while: it would hold up the server's end."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            drop_connection(scope)


class Watch:
    """What the pages that watch ``service`` are sent: worked out once a second for all of them."""

    def __init__(self, service: RouterService) -> None:
        self.watchers = 0
        self._service = service
        self._looked = float("-inf")
        self._status: dict[str, Any] = {}
        self._models = b""
        self._version = 0  # of the models

    async def events(self, *, control: bool) -> AsyncIterator[bytes]:
        """The events of one page. ``control``: whether it may act, and read the log."""
        self.watchers += 1
        try:
            async for event in self._events(control):
                yield event
        finally:
            self.watchers -= 1

    async def _events(self, control: bool) -> AsyncIterator[bytes]:
        service, settings = self._service, self._service.settings
        seen_models = seen_sample = seen_line = 0
        while True:
            self._look()
            body = {**self._status, "control": control}
            if self._version != seen_models:
                seen_models, body["models"] = self._version, Fragment(self._models)
            yield _event("status", body)
            samples = [s for s in service.activity.memory if s.number > seen_sample]
            if samples:
                seen_sample = samples[-1].number
                yield _event("memory", [memory_sample(sample) for sample in samples])
            lines = recent.lines(after=seen_line, most=_PAGE_LINES) if control else []
            if lines:
                seen_line = lines[-1].number
                yield _event("log", [_log_line(line) for line in lines])
            # A page that watches must not hold up the end, nor outlive the key it came with.
            if body["stopping"] or service.settings is not settings:
                return
            await asyncio.sleep(EVENT_SECONDS)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < EVENT_SECONDS / 2:
            return
        self._looked = now
        self._status = status_body(self._service)
        models = dumps(self._status.pop("models"))
        if models != self._models:
            self._models, self._version = models, self._version + 1


def _event(name: str, data: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + dumps(data) + b"\n\n"


def _log_line(line: LogLine) -> dict[str, Any]:
    return {
        "number": line.number,
        "time": round(line.time, 3),
        "level": line.level,
        "request_id": line.request_id,
        "text": line.text,
    }


def _number(name: str, text: str, most: int | None = None) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise InvalidRequest(f"{name} must be a whole number, 0 or more.", param=name)
    return int(text) if most is None else min(int(text), most)
