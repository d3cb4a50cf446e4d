"""Families whose language model keeps the positions of a prompt to itself, between two calls."""

from __future__ import annotations

import json
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_router.engine.vision.inputs import ImageInputs
from mlx_router.engine.vision.model import VisionModel
from tests.test_correctness import OnOneThread

TOKENS = 10
IMAGE, START, END, VIDEO = 300, 301, 302, 303
IDS = [5, 6, 7, START, *[IMAGE] * 8, END, *range(10, 30)]
GRID = [[1, 8, 4]]  # times, rows and columns of patches; four of these are a token


def glm4v() -> Any:
    """A random GLM-4V: its embeddings leave positions in the model, and give none back."""
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    config = {
        "model_type": "glm4v",
        "image_token_id": IMAGE,
        "image_token_index": IMAGE,
        "video_token_id": VIDEO,
        "video_token_index": VIDEO,
        "vision_start_token_id": START,
        "image_start_token_id": START,
        "image_end_token_id": END,
        "vision_end_token_id": END,
        "vocab_size": 320,
        "eos_token_id": 2,
        "text_config": {
            "model_type": "glm4v_text",
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "vocab_size": 320,
            "rope_theta": 1e4,
            "max_position_embeddings": 4096,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]},
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "glm4v_vision",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "in_channels": 3,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "image_size": 56,
            "window_size": 56,
            "rms_norm_eps": 1e-5,
        },
    }
    module, _ = get_model_and_args(config=config)
    stated = json.loads(json.dumps(config))  # the library writes into what it is given
    made = module.ModelConfig.from_dict(stated)
    model = module.Model(update_module_configs(made, module, stated, ["text", "vision"]))
    keys = iter(mx.random.split(mx.random.key(1), 256))

    def random(old: mx.array) -> mx.array:
        key = next(keys)
        if old.ndim < 2:
            return old
        new: mx.array = mx.random.normal(old.shape, key=key) * 1.5 * old.shape[-1] ** -0.5
        return new

    model.update(tree_map(random, model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("slice_tokens", [100, 6])
def test_slices_and_others_in_between_change_nothing(slice_tokens: int) -> None:
    """A prompt in slices that cut its image, with another prompt computed between any two of them,
    is answered as mlx-vlm answers it in one go."""
    thread = OnOneThread()
    try:
        ours, theirs = thread(lambda: _answers(slice_tokens))
    finally:
        thread.close()
    assert len(theirs) == TOKENS
    assert ours == theirs


def _answers(slice_tokens: int) -> tuple[list[int], list[int]]:
    from mlx_vlm.generate.ar import generate_step

    whole = glm4v()
    ids, grid = mx.array([IDS]), mx.array(GRID)
    pixels = mx.random.normal((32, 3 * 2 * 14 * 14), key=mx.random.key(2))
    mask = mx.ones_like(ids)
    theirs = generate_step(
        ids, whole, pixels, mask, max_tokens=TOKENS, temperature=0.0, image_grid_thw=grid
    )
    expected = [int(token) for token, _ in theirs]

    model = VisionModel(whole)
    key = np.asarray(IDS, dtype=np.int64)
    inputs = ImageInputs(ids, pixels, mask, {"image_grid_thw": grid}, key, 13)
    embedded, cache, last = model.embed(inputs), model.make_cache(), len(IDS) - 1
    for start in range(0, last, slice_tokens):
        model.prefill(ids, embedded, cache, start, min(start + slice_tokens, last))
        mx.eval(model(mx.array([[1, 2, 3]]), model.make_cache()))
    found, token = [], IDS[-1]
    for _ in range(TOKENS):
        logits = model(mx.array([[token]]), cache)[0, -1]
        token = cast(int, mx.argmax(logits).item())
        found.append(token)
    return found, expected
