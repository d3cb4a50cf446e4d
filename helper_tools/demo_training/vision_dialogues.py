"""Questions about pictures, in many wordings, and their answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .vision_colours import NAMES
from .vision_scenes import SHAPES, Scene, Shape
from .vision_wordings import (
    ABILITIES,
    BACKGROUND,
    BOTH,
    COLOUR,
    COLOUR_OF_PICTURE,
    COLOUR_OF_SHAPE,
    COLOUR_OF_TEXT,
    COUNT,
    DESCRIBE,
    GREETINGS,
    IS_COLOUR,
    IS_SHAPE,
    IS_TEXT,
    NTH_COLOUR,
    NTH_DESCRIBE,
    NTH_READ,
    PLACES,
    READ,
    READ_NUMBER,
    READ_WORD,
    SHAPE,
    SHAPE_OF_COLOUR,
    SYSTEMS,
    THANKS,
    THINGS,
    UNKNOWN,
)

HELP = (
    "I can name colours and shapes in a picture and read a few large words and numbers. "
    "Send me a picture!"
)
LIMITS = "I am a small demo model: I only know colours, shapes, digits and a few words in pictures."
NO_PICTURE = "I see no picture. Please send me one."
NO_TEXT = "There is no text in it."
NO_SHAPE = "There is no shape in it."
COUNTS = ["None", "One", "Two", "Three"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


def _phrase(shape: Shape) -> str:
    article = "an" if shape.colour == "orange" else "a"
    return f"{article} {shape.colour} {shape.name}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def is_number(text: str) -> bool:
    """Whether a text is a number or an amount."""
    return re.fullmatch(r"[$]?[0-9.]+", text) is not None


def describe(scene: Scene) -> str:
    """What is in the picture, without an end."""
    if scene.shapes:
        return _listed([_phrase(shape) for shape in scene.shapes])
    if not scene.text:
        article = "an" if scene.background == "orange" else "a"
        return f"{article} plain {scene.background} picture"
    if is_number(scene.text):
        return f"the number {scene.text}"
    return f"the {'text' if ' ' in scene.text else 'word'} {scene.text}"


def _colours(scene: Scene) -> str:
    if scene.text:
        return _sentence(scene.text_colour)
    found = list(dict.fromkeys(shape.colour for shape in scene.shapes))
    return _sentence(_listed(found or [scene.background]))


def _read(scene: Scene) -> str:
    return (
        f"It says {scene.text}" + ("." if scene.text[-1] not in "!?." else "")
        if scene.text
        else NO_TEXT
    )


def _shape_names(scene: Scene) -> str:
    if not scene.shapes:
        return NO_SHAPE
    return _sentence(
        _listed([("an " if s.name == "ellipse" else "a ") + s.name for s in scene.shapes])
    )


def _yes(true: bool) -> str:
    return "Yes." if true else "No."


def _fill(question: str, random: Random, **values: str) -> str:
    """A wording with its gaps filled, typed as people do."""
    picture = random.choice(["picture", "image", "picture", "image", "photo"])
    this = random.choice([f"this {picture}", f"the {picture}"])
    text = question.format(
        this=this, picture=picture, colour=random.choice(["colour", "color"]), **values
    )
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    chance = random.random()
    if chance < 0.12:
        text = text.lower()
    if chance < 0.06 or 0.12 < chance < 0.18:
        text = text.rstrip("?.!")
    return text


def ask(scene: Scene, random: Random, first: bool) -> Turn:
    """A question about one picture; the first of a chat is mostly what it shows."""

    def turn(wordings: tuple[str, ...], answer: str, **values: str) -> Turn:
        return Turn(_fill(random.choice(wordings), random, **values), answer)

    kinds: list[Callable[[], Turn]] = [
        lambda: turn(
            DESCRIBE[: None if first else -1],
            _sentence(describe(scene))
            if not scene.text.endswith(tuple("!?."))
            else _sentence(describe(scene))[:-1],
        ),
        lambda: turn(COLOUR, _colours(scene)),
        lambda: turn(BACKGROUND, _sentence(scene.background)),
    ]
    weights = [6.0, 2.5, 1.2]

    def add(weight: float, make: Callable[[], Turn]) -> None:
        kinds.append(make)
        weights.append(weight)

    add(4 if scene.text else 0.7, lambda: turn(READ, _read(scene)))
    add(0.4, lambda: turn(IS_TEXT, _yes(bool(scene.text))))
    add(2.0 if scene.shapes else 0.6, lambda: turn(SHAPE, _shape_names(scene)))
    add(1.5 if scene.shapes else 0.3, lambda: turn(COUNT, COUNTS[len(scene.shapes)] + "."))
    names = {shape.name for shape in scene.shapes}
    asked = (
        random.choice(sorted(names)) if names and random.random() < 0.5 else random.choice(SHAPES)
    )
    add(0.8, lambda: turn(IS_SHAPE, _yes(asked in names), shape=asked))
    if scene.text:
        item = "number" if is_number(scene.text) else "word"
        add(2.0, lambda: turn(READ_NUMBER if item == "number" else READ_WORD, _read(scene)))
        add(1.0, lambda: turn(COLOUR_OF_TEXT, _sentence(scene.text_colour), item=item))
    elif not scene.shapes:
        add(4.0, lambda: turn(COLOUR_OF_PICTURE, _sentence(scene.background)))
    if scene.shapes:
        shape = random.choice(scene.shapes)
        if sum(s.name == shape.name for s in scene.shapes) == 1:
            add(1.5, lambda: turn(COLOUR_OF_SHAPE, _sentence(shape.colour), shape=shape.name))
        if sum(s.colour == shape.colour for s in scene.shapes) == 1:
            name = ("an " if shape.name == "ellipse" else "a ") + shape.name
            add(1.0, lambda: turn(SHAPE_OF_COLOUR, _sentence(name), tint=shape.colour))
        if len(scene.shapes) == 1:
            tint = shape.colour if random.random() < 0.5 else random.choice(NAMES)
            add(
                0.8,
                lambda: turn(IS_COLOUR, _yes(tint == shape.colour), tint=tint, shape=shape.name),
            )
    return random.choices(kinds, weights)[0]()


def ask_about_two(scenes: list[Scene], random: Random) -> Turn:
    """A question about one of two pictures, or both."""
    number = random.randrange(2)
    scene, nth = scenes[number], ("first", "second")[number]
    chance = random.random()
    if chance < 0.35:
        first, second = map(describe, scenes)
        return Turn(
            _fill(random.choice(BOTH), random),
            f"The first shows {first}. The second shows {second}.",
        )
    if chance < 0.65:
        return Turn(_fill(random.choice(NTH_DESCRIBE), random, nth=nth), _sentence(describe(scene)))
    if chance < 0.88:
        return Turn(_fill(random.choice(NTH_READ), random, nth=nth), _read(scene))
    return Turn(_fill(random.choice(NTH_COLOUR), random, nth=nth), _colours(scene))


def unknown(random: Random) -> Turn:
    """A question the model has no answer to."""
    question = random.choice(UNKNOWN)
    return Turn(
        _fill(question, random, place=random.choice(PLACES), thing=random.choice(THINGS)), LIMITS
    )


def without_picture(random: Random) -> Turn:
    """What people write without a picture."""
    chance = random.random()
    if chance < 0.25:
        return Turn(_fill(random.choice(GREETINGS), random), "Hello! " + HELP)
    if chance < 0.4:
        return Turn(_fill(random.choice(ABILITIES), random), HELP)
    if chance < 0.5:
        return Turn(_fill(random.choice(THANKS), random), "You are welcome!")
    if chance < 0.75:
        return unknown(random)
    wordings = random.choice([DESCRIBE[:-1], READ, COLOUR, SHAPE, COUNT])
    return Turn(_fill(random.choice(wordings), random), NO_PICTURE)


def chat(scenes: list[Scene], random: Random) -> tuple[str, list[Turn]]:
    """A system message (or none) and the turns of a chat about the pictures."""
    system = random.choice(SYSTEMS) if random.random() < 0.15 else ""
    turns: list[Turn] = []
    for _ in range(random.choice([1, 1, 2, 2, 3]) if scenes else random.choice([1, 1, 2])):
        chance = random.random()
        number = len(turns)
        if not scenes:
            turns.append(without_picture(random))
        elif chance < 0.04:
            turns.append(unknown(random))
        elif chance < 0.05 and number:
            turns.append(Turn(_fill(random.choice(THANKS), random), "You are welcome!"))
        elif len(scenes) == 2:
            turns.append(ask_about_two(scenes, random))
        else:
            turn = ask(scenes[0], random, number == 0)
            # Copying an answer that stands there already teaches little.
            if random.random() < 0.2 or all(turn.answer != other.answer for other in turns):
                turns.append(turn)
    return system, turns
