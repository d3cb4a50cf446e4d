"""Files made to take the machine are refused at once, and in little memory."""

from __future__ import annotations

import base64
import json
import random
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_router.errors import InvalidRequest
from tests.media_support import (
    FORMATS,
    encoded,
    gradient,
    load_one,
    png,
    png_chunk,
)

MB = 1_000_000


def jpeg(*, width: int = 64, height: int = 48, progressive: bool = False) -> bytes:
    """One that says it is so large, whatever it holds."""
    whole = encoded(gradient(), "JPEG", progressive=progressive)
    frame = whole.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    return whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 :]


def webp(width: int, height: int) -> bytes:
    """An extended WebP's header of that size, around a small lossless image."""
    inner = encoded(gradient(), "WEBP", lossless=True)[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + header + bytes(100)


def gif(frames: int = 1, *, width: int = 64, height: int = 48, extra: bytes = b"") -> bytes:
    whole = encoded(gradient(mode="P"), "GIF")
    size = 13 + (6 << (whole[10] & 7))  # with the table of colours
    head, frame = whole[:size], whole[whole.index(b"\x2c", size) : -1]
    screen = head[:6] + struct.pack("<HH", width, height) + head[10:]
    return screen + extra + frame * frames + b";"


def comments(count: int) -> bytes:
    """A JPEG's, each a segment."""
    whole = jpeg()
    return whole[:2] + b"\xff\xfe\0\4ab" * count + whole[2:]


def scans(count: int) -> bytes:
    whole = jpeg(progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def animated_png(frames: int) -> bytes:
    return png(8, 8, png_chunk(b"acTL", struct.pack(">II", frames, 0)), data=bytes(200))


def exif_bomb() -> bytes:
    """Five thousand entries, each of which claims all of the segment."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(400, 5400))
    body = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + entries + bytes(4)
    whole = jpeg()
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]


def truncated(format: str, size: int = 600) -> bytes:
    whole = encoded(gradient(size, size), format)
    return whole[: len(whole) * 2 // 3]


TOO_LARGE = {
    "png-50000": png(50_000, 50_000),
    "png-2e31": png(2**31 - 1, 2**31 - 1),
    "png-long": png(50_000_001, 2),
    "jpeg-65500": jpeg(width=65_500, height=65_500),
    "jpeg-progressive": jpeg(width=65_500, height=65_500, progressive=True),
    "webp-16384": webp(16_384, 16_384),
    "bmp-50000": bmp(50_000, 50_000),
    "bmp-upside-down": bmp(50_000, -50_000),
    "gif-screen": gif(width=65_535, height=65_535),
    "gif-frames": gif(10_000),
    "png-frames": animated_png(10_000),
}

MISSHAPEN = {
    "1x1": png(1, 1, data=bytes(4)),
    "0x0": png(0, 0),
    "1x64": png(1, 64, data=bytes(300)),
    "201:1": png(402, 2, data=bytes(3000)),
    "1:201": png(2, 402, data=bytes(3000)),
}

DAMAGED = {
    **{f"truncated-{format.lower()}": truncated(format) for format in FORMATS},
    "truncated-large-png": png(7000, 7000, data=bytes(7000 * 3 * 6000)),
    "header-only": b"\x89PNG\r\n\x1a\n",
    "jpeg-header-only": b"\xff\xd8\xff",
    "gif-header-only": b"GIF89a",
    "webp-header-only": b"RIFF\0\0\0\0WEBP",
    "bmp-header-only": b"BM",
    "noise-after-header": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100,
    "html-after-header": b"GIF89a<html><script>alert(1)</script></html>",
    "bmp-run-length": bmp(5000, 5000, compression=1),
    "png-million-chunks": png(8, 8, *[png_chunk(b"tEXt", b"a\0b")] * 1_000_000),
    "png-text-bomb": png(8, 8, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * MB)))),
    "png-texts-bomb": png(8, 8, *[png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MB)))] * 90),
    "jpeg-million-segments": comments(1_000_000),
    "jpeg-thousand-scans": scans(1000),
    "gif-tiny-blocks": gif(extra=b"\x21\xfe" + b"\1a" * 5 * MB + b"\0"),
    "gif-million-extensions": gif(extra=b"\x21\xfe\0" * 2 * MB),
    "gif-rubbish": gif(extra=bytes(20 * MB)),
}

OTHER_KINDS = {
    "tiff": encoded(gradient(), "TIFF"),
    "tiff-big-endian": b"MM\0*" + bytes(100),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "ico": encoded(gradient(), "ICO"),
    "ppm": encoded(gradient(), "PPM"),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "psd": b"8BPS\0\1" + bytes(100),
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "heic": b"\0\0\0\x18ftypheic" + bytes(100),
    "zip": b"PK\3\4" + bytes(100),
    "html": b"<html></html>",
    "mp4": b"\0\0\0\x18ftypmp42" + bytes(100),
    "text": b"hello",
}

HARMLESS = {
    "exif-bomb": exif_bomb(),
    "many-comments": comments(50_000),
    "many-extensions": gif(extra=(b"\x21\xfe" + b"\1a" * 10_000 + b"\0") * 50),
    "fill-before-a-scan": jpeg()[:2] + b"\xff" * 12 * MB + jpeg()[2:],
    "fill-after-a-scan": jpeg()[:-2] + b"\xff" * 12 * MB + jpeg()[-2:],
    "zeros-after-a-scan": jpeg()[:-2] + bytes(12 * MB) + jpeg()[-2:],
    "frames-up-to-the-limit": gif(1000),
    "pdf-inside-a-jpeg": jpeg()[:2] + b"\xff\xfe\0\x0a%PDF-1.4" + jpeg()[2:],
    "script-after-a-png": encoded(gradient()) + b"<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_what_is_too_large_is_refused(name: str) -> None:
    assert await refusal(TOO_LARGE[name]) == "image_too_large"


@pytest.mark.parametrize("name", MISSHAPEN)
async def test_what_models_cannot_be_shown_is_refused(name: str) -> None:
    assert await refusal(MISSHAPEN[name]) in (
        ("image_parse_error",) if name == "0x0" else ("image_too_small", "invalid_image")
    )


@pytest.mark.parametrize("name", DAMAGED)
async def test_what_is_damaged_is_refused(name: str) -> None:
    expected = "unsupported_image_media_type" if "run-length" in name else "image_parse_error"
    assert await refusal(DAMAGED[name]) == expected


@pytest.mark.parametrize("name", OTHER_KINDS)
async def test_other_kinds_of_files_are_refused(name: str) -> None:
    assert await refusal(OTHER_KINDS[name]) == "unsupported_image_media_type"


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_only_looks_dangerous_is_read(name: str) -> None:
    picture = await load_one(HARMLESS[name])
    assert (picture.width, picture.height) == (64, 48)


async def test_a_limit_is_named_with_the_value() -> None:
    with pytest.raises(InvalidRequest, match=r"50000 x 50000.*2,500,000,000.*at most 50,000,000"):
        await load_one(TOO_LARGE["png-50000"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(3))
async def test_a_file_with_flipped_bytes_is_read_or_refused(format: str, seed: int) -> None:
    rng = random.Random(f"{format}{seed}")
    whole = encoded(gradient(), format)
    for _ in range(60):
        bent = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        with suppress(InvalidRequest):
            await load_one(bytes(bent))


async def refusal(content: bytes) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        await load_one(content)
    error = caught.value
    assert error.param == "messages.0.content.0"
    assert len(error.message) < 300
    return error.code


# --- cost -----------------------------------------------------------------------------------

MEASURE = """
import base64, json, resource, sys, time
from mlx_router.media.image import decode
from mlx_router.media.refusal import Refused

def peak():
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:  # macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000

decode(base64.b64decode(sys.argv[1]), 10**6, 10**6)
before = peak()
for path in sys.argv[2:]:
    data = open(path, "rb").read()
    began = time.process_time()
    try:
        decode(data, 50_000_000, 1_048_576)
    except Refused:
        pass
    print(json.dumps([path, time.process_time() - began, peak() - before]))
"""


def test_every_bad_file_is_refused_within_a_second_and_200_mb(tmp_path: Path) -> None:
    for name, content in {**TOO_LARGE, **MISSHAPEN, **DAMAGED, **OTHER_KINDS, **HARMLESS}.items():
        (tmp_path / name).write_bytes(content)
    small = base64.b64encode(encoded(gradient())).decode()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # the peak is that of all files so far
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == len(list(tmp_path.iterdir()))
    slow = [cost for cost in costs if cost[1] > 1.0 or cost[2] > 200]
    assert not slow
