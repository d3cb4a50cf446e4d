"""From what a client wrote in place of an image to bytes, without the network."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from mlx_router.media.refusal import Refused

MB = 1_000_000
MAX_URL = 8192

_HEADER = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_FETCHED = re.compile(r"https?:", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BARE_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]{64,}")  # no file is so short, but paths are
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_SPACE = " \t\r\n\f\v"
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_LOOKED_AT = 1000  # characters that tell what it is
_TAIL = 64  # characters, among which its padding is
_SLICE = 1 << 18  # characters read at once: other threads wait meanwhile
_MAX_ESCAPES = 100_000  # each of which takes some hundred bytes to undo


def address(url: str) -> str | None:
    """The http(s) URL that it is, cut just beyond MAX_URL; None if it is something else."""
    if _FETCHED.match(url[:_LOOKED_AT].lstrip()) is None:
        return None
    return url[: MAX_URL + 1].strip()


def read_inline(url: str, max_mb: float) -> bytes:
    """The content of a data URI, or of base64 without the words before it.

    Base64 may be URL-safe, lack its padding, and have line breaks. Raises Refused.
    """
    url = url.strip()
    # as many megabytes of base64, percent signs included, cannot be a file within the limit
    check_file_size(len(url) // 4, max_mb)
    if header := _HEADER.match(url):
        if header[1].lower().replace(" ", "").endswith(";base64"):
            content = _base64(url[header.end() :])
        else:
            content = _unquoted(url[header.end() :])
    elif not _SCHEME.match(url[:_LOOKED_AT]) and _BARE_BASE64.fullmatch(url[:_LOOKED_AT]):
        content = _base64(url)
    else:
        raise Refused(
            "this is neither a data URI (data:image/png;base64,...) nor an http(s) URL.",
            "invalid_image_url",
        )
    if not content:
        raise Refused("the file is empty.", "empty_image_file")
    check_file_size(len(content), max_mb)
    return content


def is_pdf(content: bytes) -> bool:
    """Whether it is a PDF, which may begin with up to a kilobyte of something else."""
    return content.startswith(b"%PDF-") or (
        b"%PDF-" in content[:1024] and not content.startswith(_IMAGES)
    )


def check_file_size(size: int, max_mb: float) -> None:
    """Raises Refused if ``size`` bytes are more than ``max_mb``."""
    if size > max_mb * MB:
        raise Refused(
            f"the file has {size / MB:,.1f} MB; at most {max_mb:g} MB are taken. "
            "Send a smaller one.",
            "image_too_large",
        )


def _base64(text: str) -> bytes:
    try:
        if "%" in text:
            text = _unquoted(text).decode("ascii")
        tail = text[-_TAIL:]
        content, rest = [], b""
        for piece in _slices(text[: len(text) - len(tail)] + tail.rstrip("=" + _SPACE)):
            raw = rest + piece.encode("ascii").translate(_FROM_URL_SAFE, _SPACE.encode())
            if b"=" in raw:  # padding is for the end
                raise ValueError
            whole = len(raw) - len(raw) % 4
            content.append(binascii.a2b_base64(raw[:whole], strict_mode=True))
            rest = raw[whole:]
        content.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
        return b"".join(content)
    except ValueError:
        raise Refused(
            "the base64 of this file cannot be read. Encode the file again and send it whole.",
            "invalid_base64_image",
        ) from None


def _unquoted(text: str) -> bytes:
    """Its bytes, with what stands for %41 and so on. Raises Refused if there is too much of it."""
    escapes = 0
    for piece in _slices(text):
        escapes += piece.count("%")
        if escapes > _MAX_ESCAPES:
            raise Refused(
                f"the data URI has more than {_MAX_ESCAPES:,} percent escapes. Send the file as "
                "base64, without them.",
                "invalid_image_url",
            )
    return unquote_to_bytes(text.encode(errors="replace"))


def _slices(text: str) -> Iterator[str]:
    return (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
