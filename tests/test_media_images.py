"""Images as clients send them reach the model upright, opaque, in order and pixel by pixel."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from mlx_router.domain import ChatPrompt, ImagePart, Message, Picture, TextPart
from mlx_router.errors import InvalidRequest
from mlx_router.media.containers import bare_jpeg
from mlx_router.media.image import decode, fit
from mlx_router.media.refusal import Refused
from mlx_router.media.source import read_inline
from mlx_router.runtime.parts import read_part
from tests.media_support import (
    FORMATS,
    data_uri,
    encoded,
    exif,
    gradient,
    image_of,
    load,
    load_one,
    media_loader,
)


def as_pillow_reads(content: bytes) -> bytes:
    """The pixels that the libraries of models see of a file."""
    with Image.open(BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).convert("RGB").tobytes()


def difference(one: Image.Image, other: Image.Image) -> float:
    """The largest mean difference of a channel, of 255."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


# --- formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
async def test_an_image_within_its_budget_keeps_its_pixels(format: str) -> None:
    content = encoded(gradient(640, 480), format)
    assert (await load_one(content)).rgb == as_pillow_reads(content)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
async def test_every_mode_becomes_rgb(mode: str) -> None:
    content = encoded(gradient(mode=mode), "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    picture = await load_one(content)
    assert picture.rgb == as_pillow_reads(content)
    assert len(set(picture.rgb)) > 1


@pytest.mark.parametrize("kind", ["image/gif", "application/pdf", "text/html", "", "image/svg+xml"])
async def test_the_content_decides_not_the_declared_type(kind: str) -> None:
    content = encoded(gradient(), "WEBP")
    pictures, _ = await load(ImagePart(data_uri(content, kind)))
    assert pictures[0].rgb == as_pillow_reads(content)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
async def test_an_animation_shows_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    content = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **lossless(format)
    )
    assert image_of(await load_one(content)).getpixel((3, 3)) == (255, 0, 0)


def lossless(format: str) -> dict[str, Any]:
    return {"lossless": True} if format == "WEBP" else {}


async def test_a_first_frame_smaller_than_its_gif_stands_where_it_belongs() -> None:
    moved = bytearray(encoded(Image.new("P", (4, 4), 1), "GIF"))
    frame = moved.index(b"\x2c")
    moved[6:10] = bytes((10, 0, 6, 0))  # the screen
    moved[frame + 1 : frame + 5] = bytes((5, 0, 1, 0))  # left and top
    picture = await load_one(bytes(moved))
    assert (picture.width, picture.height) == (10, 6)
    assert picture.rgb == as_pillow_reads(bytes(moved))


# --- pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
async def test_every_orientation_is_turned_upright(orientation: int, format: str) -> None:
    content = encoded(gradient(), format, exif=exif(orientation))
    picture = await load_one(content)
    assert (picture.width, picture.height) == ((64, 48) if orientation < 5 else (48, 64))
    assert picture.rgb == as_pillow_reads(content)


@pytest.mark.parametrize("value", [0, 9, 65535])
async def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    plain = encoded(gradient(), "JPEG")
    turned = encoded(gradient(), "JPEG", exif=exif(value))
    assert (await load_one(turned)).rgb == (await load_one(plain)).rgb


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
async def test_what_is_transparent_is_white(mode: str) -> None:
    image = gradient(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda v: 255 * (v > 99)))
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        image = Image.new("P", (64, 48), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.paste(1, (0, 24, 64, 48))
    picture = image_of(await load_one(encoded(image.convert(mode), **options)))
    assert picture.getpixel((5, 2)) == (255, 255, 255)
    expected = {"RGBA": gradient(), "LA": gradient(mode="L").convert("RGB")}
    if mode in expected:
        assert picture.getpixel((5, 40)) == expected[mode].getpixel((5, 40))
    else:
        assert picture.getpixel((5, 40)) == (40, 50, 60)


async def test_half_transparent_colours_mix_with_white() -> None:
    picture = await load_one(encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 128))))
    red, green, blue = picture.rgb[:3]
    assert (red, green, blue) == pytest.approx((227, 177, 127), abs=1)


