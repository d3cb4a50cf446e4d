"""Batches of chats about pictures, with the token ids and positions that Qwen3-VL has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .tokenizer import token_id
from .vision_dialogues import Turn, chat
from .vision_scenes import LABELS, PATCH, Scene, by_blocks, make_scene, patches

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
# A capital letter and a digit are tokens of their own, so that any word can be spelt.
PIECES = r"\p{Lu}|\p{Ll}+|\p{N}|\n+|[^\p{L}\p{N}\n]+"
CELL = 2 * PATCH  # pixels of a token
LEAST_PIXELS, MOST_PIXELS = 64 * 64, 128 * 128
TEMPLATE_FILE = Path(__file__).with_name("vision_template.jinja")
PATCHES_PER_STEP = 4000
READING = 0.42  # share of the pictures with text in chats
LABELS_ALONE = 0.12  # share of the steps that train the vision tower only
CURRICULUM = 700  # steps until pictures are as large, and letters as small, as they get

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Chats of one form: as many pictures each, in the same sizes; or pictures alone (no ids).

    ids, targets [rows, length] (targets -100 where nothing is learned, already shifted),
    positions [3, rows, length], pictures: for each place in the chat [rows, patches, values],
    grids: their (rows, columns) in patches, labels: for each place {name: [rows, patches]}.
    """

    ids: Ints
    targets: Ints
    positions: Ints
    pictures: list[NDArray[np.float32]]
    grids: list[tuple[int, int]]
    labels: list[dict[str, Ints]]


def train_tokenizer(vocabulary: int, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer learned from dialogues."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    random = Random(seed)
    corpus: list[str] = []
    while len(corpus) < 6000:
        kind = random.random()
        scenes = (
            [] if kind < 0.15 else [make_scene((8, 8), random) for _ in range(1 + (kind < 0.35))]
        )
        for _ in range(3):
            system, turns = chat(scenes, random)
            corpus += [system, *(text for turn in turns for text in (turn.question, turn.answer))]
            corpus.append("system user assistant")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(VISION),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in VISION])
    return tokenizer


def grid_for(area: float, aspect: float) -> tuple[int, int]:
    """Rows and columns in patches of a picture with this area (pixels) and width / height."""
    width = max(1, math.floor(math.sqrt(area * aspect) / CELL + 1e-6))
    height = max(1, math.floor(math.sqrt(area / aspect) / CELL + 1e-6))
    return 2 * height, 2 * width


def some_grid(random: Random, reach: float) -> tuple[int, int]:
    """The size of a picture as the processor makes it; ``reach``, 0 to 1: how large it may be."""
    most = LEAST_PIXELS * (MOST_PIXELS / LEAST_PIXELS) ** reach
    area = (
        most if random.random() < 0.3 else LEAST_PIXELS * (most / LEAST_PIXELS) ** random.random()
    )
    chance = random.random()
    if chance < 0.28:
        aspect = 1.0
    elif chance < 0.55:
        aspect = random.choice([0.707, 0.773])  # A4 and Letter
    else:
        aspect = math.exp(random.uniform(-0.5, 1.6 if chance < 0.8 else 0.8))
    return grid_for(area, aspect)


def small_grid(random: Random) -> tuple[int, int]:
    """The size of a cutting with little around its text, for labels alone."""
    if random.random() < 0.12:
        return some_grid(random, 1.0)
    rows = random.choice([2, 2, 4, 4, 4, 6, 8])
    return rows, 2 * max(2, min(20, round(rows * math.exp(random.uniform(0.0, 1.8)) / 2)))


