"""Pictures and pages drawn by hand, apart from the rules that make the training data."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from PIL import Image, ImageDraw, ImageFont

DPI = 150  # as a server renders pages by default


@dataclass(frozen=True)
class Case:
    """Pictures, the questions of a chat about them, and the answer to the last one.

    ``earlier`` holds (question, answer) pairs that come before.
    """

    group: str
    pictures: tuple[Image.Image, ...]
    question: str
    answer: str
    earlier: tuple[tuple[str, str], ...] = ()


def shape(name: str, colour: str, size: tuple[int, int], ground: str = "white") -> Image.Image:
    """One shape in the middle, with the colours' names as Pillow has them."""
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    x, y, r = size[0] / 2, size[1] / 2, min(size) * 0.35
    if name == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    elif name == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], fill=colour)
    elif name == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        corners = [
            (x + math.sin(i * math.pi / 5) * k, y - math.cos(i * math.pi / 5) * k)
            for i, k in enumerate([r, r * 0.4] * 5)
        ]
        draw.polygon(corners, fill=colour)
    return image


def printed(
    text: str, font: Any, size: tuple[int, int], colour: str = "black", ground: str = "white"
) -> Image.Image:
    """Text in the middle."""
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text(
        (size[0] / 2, size[1] / 2), text, fill=colour, font=font, anchor="mm"
    )
    return image


def page(text: str, family: str, style: str, points: int, poppler: bool) -> Image.Image:
    """An A4 page of a PDF with the text centred on it, rendered at DPI."""
    from fpdf import FPDF

    pdf = FPDF(format="A4")
    pdf.add_page()
    pdf.set_font(family, style, points)
    pdf.set_y(100)
    pdf.cell(0, points * 0.4, text, align="C")
    data = bytes(pdf.output())
    if poppler:
        from pdf2image import convert_from_bytes

        found: Image.Image = convert_from_bytes(data, dpi=DPI)[0]
        return found.convert("RGB")
    import pypdfium2

    rendered: Image.Image = (
        pypdfium2.PdfDocument(io.BytesIO(data))[0].render(scale=DPI / 72).to_pil()
    )
    return rendered.convert("RGB")


def shapes() -> Iterator[Case]:
    sizes = [(64, 64), (100, 100), (224, 224), (300, 200), (640, 480), (200, 320), (1024, 1024)]
    colours = [
        "red",
        "green",
        "blue",
        "yellow",
        "orange",
        "purple",
        "black",
        "pink",
        "gray",
        "brown",
    ]
    names = ["circle", "square", "triangle", "star"]
    for number, (colour, name) in enumerate(product(colours, names)):
        size = sizes[number % len(sizes)]
        article = "An" if colour == "orange" else "A"
        picture = shape(name, colour, size)
        yield Case("shapes", (picture,), "What is in this picture?", f"{article} {colour} {name}.")
    for colour in colours:
        picture = shape("circle", colour, (256, 256))
        first = (("What is in this picture?", f"A {colour} circle."),)
        yield Case(
            "second turn", (picture,), "And which colour is it?", f"{colour.capitalize()}.", first
        )
        plain = Image.new("RGB", (128, 128), colour)
        yield Case(
            "plain pictures", (plain,), "What colour is this image?", f"{colour.capitalize()}."
        )
    for name, ground in product(names, ["black", "blue", "yellow"]):
        picture = shape(name, "white", (240, 240), ground)
        yield Case("shapes", (picture,), "What do you see?", f"A white {name}.")
        yield Case(
            "background", (picture,), "What colour is the background?", f"{ground.capitalize()}."
        )
    for left, right in product(["red", "blue", "green"], ["yellow", "black", "purple"]):
        image = Image.new("RGB", (320, 160), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse([25, 25, 135, 135], fill=left)
        draw.rectangle([185, 25, 295, 135], fill=right)
        answer = f"A {left} circle and a {right} square."
        yield Case("two shapes", (image,), "What is in this picture?", answer)
        yield Case("count", (image,), "How many shapes are there?", "Two.")
        pair = shape("circle", left, (200, 200)), shape("square", right, (200, 200))
        yield Case("two pictures", pair, "What is in the second picture?", f"A {right} square.")
        yield Case("two pictures", pair, "What is in the first picture?", f"A {left} circle.")


WORDS = ["HELLO", "STOP", "OPEN", "EXIT", "MLX", "CAT", "DOG", "WATER", "TOTAL", "ROUTER"]
UNSEEN = ["KIWI", "BLAZE", "FROG", "ZEBRA", "JUMP", "VEXED", "QUARK", "HAMLET", "OBOE", "PLUM"]
NUMBERS = ["42", "7", "1234", "98", "305", "6", "2026", "81", "500", "77"]


def texts() -> Iterator[Case]:
    fonts: list[tuple[str, int, tuple[int, int]]] = [
        ("", 64, (320, 160)),  # the font of Pillow
        ("DejaVuSans.ttf", 60, (300, 120)),
        ("DejaVuSans-Bold.ttf", 48, (400, 300)),
        ("DejaVuSerif.ttf", 80, (500, 500)),
        ("DejaVuSansMono.ttf", 40, (240, 100)),
    ]
    for group, words in (("words", WORDS), ("unseen words", UNSEEN), ("numbers", NUMBERS)):
        for word, (file, points, size) in product(words, fonts):
            font = ImageFont.truetype(file, points) if file else ImageFont.load_default(points)
            picture = printed(word, font, size)
            yield Case(group, (picture,), "What does it say?", f"It says {word}.")
    for digit in "0123456789":
        picture = printed(digit, ImageFont.load_default(100), (140, 140), "blue")
        yield Case("digits", (picture,), "What number is this?", f"It says {digit}.")
        picture = printed(
            digit, ImageFont.truetype("DejaVuSans-Bold.ttf", 150), (224, 224), "white", "black"
        )
        yield Case("digits", (picture,), "What number is in this picture?", f"It says {digit}.")


def pages() -> Iterator[Case]:
    families = [("helvetica", "B"), ("helvetica", ""), ("times", "B"), ("courier", "B")]
    for number, (word, poppler) in enumerate(product(WORDS + NUMBERS, (True, False))):
        family, style = families[number % len(families)]
        for points in (60, 80, 110):
            picture = page(word, family, style, points, poppler)
            yield Case(
                f"pages, {points} point", (picture,), "What does this page say?", f"It says {word}."
            )
    for text in ("TOTAL 42", "TOTAL 1250", "INVOICE 7", "TOTAL: 99", "ROOM 305", "PAGE 2"):
        picture = page(text, "helvetica", "B", 72, poppler=True)
        yield Case("pages, two words", (picture,), "What does it say?", f"It says {text}.")


def all_cases() -> Iterator[Case]:
    """Everything drawn by hand."""
    yield from shapes()
    yield from texts()
    yield from pages()
