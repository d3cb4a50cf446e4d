"""Measures an exported vision model with mlx-vlm: greedy answers to pictures it has never seen."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

# Interpreting is faster than compiling kernels for a model this small.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

from .vision_batches import some_grid
from .vision_dialogues import HELP, LIMITS, ask, ask_about_two, is_number
from .vision_held_out import Case, all_cases
from .vision_scenes import Scene, make_scene
from .vision_text import WORDS
from .vision_wordings import GREETINGS, UNKNOWN

LONGEST_ANSWER = 60


class Model:
    """The exported model, asked through mlx-vlm alone."""

    def __init__(self, folder: Path) -> None:
        import mlx_vlm

        self.library = mlx_vlm
        self.model, self.processor = mlx_vlm.load(str(folder))

    def answer(self, case: Case) -> str:
        """The greedy answer to the last question of a chat."""
        content: Any = [{"type": "image"} for _ in case.pictures]
        messages: list[dict[str, Any]] = []
        for question, answer in case.earlier:
            content.append({"type": "text", "text": question})
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": answer})
            content = []
        content.append({"type": "text", "text": case.question})
        messages.append({"role": "user", "content": content})
        prompt = self.processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        result = self.library.generate(
            self.model, self.processor, prompt, image=list(case.pictures) or None,
            max_tokens=LONGEST_ANSWER, temperature=0.0, verbose=False,
        )  # fmt: skip
        return str(result.text).strip()


def _kind(scene: Scene) -> str:
    if scene.shapes:
        return "one shape" if len(scene.shapes) == 1 else "several shapes"
    if not scene.text:
        return "plain picture"
    if " " in scene.text:
        return "two words"
    if is_number(scene.text):
        return "number"
    return "word of the list" if scene.text.rstrip("!?.:") in WORDS else "other word"


def generated(count: int, seed: int) -> Iterator[Case]:
    """``count`` pictures of each kind by the rules of the training, with another seed."""
    random = Random(f"evaluation {seed}")
    left = Counter(
        dict.fromkeys(
            (
                "one shape",
                "several shapes",
                "number",
                "word of the list",
                "other word",
                "two words",
                "plain picture",
            ),
            count,
        )
    )
    while any(left.values()):
        scene = make_scene(some_grid(random, 1.0), random)
        kind = _kind(scene)
        if left[kind]:
            left[kind] -= 1
            turn = ask(scene, random, first=True)
            yield Case(f"generated, {kind}", (scene.image,), turn.question, turn.answer)
    for _ in range(count):
        scenes = [make_scene(some_grid(random, 1.0), random) for _ in range(2)]
        turn = ask_about_two(scenes, random)
        yield Case(
            "generated, two pictures", tuple(s.image for s in scenes), turn.question, turn.answer
        )


def without_pictures() -> Iterator[Case]:
    """Greetings, and questions the model must decline."""
    for question in GREETINGS:
        yield Case("greetings", (), question, "Hello! " + HELP)
    for question in UNKNOWN:
        yield Case("declined", (), question.format(place="Wales", thing="chess"), LIMITS)


def thinned(cases: list[Case], most: int) -> list[Case]:
    """At most ``most`` cases of each group, evenly chosen."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return [
        group[i * len(group) // min(most, len(group))]
        for group in groups.values()
        for i in range(min(most, len(group)))
    ]


def evaluate(folder: Path, count: int, seed: int, most_shown: int = 60) -> None:
    """Prints how many answers are right to the letter, by group, and what went wrong."""
    model = Model(folder)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    shown = 0
    begin = time.monotonic()
    fixed = thinned([*all_cases(), *without_pictures()], count)
    for case in [*fixed, *generated(count, seed)]:
        answer = model.answer(case)
        asked[case.group] += 1
        right[case.group] += answer == case.answer
        if answer != case.answer and shown < most_shown:
            shown += 1
            print(f"  {case.group}: {case.question!r}: {answer!r}, should be {case.answer!r}")
    for group in asked:
        print(f"{group:32} {right[group]}/{asked[group]}")
    seconds = (time.monotonic() - begin) / asked.total()
    print(f"{'all':32} {right.total()}/{asked.total()}  ({seconds:.2f} s each)")