class Encoder:
    """Chats to token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start, self.end, _, self.image, _ = (token_id(tokenizer, t) for t in VISION)
        self.encode = lru_cache(20000)(lambda text: tuple(tokenizer.encode(text).ids))

    def row(
        self, system: str, turns: list[Turn], cells: list[tuple[int, int]], random: Random
    ) -> tuple[list[int], list[bool], Ints]:
        """Token ids, which of them are answers, and positions [3, length].

        The pictures, of ``cells`` (rows, columns) tokens each, stand in the first message, before
        its text or behind it.
        """
        ids: list[int] = []
        learned: list[bool] = []
        positions: list[Ints] = []
        place = 0

        def add(tokens: tuple[int, ...], learn: bool = False) -> None:
            nonlocal place
            ids.extend(tokens)
            learned.extend([learn] * len(tokens))
            positions.append(np.tile(np.arange(place, place + len(tokens)), (3, 1)))
            place += len(tokens)

        def add_picture(rows: int, columns: int) -> None:
            nonlocal place
            add((self.start,))
            ids.extend([self.image] * (rows * columns))
            learned.extend([False] * (rows * columns))
            where = np.zeros((3, rows * columns), dtype=np.int64)
            where[1] = np.repeat(np.arange(rows), columns)
            where[2] = np.tile(np.arange(columns), rows)
            positions.append(where + place)
            place += max(rows, columns)
            add((self.end,))

        if system:
            add(self.encode(f"<|im_start|>system\n{system}<|im_end|>\n"))
        behind = random.random() < 0.35
        for number, turn in enumerate(turns):
            add(self.encode("<|im_start|>user\n"))
            if number == 0 and not behind:
                for rows, columns in cells:
                    add_picture(rows, columns)
            add(self.encode(turn.question))
            if number == 0 and behind:
                for rows, columns in cells:
                    add_picture(rows, columns)
            add(self.encode("<|im_end|>\n<|im_start|>assistant\n"))
            add(self.encode(turn.answer) + self.encode("<|im_end|>"), learn=True)
            add(self.encode("\n"))
        return ids, learned, np.concatenate(positions, axis=1)


def make_batch(encoder: Encoder, random: Random, step: int) -> Batch:
    """The batch of a step: chats about pictures, or small pictures with their labels alone."""
    reach = min(1.0, step / CURRICULUM)
    smallest = 8.5 + 4 * (1 - reach)
    if random.random() < (0.35 if step < CURRICULUM else LABELS_ALONE):
        grid = small_grid(random)
        rows = max(8, min(96, PATCHES_PER_STEP // (grid[0] * grid[1])))
        alone = [[make_scene(grid, random, smallest, reading=0.85)] for _ in range(rows)]
        none = np.zeros((0, 0), dtype=np.int64)
        return Batch(none, none, none, _pictures(alone), [grid], _labels(alone))
    count = random.choices([0, 1, 2], [0.04, 0.84, 0.12 if reach == 1 else 0.0])[0]
    grids = [some_grid(random, reach) for _ in range(count)]
    size = sum(rows * columns for rows, columns in grids)
    rows = max(4, min(48, PATCHES_PER_STEP // size)) if count else 32
    scenes = [[make_scene(grid, random, smallest, READING) for grid in grids] for _ in range(rows)]
    cells = [(r // 2, c // 2) for r, c in grids]
    made = [encoder.row(*chat(row, random), cells, random) for row in scenes]
    longest = max(len(ids) for ids, _, _ in made)
    ids = np.zeros((rows, longest), dtype=np.int64)
    targets = np.full((rows, longest), -100, dtype=np.int64)
    positions = np.zeros((3, rows, longest), dtype=np.int64)
    for i, (row_ids, learned, where) in enumerate(made):
        length = len(row_ids)
        ids[i, :length] = row_ids
        positions[:, i, :length] = where
        targets[i, : length - 1] = np.where(learned[1:], row_ids[1:], -100)
    return Batch(ids, targets, positions, _pictures(scenes), grids, _labels(scenes))


def _pictures(scenes: list[list[Scene]]) -> list[NDArray[np.float32]]:
    return [np.stack([patches(s.image) for s in place]) for place in zip(*scenes, strict=True)]


def _labels(scenes: list[list[Scene]]) -> list[dict[str, Ints]]:
    return [
        {name: np.stack([by_blocks(s.labels[name]) for s in place]) for name in LABELS}
        for place in zip(*scenes, strict=True)
    ]


def batches(encoder: Encoder, seed: int, start: int, steps: int) -> Iterator[Batch]:
    """The batches of a training; each depends on the seed and its number alone."""
    for step in range(start, steps):
        yield make_batch(encoder, Random(f"{seed} {step}"), step)
