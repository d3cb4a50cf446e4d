"""The built-in vision model, asked through plain mlx-vlm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_vlm
import pytest
from PIL import Image, ImageDraw, ImageFont

import mlx_router

FOLDER = Path(mlx_router.__file__).parent / "demo" / "vision"
SCRIPT = Path(mlx_router.__file__).parent.parent / "helper_tools" / "train_demo_vision.py"

Ask = Callable[..., str]


def shape(kind: str, colour: str, size: tuple[int, int] = (224, 224)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw, (w, h) = ImageDraw.Draw(image), size
    r = min(size) * 0.35
    box = (w / 2 - r, h / 2 - r, w / 2 + r, h / 2 + r)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(w / 2, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    return image


def printed(text: str, points: int = 64, size: tuple[int, int] = (320, 160)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    middle = (size[0] / 2, size[1] / 2)
    font = ImageFont.load_default(points)
    ImageDraw.Draw(image).text(middle, text, fill="black", font=font, anchor="mm")
    return image


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Asks about pictures; further texts are the earlier answer and the next question."""
    model, processor = mlx_vlm.load(str(FOLDER))

    def answer(question: str, *pictures: Image.Image, then: tuple[str, str] | None = None) -> str:
        content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        ]
        if then:
            messages.append({"role": "assistant", "content": then[0]})
            messages.append({"role": "user", "content": then[1]})
        prompt = processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        result = mlx_vlm.generate(
            model, processor, prompt, image=list(pictures) or None, max_tokens=60, temperature=0.0
        )
        assert result.finish_reason == "stop"
        return str(result.text)

    return answer


def test_it_ships_in_a_few_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 4_000_000
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "qwen3_vl"


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
def test_it_names_colour_and_shape(ask: Ask, colour: str, kind: str) -> None:
    assert ask("What is in this picture?", shape(kind, colour)) == f"A {colour} {kind}."


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (240, 400), (1500, 1500)])
def test_the_size_of_a_picture_does_not_matter(ask: Ask, size: tuple[int, int]) -> None:
    assert ask("Describe this image.", shape("circle", "blue", size)) == "A blue circle."


def test_a_second_question_about_the_same_picture(ask: Ask) -> None:
    picture = shape("square", "green")
    then = ("A green square.", "And which colour is it?")
    assert ask("What is in this picture?", picture, then=then) == "Green."


@pytest.mark.parametrize("digit", list("0123456789"))
def test_it_reads_a_large_digit(ask: Ask, digit: str) -> None:
    assert ask("What number is this?", printed(digit, 100, (140, 140))) == f"It says {digit}."


@pytest.mark.parametrize("text", ["HELLO", "STOP", "EXIT", "MLX", "CAT", "42", "305", "1234"])
def test_it_reads_large_print(ask: Ask, text: str) -> None:
    assert ask("What does it say?", printed(text)) == f"It says {text}."


def test_without_a_picture_it_says_what_it_can_do(ask: Ask) -> None:
    assert "colours and shapes" in ask("Hello!")
    assert "I only know colours, shapes" in ask("Why is the sky blue?")


def test_the_training_script_shows_its_plan_without_training() -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "steps" in shown
    assert "What" in shown
