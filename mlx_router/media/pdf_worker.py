"""Draws the pages of a PDF, in a process of its own: PDFs are programs, and some are hostile.

A script, not a module of the package: it starts without the rest of it. Arguments: the file, bytes
of memory, seconds of CPU. Says ``{"pages": n}``, a line of JSON; is told the rest as another,
``{"pages": [...], "dpi": d, "budget": pixels a page}``; writes for each page a line with its
``width`` and ``height`` and then its RGB. Anything that goes wrong ends it with ``{"error": ...}``.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

MAX_RATIO = 200
DRAWN_TOGETHER = 4  # pages, by one run of pdftoppm


class Failure(Exception):
    """What goes out as ``{"error": ...}``."""


class Renderer(Protocol):
    count: int

    def size(self, page: int) -> tuple[float, float]:
        """In points, as the page is to be seen."""

    def draw(self, first: int, last: int, dpi: float) -> Iterator[Image.Image]:
        """These pages, RGB, fractions of a pixel at the edges made whole."""


class Poppler:
    def __init__(self, path: str) -> None:
        import pdf2image
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None  # the sizes of pages are ours
        self._tool: Any = pdf2image
        self._path = path
        self.count = self._info()["Pages"]

    def size(self, page: int) -> tuple[float, float]:
        info = self._info(first_page=page, last_page=page)
        width, height = str(info[f"Page {page:4} size"]).split()[0:3:2]
        sides = float(width), float(height)
        return sides[::-1] if int(info[f"Page {page:4} rot"]) % 180 else sides

    def draw(self, first: int, last: int, dpi: float) -> Iterator[Image.Image]:
        # not by `size`: whether that is before or after the page is turned depends on the version
        yield from self._tool.convert_from_path(
            self._path, dpi=dpi, first_page=first, last_page=last, use_cropbox=True
        )

    def _info(self, **pages: int) -> dict[str, Any]:
        from pdf2image.exceptions import PDFPageCountError

        try:
            info: dict[str, Any] = self._tool.pdfinfo_from_path(self._path, **pages)
            return info
        except PDFPageCountError as error:
            encrypted = "Incorrect password" in str(error)
            raise Failure("encrypted" if encrypted else "broken") from None


class Pdfium:
    def __init__(self, path: str) -> None:
        import PIL.Image  # noqa: F401  (which PDFium gives its pages to, but only later)
        import pypdfium2

        try:
            self._document = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            raise Failure("encrypted" if "password" in str(error) else "broken") from None
        with suppress(pypdfium2.PdfiumError):
            self._document.init_forms()
        self.count = len(self._document)

    def size(self, page: int) -> tuple[float, float]:
        width, height = self._document[page - 1].get_size()
        return width, height

    def draw(self, first: int, last: int, dpi: float) -> Iterator[Image.Image]:
        for number in range(first, last + 1):
            page = self._document[number - 1]
            yield page.render(scale=dpi / 72).to_pil().convert("RGB")
            page.close()


def open_pdf(path: str) -> Renderer:
    """With poppler, or where that is missing with PDFium. Raises Failure."""
    for renderer, programs in ((Poppler, ("pdftoppm", "pdfinfo")), (Pdfium, ())):
        if all(map(shutil.which, programs)):
            with suppress(ImportError):
                return renderer(path)
    raise Failure("not installed")


def resolution(points: tuple[float, float], dpi: float, budget: int) -> float:
    """At most ``dpi``, so that the page has at most ``budget`` pixels. Raises Failure."""
    width, height = (side * dpi / 72 for side in points)
    if not 0 < max(width, height) <= MAX_RATIO * min(width, height):
        raise Failure("shape")
    if math.ceil(width) * math.ceil(height) > budget:
        # (scale * width + 1) * (scale * height + 1) = budget
        both, area = width + height, width * height
        scale = (math.sqrt(both**2 + 4 * area * (budget - 1)) - both) / (2 * area)
        dpi, width, height = dpi * scale, width * scale, height * scale
    if min(width, height) <= 1:
        raise Failure("shape")
    return dpi


def runs(pages: Iterator[tuple[int, float]]) -> Iterator[tuple[int, int, float]]:
    """Pages that follow each other at one resolution, a few together: first, last, resolution."""
    first = last = 0
    dpi = 0.0
    for page, wanted in pages:
        if page == last + 1 and wanted == dpi and page - first < DRAWN_TOGETHER:
            last = page
            continue
        if first:
            yield first, last, dpi
        first, last, dpi = page, page, wanted
    if first:
        yield first, last, dpi


def draw(pdf: Renderer, pages: list[int], dpi: int, budget: int, out: IO[bytes]) -> None:
    for first, last, at in runs((page, resolution(pdf.size(page), dpi, budget)) for page in pages):
        drawn = 0
        for image in pdf.draw(first, last, at):
            say(out, width=image.width, height=image.height)
            out.write(image.tobytes())
            drawn += 1
        if drawn != last - first + 1:
            raise Failure("page")


def say(out: IO[bytes], **message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def limit(memory: int, cpu: int) -> None:
    """For this process and, each by itself, those that it starts."""
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu)):
        with suppress(ValueError, OSError):  # macOS does not limit address space
            resource.setrlimit(kind, (most, most))
    os.nice(10)


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the pages
    path, memory, cpu = sys.argv[1:]
    limit(int(memory), int(cpu))
    try:
        pdf = open_pdf(path)
        say(out, pages=pdf.count)
        if line := sys.stdin.readline():
            draw(pdf, out=out, **json.loads(line))
    except Failure as failure:
        say(out, error=str(failure))
    except MemoryError:
        say(out, error="memory")
    except Exception:  # libraries raise anything at a damaged file
        say(out, error="broken")
    out.flush()


if __name__ == "__main__":
    main()
