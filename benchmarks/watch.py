"""What streams notice of a request that comes while they run."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import (
    Answer,
    Connection,
    LoadError,
    connect,
    http_request,
    parse_answer,
    run_within,
)


@dataclass(frozen=True, slots=True)
class Watched:
    """Seconds between the pieces of all streams: ``before`` another request was sent, and while
    that one ``waited``, so many seconds."""

    before: list[float]
    meanwhile: list[float]
    waited: float


def watch_streams(
    port: int,
    streams: Sequence[bytes],
    other: bytes,
    pieces: int,
    timeout: float,
    *,
    queued: bool = False,
) -> Watched:
    """Ask for long streams and, when each has come in so many pieces, for something else, which
    waits for its first text, or, if ``queued``, for its model (our server only: it says how long).
    The streams are cut off when the other answer is complete. Blocks; raises LoadError if one of
    them ends before."""

    async def run() -> Watched:
        watched = [await connect(port) for _ in streams]
        asking = await connect(port)
        try:
            running = [
                asyncio.create_task(connection.ask(http_request(body)))
                for connection, body in zip(watched, streams, strict=True)
            ]
            while min(len(one.arrivals) for one in watched) < pieces:
                if any(task.done() for task in running):
                    raise LoadError("a stream ended before the other request was sent")
                await asyncio.sleep(0.01)
            sent, answer = await asking.ask(http_request(other))
            if any(task.done() for task in running):
                raise LoadError("a stream ended before the other answer came")
            for task in running:
                task.cancel()
            waited = parse_answer(sent, answer).first
            if queued:
                stated = re.search(rb'"queue_ms": ?([0-9.]+)', b"".join(data for _, data in answer))
                if stated is None:
                    raise LoadError("the answer does not say how long it waited")
                waited = float(stated[1]) / 1e3
            # The first piece is the head of the answer, and comes long before any token.
            gaps = [gap for one in watched for gap in itertools.pairwise(one.arrivals[1:])]
            return Watched(
                [end - begin for begin, end in gaps if end <= sent],
                [end - begin for begin, end in gaps if sent < end and begin < sent + waited],
                waited,
            )
        finally:
            for connection in (*watched, asking):
                connection.close()

    return run_within(run(), timeout)


def overtake(
    port: int, first: bytes, second: bytes, after: float, timeout: float
) -> tuple[float, float]:
    """Send a request and, ``after`` so many seconds, a second one: seconds until the first text of
    each, both from when the second one was sent. Blocks; raises LoadError if the first one's text
    came before that: then nobody could overtake it."""

    async def ask(connection: Connection, body: bytes) -> tuple[float, Answer]:
        sent, pieces = await connection.ask(http_request(body))
        return sent, parse_answer(sent, pieces)

    async def run() -> tuple[float, float]:
        one, other = await connect(port), await connect(port)
        try:
            waiting = asyncio.create_task(ask(one, first))
            await asyncio.sleep(after)
            sent, answer = await ask(other, second)
            began, early = await waiting
            left = began + early.first - sent
            if left <= 0:
                raise LoadError(
                    f"the first text came {-left:.3f} s before the second request was sent"
                )
            return left, answer.first
        finally:
            one.close()
            other.close()

    return run_within(run(), timeout)
