"""Chats about images: what the second turn costs, and what images cost a stream beside them."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.client import PATIENCE_SECONDS, ask_together
from benchmarks.measures import GROUPS, Plan, Say, in_turns
from benchmarks.model import make_prompt
from benchmarks.processes import Process, environment, find_openblas, free_port
from benchmarks.report import Result, at_most, median, number, ratios, spread
from benchmarks.subjects import OURS, HTTPSubject, our_server
from benchmarks.watch import watch_streams
from tests.vision_models import change_processor, make_vision_model

MLX_VLM = "mlx_vlm.server"
WITH_CACHE = "mlx_vlm.server with APC"

_TOKENS = 8
_IMAGES = 4
_STEPS_BEFORE = 20
_CONTEXT = 16_384
_VISION = {
    "depth": 6,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_heads": 4,
    "out_hidden_size": 384,
    "num_position_embeddings": 1024,
}
_TEXT = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": _CONTEXT,
    "rope_scaling": {
        "rope_type": "default",
        "mrope_section": [16, 8, 8],
        "mrope_interleaved": True,
    },
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds to the first text of the two turns of a chat."""

    first: float
    second: float


def vision(folder: Path, say: Say, plan: Plan, openblas: str | None) -> list[Result]:
    """Ours and mlx_vlm.server, with and without its prefix cache, in turns."""
    library = find_openblas(openblas)
    folder = folder / "vision"
    say("making a model")
    model = _make_model(folder / "models" / "sees")
    env = environment(folder, library)
    stub = {"PYTHONPATH": str(_without_sound(folder))}
    with (
        our_server(folder, env, models=model.parent) as (ours, our_port),
        _mlx_vlm_server(MLX_VLM, folder, {**env, **stub}, model) as (plain, plain_port),
        _mlx_vlm_server(WITH_CACHE, folder, {**env, **stub, "APC_ENABLED": "1"}, model) as (
            caching,
            caching_port,
        ),
    ):
        fields = {"timeout": PATIENCE_SECONDS, "ignore_eos": True, "model": model.name}
        servers = [
            (HTTPSubject(OURS, our_port, fields), ours),
            (HTTPSubject(MLX_VLM, plain_port, {"model": str(model)}), plain),
            (HTTPSubject(WITH_CACHE, caching_port, {"model": str(model)}), caching),
        ]
        for subject, process in servers:
            process.wait_until_healthy(subject.port)
            _turns(subject, _image(0, plan.image_side))
            process.check_openblas(library)
        runs: list[list[Turns]] = [[] for _ in servers]
        for turn, index in in_turns(plan.image_rounds, len(servers)):
            say(f"two turns: round {turn + 1} of {plan.image_rounds}")
            subject, process = servers[index]
            runs[index].append(_turns(subject, _image(turn + 1, plan.image_side)))
            process.wait_until_idle()
        subject, process = servers[0]
        gaps = []
        for turn in range(plan.image_rounds):
            say(f"a stream beside images: round {turn + 1} of {plan.image_rounds}")
            gaps.append(_gaps(subject, process, turn, plan.image_side))
    return [*_compared(*runs), _gap_result(gaps)]


def _make_model(folder: Path) -> Path:
    """A random Qwen3-VL, large enough that computing it takes longer than all around it."""
    small = make_vision_model("qwen3_vl", folder.parent / "small")
    config = json.loads((small / "config.json").read_text())
    shutil.rmtree(small)
    config["vision_config"] |= _VISION
    config["text_config"] |= _TEXT
    make_vision_model("qwen3_vl", folder, changes=config)
    change_processor(folder, size={"shortest_edge": 4096, "longest_edge": 2**20})
    return folder


def _without_sound(folder: Path) -> Path:
    """A folder for PYTHONPATH: mlx_vlm.server does not start without ``mlx_audio``."""
    package = folder / "without-sound" / "mlx_audio"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "audio_io.py").write_text("read = write = None\n")
    return package.parent


