"""The parts of a message, as a program writes them: OpenAI's, and files of this machine."""

from __future__ import annotations

import base64
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlx_router.domain import ImagePart, TextPart
from mlx_router.errors import InvalidRequest

DETAILS: Mapping[str, Literal["auto", "low", "high"]] = {
    "auto": "auto",
    "low": "low",
    "high": "high",
    "original": "high",
}
_NAME_LENGTH = 64
_MAX_FILE_BYTES = 1_000_000_000


def read_part(part: Mapping[str, Any]) -> TextPart | ImagePart:
    """OpenAI's ``text``, ``image_url`` and ``file``, and ``{"type": "image", "image": ...}`` with a
    Path or the bytes of a file. Images and PDFs may have ``pages``. Raises InvalidRequest, and
    KeyError, TypeError or AttributeError for what has another shape."""
    match part.get("type"):
        case "text":
            return TextPart(part["text"])
        case "image_url":
            image = part["image_url"]
            return _image(image, {}) if isinstance(image, str) else _image(image["url"], image)
        case "file":
            return _image(part["file"]["file_data"], part["file"])
        case "image":
            return _local(part["image"], part)
        case other:
            raise InvalidRequest(
                f"A content part's type is text, image_url, file or image, not {other!r}.",
                param="messages",
            )


def shown_name(name: str | None) -> str | None:
    """The name of a file as it may be shown to people: at most 64 characters, all of them
    printable; None if there is nothing to show."""
    printable = filter(str.isprintable, (name or "")[: 4 * _NAME_LENGTH])
    return "".join(printable).strip()[:_NAME_LENGTH] or None


def _local(image: Path | bytes, options: Mapping[str, Any]) -> ImagePart:
    if isinstance(image, Path):
        options = {"filename": image.name, **options}
        try:
            _check_file(image)
            image = image.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"Cannot read the image: {error}.", param="messages") from None
    elif not isinstance(image, bytes):
        raise InvalidRequest(
            f"An image is a pathlib.Path or the bytes of a file, not {type(image).__name__}.",
            param="messages",
        )
    data = base64.b64encode(image).decode()
    return _image(f"data:application/octet-stream;base64,{data}", options)


def _check_file(path: Path) -> None:
    """Before it is read: what is no file may have no end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidRequest(f"Cannot read the image: {path} is not a file.", param="messages")
    if found.st_size > _MAX_FILE_BYTES:
        raise InvalidRequest(
            f"Cannot read the image: {path} has {found.st_size:,} bytes; at most "
            f"{_MAX_FILE_BYTES:,} are read. Give a smaller file.",
            param="messages",
        )


def _image(url: str, options: Mapping[str, Any]) -> ImagePart:
    detail, pages = options.get("detail") or "auto", options.get("pages")
    if not isinstance(url, str):
        raise InvalidRequest(
            f"The URL or the data of an image is a text, not {type(url).__name__}.",
            param="messages",
        )
    if detail not in DETAILS:
        raise InvalidRequest(
            f"The detail of an image is one of {', '.join(DETAILS)}, not {detail!r}.",
            param="messages",
        )
    if not isinstance(pages, str | None):
        raise InvalidRequest(
            f"The pages of a PDF are a text like '2-4,7', not {pages!r}.", param="messages"
        )
    return ImagePart(url, DETAILS[detail], pages, shown_name(options.get("filename")))
