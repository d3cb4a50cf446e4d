"""Pages of a PDF as pixels, by a process of its own that is killed at its limits."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mlx_router.config.media import MediaSettings
from mlx_router.media.pages import select
from mlx_router.media.refusal import Refused, not_installed
from mlx_router.media.source import MB

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("pdf_worker.py")
_PIPE_BYTES = 1 << 20

_CAUSES = {
    "encrypted": "the PDF is encrypted. Send one that opens without a password.",
    "broken": "the PDF is damaged and cannot be read. Send it whole, or its pages as images.",
    "page": "a page of the PDF cannot be drawn: it is damaged, or too complex. Leave it out with "
    '"pages", or send it as an image.',
    "shape": "a page of the PDF is a mere line: one side is more than 200 times the other, or not "
    'two pixels long. Leave it out with "pages".',
    "memory": "the PDF needs too much memory to be drawn. Send its pages as images.",
}

Pages = list[tuple[int, int, bytes]]


class WorkerDied(Exception):
    """It ended, or wrote what it should not."""


async def draw(
    path: Path, spec: str | None, room: int, budget: int, settings: MediaSettings
) -> tuple[Pages, int]:
    """Width, height and RGB of each page that ``spec`` names, or of the first ones, and how many
    pages the file has. Each has at most ``budget`` pixels. Raises Refused, or OSError if no process
    can be started."""
    seconds = settings.pdf_timeout
    try:
        async with asyncio.timeout(seconds), _worker(path, settings) as worker:
            count = _number((await _hear(worker)).get("pages"))
            if count == 0:
                raise Refused("the PDF has no pages.", "invalid_pdf")
            chosen = select(spec, count, settings.pdf_pages, room)
            _tell(worker, pages=chosen, dpi=settings.pdf_dpi, budget=budget)
            return [await _page(worker, budget) for _ in chosen], count
    except TimeoutError:
        log.warning("a PDF took longer than %g s and was given up", seconds)
        raise Refused(
            f"drawing the PDF takes longer than {seconds:g} s. Name fewer pages with "
            '"pages", or send them as images.',
            "invalid_pdf",
        ) from None
    except WorkerDied:
        log.warning("drawing a PDF failed: it is damaged, or needs more memory than it may take")
        raise Refused(_CAUSES["page"], "invalid_pdf") from None


@asynccontextmanager
async def _worker(path: Path, settings: MediaSettings) -> AsyncIterator[Process]:
    memory, cpu = int(settings.pdf_memory_mb * MB), math.ceil(settings.pdf_timeout)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_WORKER), str(path), str(memory), str(cpu)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        start_new_session=True,
        limit=_PIPE_BYTES,
    )
    try:
        yield worker
    finally:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with suppress(ProcessLookupError, PermissionError):  # gone; on macOS: about to be
            os.killpg(worker.pid, signal.SIGKILL)
        worker.stdin.close()
        while await worker.stdout.read(_PIPE_BYTES):  # else its pipe stays open
            pass
        await worker.wait()


async def _hear(worker: Process) -> dict[str, Any]:
    """The next line. Raises Refused if it is an error."""
    assert worker.stdout is not None
    try:
        said = json.loads(await worker.stdout.readline())
    except ValueError:
        raise WorkerDied from None
    if not isinstance(said, dict):
        raise WorkerDied
    if said.get("error") == "not installed":
        raise not_installed("Pillow, or what draws PDFs,")
    if "error" in said:
        raise Refused(_CAUSES.get(str(said["error"]), _CAUSES["broken"]), "invalid_pdf")
    return said


def _tell(worker: Process, **message: Any) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(message).encode() + b"\n")


async def _page(worker: Process, budget: int) -> tuple[int, int, bytes]:
    assert worker.stdout is not None
    size = await _hear(worker)
    width, height = _number(size.get("width")), _number(size.get("height"))
    if not 0 < width * height <= budget:
        raise WorkerDied
    try:
        return width, height, await worker.stdout.readexactly(3 * width * height)
    except asyncio.IncompleteReadError:
        raise WorkerDied from None


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise WorkerDied
    return value