@contextlib.contextmanager
def _mlx_vlm_server(
    name: str, folder: Path, env: Mapping[str, str], model: Path
) -> Iterator[tuple[Process, int]]:
    port = free_port()
    arguments = ["-m", "mlx_vlm.server", "--model", str(model), "--host", "127.0.0.1"]
    with Process(name, [*arguments, "--port", str(port)], env, folder) as process:
        yield process, port


def _image(seed: int, side: int) -> str:
    """A data URI of noise: no two are alike."""
    image = Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side))
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _seen(images: Sequence[str], text: str) -> Json:
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _turns(subject: HTTPSubject, image: str) -> Turns:
    messages = [_seen([image], "What is in this picture? Tell me all about it.")]
    first = subject.body("", _TOKENS, messages=messages)
    (answer,) = ask_together(subject.port, [first], PATIENCE_SECONDS)
    messages += [
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "And which colours are there?"},
    ]
    second = subject.body("", _TOKENS, messages=messages)
    (next_answer,) = ask_together(subject.port, [second], PATIENCE_SECONDS)
    return Turns(answer.first, next_answer.first)


def _gaps(subject: HTTPSubject, process: Process, turn: int, side: int) -> tuple[float, float]:
    """The longest gaps (seconds) of a stream: while images are prefilled, while a text is."""
    images = [_image(1000 * (turn + 1) + number, side) for number in range(_IMAGES)]
    seeing = subject.body("", 2, messages=[_seen(images, "Compare them.")])
    (answer,) = ask_together(subject.port, [seeing], PATIENCE_SECONDS)
    images = [_image(2000 * (turn + 1) + number, side) for number in range(_IMAGES)]
    seeing = subject.body("", 2, messages=[_seen(images, "Compare them.")])
    reading = subject.body(make_prompt(f"gap {turn}", answer.prompt_tokens // 3), 2)
    longest = []
    for other in (seeing, reading):
        process.wait_until_idle()
        stream = subject.body(f"stream {turn}", 4000, stream_options={"include_usage": True})
        seen = watch_streams(subject.port, [stream], other, _STEPS_BEFORE, PATIENCE_SECONDS)
        longest.append(max(seen.meanwhile))
    return longest[0], longest[1]


def _compared(
    ours: Sequence[Turns], plain: Sequence[Turns], caching: Sequence[Turns]
) -> Iterator[Result]:
    group = GROUPS["vision"]
    first = [turns.first for turns in ours]
    second = [turns.second for turns in ours]
    for name, above, below, who in (
        ("first token of turn 2 ÷ turn 1", second, first, OURS),
        ("first token of turn 1, ours ÷ mlx_vlm.server", first, [t.first for t in plain], MLX_VLM),
        (
            "first token of turn 2, ours ÷ mlx_vlm.server",
            second,
            [t.second for t in plain],
            MLX_VLM,
        ),
        (
            "first token of turn 2, ours ÷ mlx_vlm.server with its prefix cache",
            second,
            [t.second for t in caching],
            WITH_CACHE,
        ),
    ):
        quotients = ratios(above, below)
        yield Result(
            group,
            name,
            median(quotients),
            "x",
            at_most(1) if who != OURS else None,
            f"{number(median(above))} ÷ {number(median(below))} s; rounds {spread(quotients)}",
            samples={"turn 2": above, "turn 1": below}
            if who == OURS
            else {"ours": above, who: below},
        )


def _gap_result(gaps: Sequence[tuple[float, float]]) -> Result:
    images, texts = [1e3 * seen for seen, _ in gaps], [1e3 * read for _, read in gaps]
    quotients = ratios(images, texts)
    return Result(
        GROUPS["vision"],
        "longest gap of a stream beside four images ÷ beside a text",
        median(quotients),
        "x",
        at_most(1.5),
        f"{number(median(images))} ÷ {number(median(texts))} ms; rounds {spread(quotients)}",
        samples={"beside images ms": images, "beside a text ms": texts},
    )