async def test_a_colour_declared_transparent_is_white() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    picture = await load_one(encoded(image, transparency=(1, 2, 3)))
    assert picture.rgb == bytes((9, 9, 9)) + b"\xff" * 45


async def test_sixteen_bits_are_scaled_not_clipped() -> None:
    image = Image.new("I;16", (3, 2))
    for x, value in enumerate((0, 32768, 65535)):
        image.putpixel((x, 0), value)
    assert [(await load_one(encoded(image))).rgb[3 * x] for x in range(3)] == [0, 128, 255]


# --- detail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detail", "budget"), [("low", 262_144), ("auto", 1_048_576), ("high", 2_359_296)]
)
@pytest.mark.parametrize("size", [(3000, 2000), (700, 2900), (2049, 2049)])
async def test_detail_is_a_budget_of_pixels(
    detail: str, budget: int, size: tuple[int, int]
) -> None:
    picture = await load_one(encoded(gradient(*size), "JPEG"), detail)
    pixels = picture.width * picture.height
    if size[0] * size[1] <= budget:
        assert (picture.width, picture.height) == size
    else:
        assert 0.995 * budget <= pixels <= budget
        assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.005)


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
async def test_nothing_is_scaled_up(detail: str) -> None:
    picture = await load_one(encoded(gradient(40, 30)), detail)
    assert (picture.width, picture.height) == (40, 30)


async def test_an_image_of_exactly_its_budget_keeps_its_pixels() -> None:
    content = encoded(gradient(512, 512))
    assert (await load_one(content, "low")).rgb == as_pillow_reads(content)
    larger = await load_one(encoded(gradient(513, 512)), "low")
    assert larger.width * larger.height <= 512 * 512


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(2001, 1003), (1999, 301)])
async def test_scaling_is_as_good_as_resampling_every_pixel(
    mode: str, size: tuple[int, int]
) -> None:
    """Also where the strips that it works in do not divide the image evenly."""
    image = gradient(*size, mode=mode)
    picture = await load_one(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), "low")
    best = image.convert("RGB").resize((picture.width, picture.height), Image.Resampling.LANCZOS)
    assert difference(image_of(picture), best) < 1.5


async def test_scaling_averages_fine_lines_instead_of_dropping_them() -> None:
    lines = Image.new("L", (3000, 2000), 0)
    for x in range(0, 3000, 2):
        lines.paste(255, (x, 0, x + 1, 2000))
    scaled = image_of(await load_one(encoded(lines), "low"))
    darkest, brightest = scaled.convert("L").getextrema()
    assert 90 < darkest <= brightest < 165  # type: ignore[operator]


# --- prompts --------------------------------------------------------------------------------


def solid(shade: int) -> ImagePart:
    return ImagePart(data_uri(encoded(Image.new("L", (4, 4), shade))))


async def test_images_keep_their_order_over_turns_and_roles() -> None:
    prompt = ChatPrompt(
        (
            Message("system", (solid(1), TextPart("be brief"))),
            Message("user", (TextPart("a"), solid(2), TextPart("b"), solid(3))),
            Message("assistant", "I see"),
            Message("tool", (solid(4),)),
            Message("user", (solid(2), TextPart("?"))),
        )
    )
    with media_loader() as loader:
        loaded, notices = await loader.load(prompt)
    assert [picture.rgb[0] for picture in loaded.pictures] == [1, 2, 3, 4, 2]
    assert not notices
    shape = [
        m.content if isinstance(m.content, str) else [type(part).__name__ for part in m.content]
        for m in loaded.messages
        if m.content is not None
    ]
    assert shape == [
        ["Picture", "TextPart"],
        ["TextPart", "Picture", "TextPart", "Picture"],
        "I see",
        ["Picture"],
        ["Picture", "TextPart"],
    ]


