"""The random vision models are fit for their purpose: images reach them, and they are lively."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests import models, vision_models

Model = tuple[Any, Any]  # model and processor
Answer = tuple[list[int], float]

RED = Image.new("RGB", (96, 96), "red")
BLUE = Image.new("RGB", (96, 96), "blue")
QUESTION = "What is in this picture?"
TILED = ("idefics3", "smolvlm")


def _page(corner: tuple[int, int]) -> Image.Image:
    """A white page with a small black square on it."""
    page = Image.new("RGB", (96, 96), "white")
    x, y = corner
    ImageDraw.Draw(page).rectangle((x, y, x + 10, y + 10), fill="black")
    return page


@pytest.fixture(scope="module", params=vision_models.VISION_ARCHITECTURES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_models.make_vision_model(kind, tmp_path_factory.mktemp("vision") / kind)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Model:
    return _load(folder)


def _load(folder: Path) -> Model:
    import mlx_vlm

    model, processor = mlx_vlm.load(str(folder))
    return model, processor


def _prompt(processor: Any, text: str, images: int) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return str(
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    )


def _answer(model: Model, text: str, *images: Image.Image, count: int = 12) -> Answer:
    """The greedy tokens of mlx_vlm, and by how much the best one won at least."""
    from mlx_vlm import stream_generate

    prompt = _prompt(model[1], text, len(images))
    steps = stream_generate(
        *model, prompt, image=list(images) or None, max_tokens=count, temperature=0.0
    )
    tokens, margins = [], []
    for step, _ in zip(steps, range(count), strict=False):
        second, best = sorted(step.logprobs.reshape(-1).tolist())[-2:]
        tokens.append(int(step.token))
        margins.append(best - second)
    return tokens, min(margins)


def _inputs(model: Model, *images: Image.Image) -> dict[str, Any]:
    from mlx_vlm.utils import prepare_inputs

    prompt = _prompt(model[1], QUESTION, len(images))
    return dict(prepare_inputs(model[1], images=list(images) or None, prompts=prompt))


def _image_tokens(kind: str, model: Model, *images: Image.Image) -> int:
    image = model[1].tokenizer.convert_tokens_to_ids(vision_models.IMAGE_TOKENS[kind])
    return int(_inputs(model, *images)["input_ids"][0].tolist().count(image))


def _embeddings(kind: str, model: Model, *images: Image.Image) -> tuple[Any, Any]:
    """What goes into the language model for images, and for the text around them."""
    import numpy as np

    inputs = _inputs(model, *images)
    ids = inputs.pop("input_ids")
    mask = inputs.pop("attention_mask")
    features = model[0].get_input_embeddings(ids, inputs.pop("pixel_values"), mask=mask, **inputs)
    image = model[1].tokenizer.convert_tokens_to_ids(vision_models.IMAGE_TOKENS[kind])
    is_image = np.array(ids[0]) == image
    rows = np.array(features.inputs_embeds[0])
    return rows[is_image], rows[~is_image]


def test_an_image_decides_the_answer(loaded: Model) -> None:
    pictures: list[tuple[Image.Image, ...]] = [(), (RED,), (BLUE,), (_page((20, 20)),)]
    answers = [_answer(loaded, QUESTION, *images)[0] for images in pictures]
    assert len({tuple(tokens) for tokens in answers}) == len(pictures)


def test_small_things_on_a_page_decide_the_answer(loaded: Model) -> None:
    answers = [_answer(loaded, QUESTION, _page(at))[0] for at in ((20, 20), (60, 60))]
    assert answers[0] != answers[1]


def test_an_image_decides_the_answer_in_bfloat16(kind: str, tmp_path: Path) -> None:
    model = _load(vision_models.make_vision_model(kind, tmp_path, dtype="bfloat16"))
    answers = [_answer(model, QUESTION, *images)[0] for images in ((), (RED,), (BLUE,))]
    assert len({tuple(tokens) for tokens in answers}) == 3


def test_the_order_of_two_images_decides_the_answer(loaded: Model) -> None:
    assert _answer(loaded, "Compare.", RED, BLUE)[0] != _answer(loaded, "Compare.", BLUE, RED)[0]


def test_the_question_about_an_image_decides_the_answer(loaded: Model) -> None:
    one, two = (_answer(loaded, f"Is there 1 or {n}? Do say so.", RED)[0] for n in (2, 3))
    assert one != two


def test_answers_are_reproducible_lively_and_well_separated(
    kind: str, loaded: Model, tmp_path: Path
) -> None:
    again = _load(vision_models.make_vision_model(kind, tmp_path))
    for images in ((), (RED,), (RED, BLUE)):
        tokens, margin = _answer(loaded, QUESTION, *images)
        assert len(set(tokens)) > 5, f"{kind} repeats itself: {tokens}"
        assert margin > 1e-3, f"{kind} has a near tie"
        assert "\ufffd" not in loaded[1].tokenizer.decode(tokens)
        assert _answer(again, QUESTION, *images)[0] == tokens


def test_an_answer_goes_on_past_the_sliding_window(loaded: Model) -> None:
    tokens, _ = _answer(loaded, QUESTION, RED, count=models.SLIDING_WINDOW + 8)
    assert len(tokens) == models.SLIDING_WINDOW + 8
    assert len(set(tokens)) > 10


def test_features_of_an_image_are_as_large_as_embeddings_of_text(kind: str, loaded: Model) -> None:
    for image in (RED, _page((20, 20))):
        features, text = _embeddings(kind, loaded, image)
        assert 0.5 < features.std() / text.std() < 2


def test_images_of_one_size_take_few_tokens(kind: str, loaded: Model) -> None:
    small, large = (
        _image_tokens(kind, loaded, Image.new("RGB", (side, side), "red")) for side in (64, 224)
    )
    assert 4 <= small <= large <= 64
    assert _image_tokens(kind, loaded, RED, BLUE) == 2 * _image_tokens(kind, loaded, RED)


def test_a_model_is_small_and_complete(kind: str, folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    for name in ("config", "generation_config", "preprocessor_config", "processor_config"):
        assert json.loads((folder / f"{name}.json").read_text())
    assert json.loads((folder / "config.json").read_text())["model_type"] == kind


def test_loading_needs_neither_torch_nor_opencv(tmp_path: Path) -> None:
    folders = [
        str(vision_models.make_vision_model(kind, tmp_path / kind))
        for kind in vision_models.VISION_ARCHITECTURES
    ]
    code = (
        "import json, sys, mlx_vlm\n"
        "for folder in sys.argv[1:]: mlx_vlm.load(folder)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert not imported & {"torch", "torchvision", "cv2", "datasets"}


def test_a_bias_of_100_brings_up_end_of_sequence(loaded: Model) -> None:
    import mlx.core as mx
    from mlx_vlm.models.cache import make_prompt_cache

    model, processor = loaded
    ids = _inputs(loaded)["input_ids"]
    logits = model.language_model(ids, cache=make_prompt_cache(model.language_model)).logits[0, -1]
    end = logits[processor.tokenizer.eos_token_id].item()
    assert end + 100 > mx.max(logits).item() + 10
    assert end + 10 < mx.max(logits).item()


def test_another_seed_makes_another_model(kind: str, folder: Path, tmp_path: Path) -> None:
    other = vision_models.make_vision_model(kind, tmp_path, seed=1)
    content = [(path / "model.safetensors").read_bytes() for path in (folder, other)]
    assert content[0] != content[1]


@pytest.mark.parametrize("tiled_kind", TILED)
def test_tiles_are_named_by_row_and_column_and_can_be_turned_off(
    tiled_kind: str, tmp_path: Path
) -> None:
    folder = vision_models.make_vision_model(tiled_kind, tmp_path)
    tiled = _load(folder)
    vision_models.change_processor(folder, do_image_splitting=False)
    whole = _load(folder)
    wide = Image.new("RGB", (128, 64), "red")
    text = tiled[1].tokenizer.decode(_inputs(tiled, wide)["input_ids"][0].tolist())
    assert "<row_1_col_1>" in text
    assert "<row_1_col_2>" in text
    assert "<row_2_col_1>" not in text
    assert _image_tokens(tiled_kind, tiled, wide) == 3 * _image_tokens(tiled_kind, whole, wide)
    assert _answer(tiled, QUESTION, wide)[0] != _answer(whole, QUESTION, wide)[0]


@pytest.mark.parametrize("qwen", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_template_has_tools_thinking_and_images_in_any_turn(qwen: str, tmp_path: Path) -> None:
    _, processor = _load(vision_models.make_vision_model(qwen, tmp_path))
    image = {"type": "image"}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "This?"}, image]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Why?"},
    ]
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    text = processor.tokenizer.apply_chat_template(
        messages, tools=[tool], enable_thinking=False, add_generation_prompt=True, tokenize=False
    )
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"<|im_start|>user\n{pad}This?{pad}<|im_end|>\n<|im_start|>assistant\nRed." in text
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert "get_weather" in text
    assert text.endswith("<think>\n\n</think>\n\n")
