"""Reading a JSON body: bounded in time, depth and number of items.

orjson refuses NaN, bad UTF-8, lone surrogates and more than 1024 levels by itself. What it would
do, while nothing else of the server runs, is to build millions of tiny objects: so they are
counted first.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.types import Receive

from mlx_router.api.errors import BodyTimeout
from mlx_router.api.validation import shorten
from mlx_router.errors import InvalidRequest

BODY_SECONDS = 120.0
MAX_CONTAINERS = 50_000
MAX_ITEMS = 250_000
_SMALL = 64 * 1024
_MUCH = 4 * 1024 * 1024


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


async def read_body(receive: Receive, seconds: float = BODY_SECONDS) -> bytes:
    """The whole body. Raises BodyTimeout, ClientGone, and what the guard's receive raises."""
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunks.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise BodyTimeout(f"The request body did not arrive within {seconds:g} seconds.") from None


async def read_json(receive: Receive) -> dict[str, Any]:
    """The body as a JSON object; raises InvalidRequest, and what :func:`read_body` raises."""
    body = await read_body(receive)
    if not body.strip():
        raise InvalidRequest("The request body is empty; send a JSON object.", code="invalid_json")
    if len(body) > _SMALL:
        _check_size(body)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {error.msg} (line {error.lineno}, "
            f"column {error.colno}).",
            code="invalid_json",
        ) from None
    if len(body) > _SMALL:
        await asyncio.sleep(0)  # other requests' turn, before this one is checked further
    if not isinstance(data, dict):
        raise InvalidRequest(
            f"The request body must be a JSON object (got {shorten(data)}).", code="invalid_json"
        )
    return data


def _check_size(body: bytes) -> None:
    containers = sum(_count(body, bracket, MAX_CONTAINERS) for bracket in (b"{", b"["))
    if containers > MAX_CONTAINERS or _count(body, b",", MAX_ITEMS) > MAX_ITEMS:
        raise InvalidRequest(
            f"The request body is too complex: at most {MAX_CONTAINERS:,} brackets and "
            f"{MAX_ITEMS:,} commas.",
            code="invalid_json",
        )


def _count(body: bytes, byte: bytes, enough: int) -> int:
    """How often ``byte`` occurs; stops above ``enough``. All streams wait meanwhile, so it is the
    faster way of two: of much, most is base64, where the byte does not occur."""
    if len(body) < _MUCH:
        return body.count(byte)
    found, at = 0, body.find(byte)
    while at >= 0 and found <= enough:
        found += 1
        at = body.find(byte, at + 1)
    return found
