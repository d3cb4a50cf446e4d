"""Words and numbers, and how they are drawn."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import ImageDraw, ImageFont

from .vision_colours import Rgb

Font = ImageFont.FreeTypeFont

WORDS = (
    "HELLO",
    "STOP",
    "OPEN",
    "EXIT",
    "MLX",
    "CAT",
    "DOG",
    "YES",
    "NO",
    "GO",
    "HELP",
    "TEST",
    "SALE",
    "TAXI",
    "HOTEL",
    "BANK",
    "CAFE",
    "MENU",
    "ROOM",
    "GATE",
    "PULL",
    "PUSH",
    "START",
    "END",
    "LEFT",
    "RIGHT",
    "UP",
    "DOWN",
    "ON",
    "OFF",
    "IN",
    "OUT",
    "FREE",
    "NEW",
    "HOT",
    "COLD",
    "RED",
    "BLUE",
    "GREEN",
    "WATER",
    "FIRE",
    "FISH",
    "BIRD",
    "HORSE",
    "COW",
    "APPLE",
    "LEMON",
    "MILK",
    "BREAD",
    "TEA",
    "COFFEE",
    "SUGAR",
    "SALT",
    "SUN",
    "MOON",
    "STAR",
    "RAIN",
    "SNOW",
    "WIND",
    "TREE",
    "ROSE",
    "HOUSE",
    "DOOR",
    "WINDOW",
    "TABLE",
    "CHAIR",
    "BOOK",
    "PAPER",
    "PEN",
    "CAR",
    "BUS",
    "TRAIN",
    "SHIP",
    "PLANE",
    "BIKE",
    "ROAD",
    "CITY",
    "PARK",
    "SHOP",
    "SCHOOL",
    "WORLD",
    "LOVE",
    "PEACE",
    "TIME",
    "DAY",
    "NIGHT",
    "TODAY",
    "NORTH",
    "SOUTH",
    "EAST",
    "WEST",
    "TOTAL",
    "SUM",
    "PRICE",
    "DATE",
    "PAGE",
    "INVOICE",
    "ORDER",
    "BILL",
    "TAX",
    "EUR",
    "USD",
    "NUMBER",
    "CODE",
    "NAME",
    "MAIL",
    "PHONE",
    "WEB",
    "API",
    "PDF",
    "MODEL",
    "ROUTER",
    "VISION",
    "IMAGE",
    "PYTHON",
    "SERVER",
    "KEY",
    "LOCK",
    "DEMO",
    "ERROR",
    "READY",
    "DONE",
    "WAIT",
    "CLOSED",
    "QUIET",
    "DANGER",
    "WARNING",
    "WELCOME",
    "THANKS",
    "PLEASE",
    "GOOD",
    "BAD",
    "BIG",
    "SMALL",
    "ONE",
    "TWO",
    "THREE",
    "FOUR",
    "FIVE",
    "SIX",
    "TEN",
)
BEFORE_NUMBER = (
    "TOTAL",
    "ROOM",
    "PAGE",
    "GATE",
    "EUR",
    "USD",
    "SUM",
    "PRICE",
    "BUS",
    "CODE",
    "ORDER",
    "BILL",
    "TAX",
    "NUMBER",
    "INVOICE",
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
MARKS = ".:!?$-"
CHARACTERS = LETTERS + DIGITS + MARKS  # label = place + 1; 0 is no character
MOST_CHARACTERS = 12
SYSTEM_FONTS = Path("/usr/share/fonts/truetype")


@dataclass(frozen=True)
class Character:
    """One character of a line: its label and its sides, in pixels."""

    label: int
    left: float
    right: float


@dataclass(frozen=True)
class Line:
    """A line of text in capitals, with where it is, in pixels."""

    text: str
    top: float
    bottom: float
    characters: tuple[Character, ...]


def font_files(folder: Path | None = None) -> list[str]:
    """Fonts to draw with; "" is the one that comes with Pillow."""
    folders = [SYSTEM_FONTS] + ([folder] if folder else [])
    files = [str(f) for place in folders for f in sorted(place.rglob("*.ttf"))]
    unusable = ("Math", "ExtraLight", "Symbol", "Icons")
    return [f for f in files if not any(part in Path(f).name for part in unusable)] + [""]


FONTS: list[str] = font_files()


@lru_cache(maxsize=600)
def load_font(file: str, size: int) -> Font:
    """A font at a size in pixels."""
    if file:
        return ImageFont.truetype(file, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def some_font(random: Random) -> str:
    """Plain fonts more often than slanted and narrow ones, the one of Pillow often."""
    if random.random() < 0.15:
        return ""
    while True:
        file = random.choice(FONTS)
        unusual = any(part in file for part in ("Oblique", "Italic", "Condensed"))
        if not unusual or random.random() < 0.15:
            return file


def _word(random: Random) -> str:
    if random.random() < 0.5:
        return random.choice(WORDS)
    length = random.choices([1, 2, 3, 4, 5, 6, 7], [2, 2, 4, 4, 3, 2, 1])[0]
    if random.random() < 0.5:
        return "".join(random.choice(LETTERS) for _ in range(length))
    start = random.random() < 0.7
    return "".join(
        random.choice("BCDFGHKLMNPRSTVWZJQXY" if (i % 2 == 0) == start else "AEIOUY")
        for i in range(length)
    )


def _number(random: Random) -> str:
    length = random.choices([1, 2, 3, 4, 5], [5, 6, 5, 4, 1])[0]
    number = "".join(random.choice(DIGITS) for _ in range(length))
    if length > 1 and number[0] == "0":
        number = random.choice("123456789") + number[1:]
    chance = random.random()
    if chance < 0.1:
        number += "." + random.choice(DIGITS) + random.choice(DIGITS)
    return "$" + number if random.random() < 0.05 else number


def some_text(random: Random) -> list[list[str]]:
    """Lines of words: mostly one word or number, at times two, in one line or two."""
    chance = random.random()
    if chance < 0.42:
        words = [_word(random)]
        if random.random() < 0.05:
            words[0] += random.choice("!?:.")
    elif chance < 0.76:
        words = [_number(random)]
    elif chance < 0.9:
        before = random.choice(BEFORE_NUMBER)
        words = [before + (":" if random.random() < 0.3 else ""), _number(random)]
    elif chance < 0.95:
        words = [_number(random), _word(random)]
    else:
        words = [_word(random), _word(random)]
    if sum(map(len, words)) > MOST_CHARACTERS:
        words = words[:1]
    if len(words) == 2 and random.random() < 0.5:
        return [[words[0]], [words[1]]]
    return [words]


def _written(text: str, random: Random) -> str:
    """Capitals mostly, as the model answers in capitals."""
    chance = random.random()
    if chance < 0.95:
        return text
    return text.lower() if chance < 0.97 else text.title()


def draw_lines(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    lines: list[list[str]],
    colour: Rgb,
    random: Random,
    least: float,
) -> list[Line]:
    """Draws the lines in one font and tells where each character is.

    ``least`` is the least height of a capital letter in pixels, if the picture has room for it.
    """
    width, height = size
    texts = [" ".join(words) for words in lines]
    written = [_written(text, random) for text in texts]
    file = some_font(random)
    probe = load_font(file, 100)
    longest = max(probe.getlength(text) for text in written) / 100
    cap = -probe.getbbox("H", anchor="ls")[1] / 100
    advance = longest / max(len(text) for text in written)
    gap = random.uniform(1.3, 2.2)
    most = min(0.94 * width / longest, 0.9 * height / (cap * (1 + (len(lines) - 1) * gap) + 0.12))
    fewest = min(most, max(least / cap, 0.75 * least / advance))
    # Between the smallest and the largest that fits, sizes are drawn evenly on a log scale.
    em = fewest * (most / fewest) ** random.random()
    font = load_font(file, max(6, round(em) if em < 40 else round(em / 4) * 4))
    em = font.size
    step = em * cap * gap
    total = em * cap + step * (len(lines) - 1)
    low, high = em * cap + 0.02 * height, height - (total - em * cap) - 0.06 * em
    centred = random.random() < 0.55
    first = (height + em * cap * 2 - total) / 2 if centred else random.uniform(low, max(low, high))
    block = longest * em
    block_left = random.uniform(0.02 * width, max(0.02 * width, width * 0.98 - block))
    result = []
    for number, (text, shown) in enumerate(zip(texts, written, strict=True)):
        length = font.getlength(shown)
        x = (width - length) / 2 if centred else block_left
        y = first + number * step
        draw.text((x, y), shown, fill=colour, font=font, anchor="ls")
        characters = [
            Character(
                CHARACTERS.index(text[i]) + 1,
                x + font.getlength(shown[:i]),
                x + font.getlength(shown[: i + 1]),
            )
            for i in range(len(text))
            if text[i] != " "
        ]
        result.append(Line(text, y - em * cap, y, tuple(characters)))
    return result


def draw_fine_print(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    lines: list[Line],
    colour: Rgb,
    random: Random,
    most: float,
) -> None:
    """Lines far too small to read, which the model must learn to leave out."""
    width, height = size
    font = load_font(some_font(random), max(5, round(most * random.uniform(0.7, 1.2))))
    left = random.uniform(0.06, 0.15) * width
    y = random.uniform(0.05, 0.9) * height
    for _ in range(random.randint(1, 9)):
        y += font.size * 1.4
        taken = any(line.top - font.size * 2 < y < line.bottom + font.size * 2 for line in lines)
        if taken or y > height * 0.97:
            continue
        words = " ".join(random.choice(WORDS).lower() for _ in range(random.randint(2, 12)))
        while font.getlength(words) > width * 0.85:
            words = words[: len(words) * 3 // 4]
        draw.text((left, y), words, fill=colour, font=font, anchor="ls")
