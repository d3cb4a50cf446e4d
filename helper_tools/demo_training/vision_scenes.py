"""Pictures made by rules, and what is in each part of them.

A scene is drawn larger than the model sees it and resized as the model's processor does. Beside
the picture there is a grid with one cell a patch, which says what the patch shows: training on
it as well teaches a small vision tower much faster than answers alone.
"""

import io
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .vision_colours import NAMES as COLOURS
from .vision_colours import Rgb, background, contrasting, shade
from .vision_text import Line, draw_fine_print, draw_lines, some_text

PATCH = 8
SHAPES = ["circle", "ellipse", "square", "rectangle", "triangle", "star", "cross", "diamond"]
LABELS = ("letter", "order", "shape", "colour")
NOTHING = -1  # a label that is not trained

Labels = dict[str, NDArray[np.int64]]
Draw = ImageDraw.ImageDraw
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A shape that is drawn in one colour."""

    name: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    image: Image.Image
    background: str
    shapes: tuple[Shape, ...]
    text: str
    text_colour: str
    labels: Labels


@dataclass
class Canvas:
    """A picture under way; ``index`` repeats it with a number for each object."""

    image: Image.Image
    index: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def draws(self) -> tuple[Draw, Draw]:
        return ImageDraw.Draw(self.image), ImageDraw.Draw(self.index)


def _points(name: str, box: Box, random: Random) -> list[tuple[float, float]]:
    """The corners of a shape that has corners."""
    x0, y0, x1, y1 = box
    cx, cy, rx, ry = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    if name in ("square", "rectangle"):
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if name == "diamond":
        return [(cx, y0), (x1, cy), (cx, y1), (x0, cy)]
    if name == "triangle":
        kind = random.random()
        if kind < 0.7:
            return [(cx, y0), (x1, y1), (x0, y1)]
        if kind < 0.85:
            return [(x0, y0), (x1, y1), (x0, y1)]
        return [(x0, y0), (x1, y0), (cx, y1)]
    if name == "star":
        return [
            (
                cx + math.sin(i * math.pi / 5) * rx * (1 if i % 2 == 0 else 0.42),
                cy - math.cos(i * math.pi / 5) * ry * (1 if i % 2 == 0 else 0.42),
            )
            for i in range(10)
        ]
    arm = random.uniform(0.2, 0.4)
    ax, ay = rx * arm, ry * arm
    return [
        (cx - ax, y0), (cx + ax, y0), (cx + ax, cy - ay), (x1, cy - ay), (x1, cy + ay),
        (cx + ax, cy + ay), (cx + ax, y1), (cx - ax, y1), (cx - ax, cy + ay), (x0, cy + ay),
        (x0, cy - ay), (cx - ax, cy - ay),
    ]  # fmt: skip


def _turned(points: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    cx = sum(x for x, _ in points) / len(points)
    cy = sum(y for _, y in points) / len(points)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [
        (cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos)
        for x, y in points
    ]


def draw_shape(
    canvas: Canvas, number: int, name: str, colour: Rgb, box: Box, random: Random
) -> None:
    """Draws the shape, filled or as a thick line, into the box."""
    picture, index = canvas.draws()
    width = max(3, int(min(box[2] - box[0], box[3] - box[1]) * random.uniform(0.08, 0.2)))
    style = random.random()
    fill: Rgb | None = colour
    outline, line = colour, 1
    if style < 0.12:
        fill, line = None, width
    elif style < 0.2:
        outline, line = (0, 0, 0), max(1, width // 5)
    if name in ("circle", "ellipse"):
        picture.ellipse(box, fill=fill, outline=outline, width=line)
        index.ellipse(box, fill=number)
        return
    points = _points(name, box, random)
    if random.random() < 0.2:
        points = _turned(points, random.uniform(-12, 12))
    if fill is not None:
        picture.polygon(points, fill=fill, outline=outline, width=line)
    else:
        picture.line([*points, *points[:2]], fill=outline, width=line, joint="curve")
    index.polygon(points, fill=number)


def _shape_size(name: str, size: float, random: Random) -> tuple[float, float]:
    """Width and height; what is round or square must not look like the long kind."""
    if name in ("ellipse", "rectangle"):
        ratio = random.uniform(1.5, 2.6)
        return (size, size / ratio) if random.random() < 0.6 else (size / ratio, size)
    stretch = random.uniform(0.75, 1.3) if name in ("triangle", "diamond") else 1.0
    return (size, size * stretch) if stretch <= 1 else (size / stretch, size)


def _shape_boxes(size: tuple[int, int], names: list[str], random: Random) -> list[Box]:
    """Places side by side, or one above the other in a tall picture."""
    width, height = size
    count = len(names)
    across = width >= height * (0.8 if random.random() < 0.8 else 1.3)
    boxes = []
    for i, name in enumerate(names):
        w, h = (width / count, height) if across else (width, height / count)
        left, top = (i * w, 0.0) if across else (0.0, i * h)
        most = min(w, h)
        dx, dy = _shape_size(name, most * random.uniform(0.35 if count == 1 else 0.5, 0.94), random)
        if count == 1 and random.random() < 0.4:
            x, y = left + (w - dx) / 2, top + (h - dy) / 2
        else:
            x, y = left + random.random() * (w - dx), top + random.random() * (h - dy)
        boxes.append((x, y, x + dx, y + dy))
    return boxes


def _noisy(image: Image.Image, random: Random) -> Image.Image:
    """Now and then what cameras and JPEG do to a picture."""
    chance = random.random()
    if chance < 0.08:
        memory = io.BytesIO()
        image.save(memory, "JPEG", quality=random.randint(50, 92))
        return Image.open(memory).convert("RGB")
    if chance < 0.14:
        generator = np.random.default_rng(random.getrandbits(32))
        pixels = np.asarray(image, dtype=np.float64)
        pixels = pixels + generator.normal(0, random.uniform(1, 7), pixels.shape)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image


def _labels(canvas: Canvas, grid: tuple[int, int], scene_shapes: list[Shape], back: str) -> Labels:
    """What each patch shows, from the object at its centre: shape and colour."""
    rows, columns = grid
    index = np.asarray(canvas.index)
    ys = ((np.arange(rows) + 0.5) / rows * index.shape[0]).astype(int)
    xs = ((np.arange(columns) + 0.5) / columns * index.shape[1]).astype(int)
    seen = index[np.ix_(ys, xs)].astype(np.int64)
    shapes = np.array([0] + [1 + SHAPES.index(s.name) for s in scene_shapes])
    colours = np.array([COLOURS.index(back)] + [COLOURS.index(s.colour) for s in scene_shapes])
    nothing = np.zeros_like(seen)
    return {
        "shape": shapes[seen],
        "colour": colours[seen],
        "letter": nothing,
        "order": nothing.copy(),
    }


def _label_text(labels: Labels, lines: list[Line], size: tuple[int, int], colour: str) -> None:
    """Writes the characters into the grid, where their middles are."""
    rows, columns = labels["letter"].shape
    sx, sy = columns / size[0], rows / size[1]
    order = 0
    for line in lines:
        for character in line.characters:
            order += 1
            x0, x1 = character.left * sx, character.right * sx
            y0, y1 = line.top * sy, line.bottom * sy
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            row, column = min(rows - 1, max(0, int(cy))), min(columns - 1, max(0, int(cx)))
            for r in range(
                max(0, round(cy - 0.3 * (y1 - y0))), min(rows, round(cy + 0.3 * (y1 - y0)))
            ):
                for c in range(
                    max(0, round(cx - 0.3 * (x1 - x0))), min(columns, round(cx + 0.3 * (x1 - x0)))
                ):
                    _label_character(labels, r, c, character.label, order, colour)
            _label_character(labels, row, column, character.label, order, colour)


def _label_character(
    labels: Labels, row: int, column: int, label: int, order: int, colour: str
) -> None:
    labels["letter"][row, column] = label
    labels["order"][row, column] = min(order, 15)
    labels["colour"][row, column] = NOTHING if not colour else COLOURS.index(colour)


def _shapes(canvas: Canvas, back: Rgb, random: Random) -> list[Shape]:
    count = random.choices([1, 2, 3], [6, 3, 1])[0]
    names = [random.choice(SHAPES) for _ in range(count)]
    found = []
    for number, (name, box) in enumerate(
        zip(names, _shape_boxes(canvas.size, names, random), strict=True), start=1
    ):
        colour, rgb = contrasting(random, [back], 130)
        draw_shape(canvas, number, name, rgb, box, random)
        found.append(Shape(name, colour))
    return found


def make_scene(
    grid: tuple[int, int], random: Random, smallest: float = 7.0, reading: float = 0.55
) -> Scene:
    """A scene for a picture of ``grid`` (rows, columns) patches.

    ``smallest`` is the least height of a capital letter, in pixels the model sees;
    ``reading`` the share of pictures with text.
    """
    rows, columns = grid
    height, width = rows * PATCH, columns * PATCH
    scale = random.choice([1.0, 1.0, random.uniform(1, 3), random.uniform(1, 2)])
    # The processor stretches a picture by a few percent to fill whole patches.
    size = (
        max(16, round(width * scale * random.uniform(0.95, 1.05))),
        max(16, round(height * scale * random.uniform(0.95, 1.05))),
    )
    page = rows > columns and random.random() < 0.6
    kind = (
        "text"
        if page
        else random.choices(
            ["text", "shapes", "plain"], [reading, (1 - reading) * 0.9, (1 - reading) * 0.1]
        )[0]
    )
    back_name = "white" if page else background(random)
    back = (255, 255, 255) if page else shade(back_name, random)
    canvas = Canvas(Image.new("RGB", size, back), Image.new("L", size, 0))
    shapes: list[Shape] = []
    lines: list[Line] = []
    text = text_colour = ""
    if kind == "shapes":
        shapes = _shapes(canvas, back, random)
    elif kind == "text":
        text_colour, rgb = contrasting(
            random, [back], 230, "black" if page or random.random() < 0.45 else ""
        )
        if page and random.random() < 0.9:
            text_colour, rgb = "black", (0, 0, 0)
        words = some_text(random)
        draw = ImageDraw.Draw(canvas.image)
        lines = draw_lines(draw, size, words, rgb, random, smallest * size[1] / height)
        text = " ".join(line.text for line in lines)
        if page and random.random() < 0.35:
            draw_fine_print(draw, size, lines, rgb, random, 3.5 * size[1] / height)
    labels = _labels(canvas, grid, shapes, back_name)
    _label_text(labels, lines, size, text_colour)
    image = _noisy(canvas.image, random)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Scene(image, back_name, tuple(shapes), text, text_colour, labels)


def patches(image: Image.Image) -> NDArray[np.float32]:
    """The picture as the processor cuts it: [rows * columns, 3 * PATCH * PATCH], in -1..1.

    Patches come in the order of 2 x 2 blocks; each is channels, rows, columns.
    """
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    cut = pixels.reshape(3, rows // 2, 2, PATCH, columns // 2, 2, PATCH)
    return cut.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, -1)


def by_blocks(grid: NDArray[np.int64]) -> NDArray[np.int64]:
    """A grid of labels in the order of ``patches``."""
    rows, columns = grid.shape
    return grid.reshape(rows // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3).reshape(-1)
