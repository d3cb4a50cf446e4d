"""Images, PDFs and a loader for the tests of media/."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from fpdf import FPDF
from PIL import Image

from mlx_router.config.media import MediaSettings
from mlx_router.domain import ChatPrompt, ImagePart, Message, Picture
from mlx_router.media import MediaLoader

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


@contextmanager
def media_loader(**settings: Any) -> Iterator[MediaLoader]:
    with ThreadPoolExecutor(2) as executor:
        yield MediaLoader(MediaSettings(**settings), executor)


async def load(*parts: ImagePart, **settings: Any) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The pictures of one message with these parts, and the notices."""
    with media_loader(**settings) as loader:
        prompt, notices = await loader.load(ChatPrompt((Message("user", parts),)))
        return prompt.pictures, notices


async def load_one(content: bytes, detail: Any = "auto", **settings: Any) -> Picture:
    pictures, _ = await load(ImagePart(data_uri(content), detail), **settings)
    assert len(pictures) == 1
    return pictures[0]


def image_of(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """No two corners alike, nor two rows or columns near each other."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    blue = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, blue)).convert(mode)


# --- hostile files --------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(data)),
            png_chunk(b"IEND"),
        ]
    )


def exif(orientation: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"


# --- PDFs -----------------------------------------------------------------------------------

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def pdf(pages: int = 1, size: tuple[float, float] = (72, 96), **encryption: Any) -> bytes:
    """Pages in points, each of one of COLOURS, in turn."""
    document = FPDF(unit="pt", format=size)
    if encryption:
        document.set_encryption(**encryption)
    for page in range(pages):
        document.add_page()
        document.set_fill_color(*COLOURS[page % len(COLOURS)])
        document.rect(0, 0, *size, style="F")
    return bytes(document.output())


def raw_pdf(*objects: bytes) -> bytes:
    """Objects 1, 2, ...; the first is the catalogue. Readers rebuild the table that is missing."""
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % item for item in enumerate(objects, start=1))
    return b"%PDF-1.5\n" + body + b"trailer\n<</Root 1 0 R>>\n%%EOF\n"


def stream(content: bytes, words: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (words, len(content), content)


def page_of(
    content: bytes, *objects: bytes, box: bytes = b"0 0 72 72", words: bytes = b""
) -> bytes:
    """A PDF of one page that draws ``content``; further ``objects`` are numbered from 5."""
    return raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Contents 4 0 R%s>>" % (box, words),
        stream(content),
        *objects,
    )
