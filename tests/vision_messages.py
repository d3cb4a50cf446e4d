"""Messages with drawings in OpenAI's parts, as a client sends them."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

from tests.media_support import data_uri, encoded

Json = dict[str, Any]


def drawing(size: tuple[int, int], ground: str, shape: str, colour: str) -> Image.Image:
    image = Image.new("RGB", size, ground)
    box = (size[0] // 5, size[1] // 5, size[0] * 3 // 5, size[1] * 4 // 5)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


BOX = drawing((160, 96), "white", "rectangle", "red")
BALL = drawing((64, 64), "blue", "ellipse", "yellow")
EGG = drawing((96, 128), "black", "ellipse", "green")


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def image(picture: Image.Image) -> Json:
    return {"type": "image_url", "image_url": {"url": data_uri(encoded(picture))}}


def user(*content: Json) -> Json:
    return {"role": "user", "content": list(content)}


def token_ids(answer: Json, choice: int = 0) -> list[int]:
    """Of an answer to a request with ``return_token_ids``."""
    ids: list[int] = answer["choices"][choice]["token_ids"]
    return ids
