"""Images and PDFs that a user names, as parts of a message."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from mlx_router.config.files import expanded
from mlx_router.errors import ConfigError


def part(name: str) -> dict[str, Any]:
    """The part of a message for a file, or a URL that the server fetches. Raises ConfigError for
    what is no readable file."""
    if name.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": name}}
    path = expanded(name)
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "there is no such file"
            raise ConfigError(f"image {name}: {what}; name an image or a PDF")
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(
            f"image {name}: cannot be read: {error.strerror}; name another one"
        ) from None
    url = f"data:application/octet-stream;base64,{data}"
    return {"type": "file", "file": {"filename": path.name, "file_data": url}}


def user_message(text: str, images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the user says, with what they show."""
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}
