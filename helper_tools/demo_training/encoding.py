"""Dialogues to token ids with a loss weight for each token, and ids to padded batches."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .dialogues import Dialogue
from .tokenizer import token_id

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
PROMPT_WEIGHT = 0.05
Row = tuple[NDArray[np.int16], NDArray[np.float32]]
Batch = tuple[NDArray[np.int64], NDArray[np.float32]]


def load_template() -> jinja2.Template:
    """The chat template, in an environment like the one transformers uses."""
    environment = jinja2.Environment(  # noqa: S701 - a prompt is no HTML
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))


def render(template: jinja2.Template, sample: Dialogue) -> str:
    """The whole dialogue as text."""
    return template.render(messages=sample.messages, tools=sample.tools or None)


class Encoder:
    """Encodes rendered dialogues; only what the assistant writes counts fully."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = load_template()
        self._start: list[int] = tokenizer.encode("<|im_start|>assistant\n").ids
        self._no_thought: list[int] = tokenizer.encode("<think>\n\n</think>\n\n").ids
        self._end = token_id(tokenizer, "<|im_end|>")

    def rows(self, samples: list[Dialogue]) -> list[Row]:
        """One row a dialogue."""
        texts = [render(self._template, sample) for sample in samples]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [self._weigh(e.ids, s) for e, s in zip(encoded, samples, strict=True)]

    def _weigh(self, ids: list[int], sample: Dialogue) -> Row:
        weights = np.full(len(ids), PROMPT_WEIGHT, dtype=np.float32)
        answers = iter([m for m in sample.messages if m["role"] == "assistant"])
        i, n = 0, len(self._start)
        while i < len(ids):
            if ids[i : i + n] != self._start:
                i += 1
                continue
            begin = i + n
            if ids[begin : begin + len(self._no_thought)] == self._no_thought:
                begin += len(self._no_thought)
            end = ids.index(self._end, begin)
            if not next(answers).get("untrained"):
                weights[begin : end + 1] = 1.0
            i = end + 1
        return np.asarray(ids, dtype=np.int16), weights


def batches(
    encoder: Encoder, samples: Iterator[Dialogue], tokens: int, longest: int, seed: int
) -> Iterator[Batch]:
    """Endless batches of about ``tokens`` tokens, each of rows of like length."""
    shuffle = random.Random(seed)
    while True:
        rows = encoder.rows(list(islice(samples, 4000)))
        rows = sorted((row for row in rows if len(row[0]) <= longest), key=lambda row: len(row[0]))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        shuffle.shuffle(groups)
        yield from map(_pad, groups)


def _pad(rows: list[Row]) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for i, (row_ids, row_weights) in enumerate(rows):
        ids[i, : len(row_ids)] = row_ids
        weights[i, : len(row_ids)] = row_weights
    return ids, weights


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The tool calls in an answer; raises ValueError when one is not valid JSON."""
    calls = []
    for part in text.split("<tool_call>")[1:]:
        body, closed, _ = part.partition("</tool_call>")
        if not closed:
            raise ValueError("a tool call is not closed")
        calls.append(json.loads(body))
    return calls
