"""The colours the vision model knows, each with a few typical shades."""

from random import Random

Rgb = tuple[int, int, int]

SHADES: dict[str, list[Rgb]] = {
    "red": [(255, 0, 0), (220, 20, 60), (200, 0, 0), (178, 34, 34), (230, 40, 30)],
    "green": [(0, 128, 0), (0, 255, 0), (34, 139, 34), (0, 180, 0), (76, 175, 80), (0, 100, 0)],
    "blue": [(0, 0, 255), (30, 60, 220), (0, 0, 139), (0, 0, 128), (65, 105, 225), (30, 120, 255)],
    "yellow": [(255, 255, 0), (250, 230, 20), (255, 240, 60), (255, 255, 90)],
    "orange": [(255, 165, 0), (255, 140, 0), (255, 128, 0), (245, 130, 30)],
    "purple": [(128, 0, 128), (148, 0, 211), (106, 13, 173), (138, 43, 226), (156, 39, 176)],
    "pink": [(255, 192, 203), (255, 105, 180), (255, 150, 190), (255, 0, 255), (255, 20, 147)],
    "brown": [(165, 42, 42), (139, 69, 19), (150, 75, 0), (160, 82, 45), (101, 67, 33)],
    "cyan": [(0, 255, 255), (0, 206, 209), (0, 200, 220), (64, 224, 208)],
    "black": [(0, 0, 0), (0, 0, 0), (20, 20, 20)],
    "white": [(255, 255, 255), (255, 255, 255), (245, 245, 245)],
    "gray": [(128, 128, 128), (100, 100, 100), (169, 169, 169), (150, 150, 150)],
}
NAMES = list(SHADES)
NOISE = 12


def shade(name: str, random: Random) -> Rgb:
    """A shade of the colour; half of them are the typical ones exactly."""
    red, green, blue = random.choice(SHADES[name])
    if random.random() < 0.5:
        return red, green, blue
    red, green, blue = (
        min(255, max(0, c + random.randint(-NOISE, NOISE))) for c in (red, green, blue)
    )
    return red, green, blue


def distance(a: Rgb, b: Rgb) -> float:
    """How far apart two colours look: 0 (the same) to about 765."""
    mean = (a[0] + b[0]) / 2
    red, green, blue = (x - y for x, y in zip(a, b, strict=True))
    return float(
        ((2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2) ** 0.5
    )


def background(random: Random) -> str:
    """White mostly, since most pictures are on white."""
    chance = random.random()
    if chance < 0.55:
        return "white"
    return "black" if chance < 0.67 else random.choice(NAMES)


def contrasting(
    random: Random, others: list[Rgb], least: float, prefer: str = ""
) -> tuple[str, Rgb]:
    """A colour (name, shade) that can be told from the others; ``prefer`` if it can."""
    name = prefer or random.choice(NAMES)
    while True:
        found = shade(name, random)
        if all(distance(found, other) >= least for other in others):
            return name, found
        name = random.choice(NAMES)
