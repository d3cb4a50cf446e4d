"""From the bytes of an image file to a :class:`Picture`. Needs Pillow; runs on any thread."""

from __future__ import annotations

import math
from io import BytesIO

from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin
from PIL import WebPImagePlugin as WebP
from PIL.Image import Resampling, Transpose

from mlx_router.domain import Picture
from mlx_router.media import containers
from mlx_router.media.picture import picture
from mlx_router.media.refusal import Refused

MAX_RATIO = 200  # of the longer side to the shorter; processors of models divide by it
MIN_SIDE = 2
_GAP = 3  # averaged down to three times the size, then resampled: as good as resampling it all
_STRIP_PIXELS = 1 << 20

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def decode(data: bytes, max_pixels: int, budget: int) -> Picture:
    """The first frame of a PNG, JPEG, WebP, BMP or GIF, upright, on white where it was transparent.

    An image of more than ``budget`` pixels is scaled down to fit; others keep their pixels exactly.
    Raises Refused.
    """
    try:
        return _decode(data, max_pixels, budget)
    except Refused:
        raise
    except Image.DecompressionBombError:  # Pillow looks at WebP before we can
        raise Refused(
            f"the image has more than {max_pixels:,} pixels. Send a smaller one.", "image_too_large"
        ) from None
    except Exception:  # decoders raise nearly everything on a damaged file
        raise containers.damaged() from None


def fit(width: float, height: float, budget: int) -> tuple[int, int]:
    """The largest size of the same shape with at most ``budget`` pixels, and within MAX_RATIO."""
    scale = min(1.0, math.sqrt(budget / (width * height)))
    across, down = max(1, int(width * scale)), max(1, int(height * scale))
    return min(across, MAX_RATIO * down), min(down, MAX_RATIO * across)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises Refused if an image of that many pixels is too large, too small or too long."""
    size = f"the image is {width} x {height} pixels"
    if width < MIN_SIDE or height < MIN_SIDE:
        raise Refused(f"{size}; each side must have at least {MIN_SIDE}.", "image_too_small")
    if width * height > max_pixels:
        raise Refused(
            f"{size}, {width * height:,} in all; at most {max_pixels:,} are taken. "
            "Send a smaller one.",
            "image_too_large",
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise Refused(
            f"{size}; one side may be at most {MAX_RATIO} times the other. Cut it into pieces.",
            "invalid_image",
        )


def _decode(data: bytes, max_pixels: int, budget: int) -> Picture:
    image, orientation = _open(data)
    check_size(image.width, image.height, max_pixels)
    containers.check_frames(getattr(image, "n_frames", 1))
    size = image.size
    if image.width * image.height > budget:
        size = fit(image.width, image.height, budget)
        image.draft(None, (_GAP * size[0], _GAP * size[1]))  # JPEG decodes at an eighth for less
    image.load()
    if orientation is None:
        orientation = containers.exif_orientation(image.info.get("exif", b""))
    flat = _resized(image, size)
    if orientation in _UPRIGHT:
        flat = flat.transpose(_UPRIGHT[orientation])
    return picture(flat.width, flat.height, flat.tobytes())


def _open(data: bytes) -> tuple[Image.Image, int | None]:
    """The image, not yet decoded, and its orientation if it has been read. Goes by the content:
    what clients say of the type is often wrong. Raises Refused, or what the decoder raises."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        containers.check_png(data)
        return PngImagePlugin.PngImageFile(BytesIO(data)), None
    if data.startswith(b"\xff\xd8\xff"):
        bare, orientation = containers.bare_jpeg(data)
        return JpegImagePlugin.JpegImageFile(BytesIO(bare)), orientation
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebP.WebPImageFile(BytesIO(data)), None
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile(BytesIO(containers.first_gif_frame(data))), 1
    if data.startswith(b"BM"):
        containers.check_bmp(data)
        return BmpImagePlugin.BmpImageFile(BytesIO(data)), 1
    raise Refused(
        "this is not an image that can be read. Send PNG, JPEG, WebP, BMP or GIF, or a PDF.",
        "unsupported_image_media_type",
    )


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As RGB, of this size. In strips: a copy of the whole in each mode on the way would take
    several times its memory."""
    if image.mode == "RGB" and image.size == size and not image.has_transparency_data:
        return image
    shrink = min(image.width / size[0], image.height / size[1])
    factor = max(1, int(shrink / _GAP))
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = factor * max(1, _STRIP_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(_flat(strip).reduce(factor), (0, top // factor))
    if small.size == size:
        return small
    box = (0, 0, image.width / factor, image.height / factor)
    return small.resize(size, Resampling.LANCZOS, box)


def _flat(image: Image.Image) -> Image.Image:
    """As RGB, on white. Sixteen bits are scaled to eight; converting would clip them."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (255 / 65535) + 0.5).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
