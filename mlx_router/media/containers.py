"""What an image file is made of, read before a decoder sees it.

Decoders walk through metadata slowly, keep all of it, and believe what it says of its size. So
blocks are counted here, and only those that make the picture are handed on.
"""

from __future__ import annotations

import re
import struct

from mlx_router.media.refusal import Refused

MAX_FRAMES = 1000
_MAX_BLOCKS = 65_536  # a file of 32 MB in blocks of 512 bytes
_MAX_GIF_BLOCKS = 1 << 19  # GIF has blocks of 255 bytes at most
_MAX_SCANS = 32  # of a progressive JPEG, each of which costs a pass over the whole picture

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SLICE = 1 << 18  # bytes looked at in one go: other threads wait meanwhile
_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_APP0, _APP1, _APP14, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF
_ORIENTATION = 0x0112


def damaged() -> Refused:
    return Refused(
        "the image is damaged or incomplete and cannot be decoded. Send it whole, as PNG, JPEG, "
        "WebP, BMP or GIF.",
        "image_parse_error",
    )


def check_frames(count: int) -> None:
    if count > MAX_FRAMES:
        raise Refused(
            f"the animation has more than {MAX_FRAMES} frames. Send the frame that is meant.",
            "image_too_large",
        )


def bare_jpeg(data: bytes) -> tuple[bytes, int]:
    """The JPEG without its metadata, and its orientation (1 to 8; 1: upright). Raises Refused."""
    kept, orientation, scans, at = [data[:2]], 1, 0, 2
    for _ in range(_MAX_BLOCKS):
        found = _next_marker(data, at)
        if found is None or found[1][0] == _EOI:
            end = len(data) if found is None else found.end()
            return b"".join([*kept, *_without_fill(data, at, end)]), orientation
        if scans:
            kept += _without_fill(data, at, found.start())
        marker = found[1][0]
        start, at = found.span()
        if marker in (_SOI, 0x01):
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        scans += marker == _SOS
        if scans > _MAX_SCANS:
            raise damaged()
        if marker == _APP1 and orientation == 1 and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 4 : at])
        is_metadata = _APP0 < marker <= _APP15 and marker != _APP14
        if not is_metadata and marker != _COM:
            kept.append(data[start:at])
    raise damaged()


def _next_marker(data: bytes, at: int) -> re.Match[bytes] | None:
    for start in range(at, len(data), _SLICE):
        if found := _JPEG_MARKER.search(data, start, start + _SLICE + 1):
            return found
    return None


def _without_fill(data: bytes, start: int, end: int) -> list[bytes]:
    """The data of a scan. Many bytes 0xff mean no more than one, and take a decoder seconds."""
    kept: list[bytes] = []
    for at in range(start, end, _SLICE):
        piece = data[at : min(at + _SLICE, end)]
        while b"\xff\xff" in piece:
            piece = piece.replace(b"\xff\xff", b"\xff")
        if kept and kept[-1].endswith(b"\xff"):
            piece = piece.removeprefix(b"\xff")
        if piece:
            kept.append(piece)
    return kept


def exif_orientation(exif: bytes) -> int:
    """The orientation that EXIF data tell, 1 to 8; 1 if they do not."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, first)
        for index in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * index)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def first_gif_frame(data: bytes) -> bytes:
    """The GIF with its first frame only. Raises Refused if it has too many."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > _MAX_GIF_BLOCKS:
            raise damaged()

    def after_blocks(at: int) -> int:
        """Where a chain of blocks that begins here ends."""
        step()
        while size := data[at]:
            at += size + 1
            step()
        return at + 1

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    head = 13 + colours(data[10])
    at, frames, control, frame = head, 0, b"", b""
    try:
        while data[at] != 0x3B:
            start = at
            if data[at] == 0x2C:
                at = after_blocks(at + 11 + colours(data[at + 9]))
                frames += 1
                frame = frame or data[start:at]
                check_frames(frames)
            elif data[at] == 0x21:
                at = after_blocks(at + 2)
                if not frame and data[start + 1] == 0xF9:
                    control = data[start:at]
            else:  # some writers leave rubbish between blocks
                at += 1
                step()
    except IndexError:  # it ends early: no harm, if the first frame is whole
        pass
    if not frame:
        raise damaged()
    return data[:head] + control + frame + b"\x3b"


def check_png(data: bytes) -> None:
    """Raises Refused if it is cut into too many pieces."""
    at = 8
    for _ in range(_MAX_BLOCKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise damaged()


def check_bmp(data: bytes) -> None:
    """Raises Refused if it is compressed by run lengths, which takes a decoder for ever."""
    if int.from_bytes(data[14:18], "little") >= 40 and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        raise Refused(
            "compressed BMP is not taken. Send it as PNG.", "unsupported_image_media_type"
        )