async def test_a_prompt_without_images_comes_back_unchanged() -> None:
    prompt = ChatPrompt((Message("user", (TextPart("hello"),)), Message("assistant", "hi")))
    with media_loader() as loader:
        loaded, notices = await loader.load(prompt)
    assert loaded is prompt
    assert notices == ()


async def test_the_same_image_is_decoded_once() -> None:
    pictures, _ = await load(solid(7), solid(8), solid(7))
    assert pictures[0] is pictures[2]
    assert pictures[0].digest != pictures[1].digest


async def test_the_digest_tells_pixels_and_shape() -> None:
    image = gradient()
    one, other, tall = [
        await load_one(content)
        for content in (
            encoded(image, "PNG"),
            encoded(image, "BMP"),
            encoded(Image.frombytes("RGB", (48, 64), image.tobytes())),
        )
    ]
    assert one.digest == other.digest
    assert one.rgb == tall.rgb
    assert one.digest != tall.digest
    assert one.digest == hashlib.sha256(b"64x48:" + one.rgb).hexdigest()


# --- data URIs ------------------------------------------------------------------------------

CONTENT = encoded(gradient())
BASE64 = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;BASE64,{BASE64}",
        f"  data:image/png;charset=utf-8;base64,{BASE64}\n",
        f"data:;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{base64.encodebytes(CONTENT).decode()}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(CONTENT).decode()}",
        f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('=', '%3D')}",
        f"data:image/png,{quote_from_bytes(CONTENT)}",
        BASE64,
    ],
    ids=[
        "plain",
        "capitals",
        "spaces",
        "no-padding",
        "lines",
        "url-safe",
        "escaped",
        "raw",
        "bare",
    ],
)
async def test_data_uris_are_read_as_clients_write_them(url: str) -> None:
    pictures, _ = await load(ImagePart(url))
    assert pictures[0].rgb == gradient().tobytes()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "invalid_image_url"),
        ("data:", "invalid_image_url"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png;base64,@@@@", "invalid_base64_image"),
        ("data:image/png;base64,AAAAA", "invalid_base64_image"),
        ("data:image/png;base64,AA=A", "invalid_base64_image"),
        ("data:image/png;base64,\N{SNOWMAN}", "invalid_base64_image"),
        ("data:image/png,\N{SNOWMAN}", "unsupported_image_media_type"),
        ("data:image/png;base64,AAAA", "unsupported_image_media_type"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("ftp://example.com/a.png", "invalid_image_url"),
        ("javascript:alert(1)", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("cat.png", "invalid_image_url"),
    ],
)
async def test_what_is_no_image_is_refused_by_name(url: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await load(solid(1), ImagePart(url))
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "messages.0.content.1", code)
    assert error.message.startswith("messages.0.content.1: ")
    assert len(error.message) < 300


# --- numbers --------------------------------------------------------------------------------


async def test_images_of_a_request_are_counted() -> None:
    parts = [solid(shade) for shade in range(5)]
    assert len((await load(*parts[:4], max_images=4))[0]) == 4
    with pytest.raises(InvalidRequest, match=r"5 images.* at most 4 are taken") as caught:
        await load(*parts, max_images=4)
    assert caught.value.param == "messages"


async def test_a_file_over_the_limit_is_refused() -> None:
    part = ImagePart(data_uri(b"\x89PNG\r\n\x1a\n" + bytes(1_100_000)))
    with pytest.raises(InvalidRequest, match=r"1\.1 MB; at most 1 MB are taken") as caught:
        await load(part, max_file_mb=1)
    assert caught.value.code == "image_too_large"


def test_a_text_only_start_imports_no_decoder() -> None:
    code = (
        "import sys, mlx_router.media\n"
        "sys.exit(', '.join({'PIL', 'httpcore', 'pdf2image', 'pypdfium2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""


async def test_a_server_without_pillow_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "mlx_router.media.image", raising=False)
    with pytest.raises(InvalidRequest, match="uv sync --extra vision") as caught:
        await load(ImagePart(data_uri(CONTENT)))
    assert caught.value.code == "vision_not_installed"


async def test_pixels_of_a_request_are_bounded_together() -> None:
    parts = [ImagePart(data_uri(encoded(gradient(100, 100 + n)))) for n in range(3)]
    assert len((await load(*parts, max_total_pixels=30_300))[0]) == 3
    with pytest.raises(InvalidRequest, match=r"30,300 pixels together.*most 30,299") as refused:
        await load(*parts, max_total_pixels=30_299)
    assert refused.value.param == "messages.0.content.2"


def test_the_longest_shape_stays_within_its_limit_when_scaled_down() -> None:
    for short in range(2, 2000, 7):
        for width, height in ((200 * short, short), (short, 200 * short)):
            size = fit(width, height, 262_144)
            assert max(size) <= 200 * min(size)
            assert math.prod(size) <= 262_144


@pytest.mark.parametrize("kind", ["", ";base64"])
async def test_too_many_percent_escapes_are_refused_before_they_are_undone(kind: str) -> None:
    few = await load(ImagePart(f"data:image/png{kind},{escaped(CONTENT, kind)}"))
    assert len(few[0]) == 1
    with pytest.raises(InvalidRequest, match="more than 100,000 percent escapes") as caught:
        await load(ImagePart(f"data:image/png{kind}," + "%41" * 100_001))
    assert caught.value.code == "invalid_image_url"


def escaped(content: bytes, kind: str) -> str:
    return "".join(f"%{b:02x}" for b in (base64.b64encode(content) if kind else content))


@pytest.mark.parametrize("fill", [b"\n", b" \r\n", b""])
def test_long_base64_is_read_whole_wherever_it_is_broken(fill: bytes) -> None:
    content = random.Random(1).randbytes(1_000_001)
    lines = base64.b64encode(content)
    for length in (76, 4097):
        broken = fill.join(lines[at : at + length] for at in range(0, len(lines), length))
        assert read_inline(f"data:a/b;base64,{broken.decode()}", 2) == content
    with pytest.raises(Refused, match="base64"):
        read_inline(f"data:a/b;base64,AA=={lines.decode()}", 2)


def test_long_fill_between_the_data_of_a_jpeg_changes_nothing() -> None:
    whole = encoded(Image.effect_noise((300, 300), 100), "JPEG")
    start = whole.rindex(b"\xff\xda") + 2
    at = whole.index(b"\xff\0", start)
    plain, _ = bare_jpeg(whole)
    for count in (1, 2, 1000, (1 << 18) - at + start, 1 << 18, 700_001):
        assert bare_jpeg(whole[:at] + b"\xff" * count + whole[at:])[0] == plain


@pytest.mark.parametrize("size", [1_000_000_001, 10**12])
def test_a_program_is_told_of_a_file_that_is_too_large(size: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(InvalidRequest, match=f"has {size:,} bytes; at most 1,000,000,000"):
        read_part({"type": "image", "image": path})


def test_what_is_no_file_is_not_read() -> None:
    with pytest.raises(InvalidRequest, match="/dev/zero is not a file"):
        read_part({"type": "image", "image": Path("/dev/zero")})


async def test_the_same_image_is_decoded_once_for_each_detail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[int] = []

    def counting(data: bytes, max_pixels: int, budget: int) -> Picture:
        decoded.append(budget)
        return decode(data, max_pixels, budget)

    monkeypatch.setattr("mlx_router.media.image.decode", counting)
    url = data_uri(CONTENT)
    parts = [ImagePart(url), ImagePart(url, "low"), ImagePart(" " + url), ImagePart(url, "low")]
    pictures, _ = await load(*parts, low_detail_pixels=4096, auto_detail_pixels=8192)
    assert len(pictures) == 4
    assert decoded == [8192, 4096]
