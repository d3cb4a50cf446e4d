"""Small random vision models of real families, in the spirit of tests/models.py.

The language part has the weights of tests/models.py: a greedy answer wanders and depends on the
whole prompt. The features of an image have the size of text embeddings, differ clearly between
images, and so decide the answer. mlx_vlm's own processors prepare them, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.models import (
    HIDDEN,
    SLIDING_WINDOW,
    random_weight,
    text_config,
    write_json,
    write_tokenizer,
    write_weights,
)
from tests.vision_templates import GEMMA_TEMPLATE, IDEFICS_TEMPLATE, QWEN_TEMPLATE

VOCAB_SIZE = 544  # of the models; the tokenizers have a few ids less, as padded real models do

_TOWER = 16  # the hidden size of the vision tower
_GAIN = 2.0  # how much a layer of the tower enlarges its input
_DETAIL = 8.0  # how much more a patch's detail counts than its mean colour
_TILES = 2  # an idefics3 image is cut into at most two by two tiles


class _Family(NamedTuple):
    name: str  # of its classes
    image_token: str
    template: str
    markers: tuple[str, ...]  # the special tokens that it has besides
    settings: Mapping[str, Any] = {}  # in tokenizer_config.json


_QWEN = _Family(
    "Qwen2VL",
    "<|image_pad|>",
    QWEN_TEMPLATE,
    ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_IDEFICS = _Family(
    "Idefics3",
    "<image>",
    IDEFICS_TEMPLATE,
    (
        *("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
        *(f"<row_{row}_col_{col}>" for row in range(1, _TILES + 1) for col in range(1, _TILES + 1)),
    ),
    {"eos_token": "<end_of_utterance>"},
)
_GEMMA = _Family(
    "Gemma3",
    "<image_soft_token>",
    GEMMA_TEMPLATE,
    (
        *("<bos>", "<start_of_turn>", "<end_of_turn>"),
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    ),
    {
        "bos_token": "<bos>",
        "eos_token": "<end_of_turn>",
        "extra_special_tokens": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    },
)
_FAMILIES: dict[str, _Family] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN._replace(name="Qwen2_5_VL"),
    "qwen3_vl": _QWEN._replace(name="Qwen3VL"),
    "gemma3": _GEMMA,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS._replace(name="SmolVLM"),
}
VISION_ARCHITECTURES: tuple[str, ...] = tuple(_FAMILIES)
IMAGE_TOKENS: dict[str, str] = {kind: family.image_token for kind, family in _FAMILIES.items()}


def make_vision_model(
    kind: str,
    folder: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Make a model of one of :data:`VISION_ARCHITECTURES` in ``folder``, and return the folder.

    Other ``seed``, other weights; the tokenizer is always the same. ``changes`` are to what
    config.json says; those of a nested object replace it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family = _FAMILIES[kind]
    suppressed = write_tokenizer(
        folder,
        template_file=kind != "qwen2_vl",
        chat_template=family.template,
        markers=family.markers,
        vocab_size=VOCAB_SIZE,
        settings=family.settings,
    )
    config = _config(kind, _token_ids(folder)) | dict(changes or {})
    write_weights(folder, _weights(config, suppressed, dtype, seed))
    write_json(folder / "config.json", config)
    _write_processor(kind, folder, config)
    end = config["eos_token_id"]
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": [end, 0], "temperature": 0.6, "top_p": 0.95, "top_k": 20},
    )
    return folder


def change_processor(folder: Path, **changes: Any) -> None:
    """Change what preprocessor_config.json says, such as ``do_image_splitting``."""
    file = folder / "preprocessor_config.json"
    write_json(file, json.loads(file.read_text()) | changes)


def _token_ids(folder: Path) -> dict[str, int]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


# --- config.json ----------------------------------------------------------------------------


def _config(kind: str, ids: dict[str, int]) -> dict[str, Any]:
    text = text_config() | {"vocab_size": VOCAB_SIZE}
    stated = {"architectures": [_FAMILIES[kind].name + "ForConditionalGeneration"]}
    if kind == "gemma3":
        return stated | _gemma_config(text, ids)
    if kind in ("idefics3", "smolvlm"):
        return stated | _idefics_config(kind, text, ids)
    return stated | _qwen_config(kind, text, ids)


def _qwen_config(kind: str, text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "model_type": kind,
        "depth": 2,
        "hidden_size": _TOWER,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16 if kind == "qwen3_vl" else 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    # Two of three parts of a rotary dimension are for the row and the column of an image token.
    sections: dict[str, Any] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": _TOWER, "hidden_size": HIDDEN, "mlp_ratio": 2}
    elif kind == "qwen2_5_vl":
        vision |= {
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "window_size": 56,  # two by two image tokens: a larger image has several windows
            "fullatt_block_indexes": [1],
        }
    else:
        vision |= {
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        }
        sections = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text |= {"rope_scaling": sections}
    config = {
        "model_type": kind,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_config": vision,
    }
    if kind == "qwen3_vl":
        return config | {"text_config": {"model_type": "qwen3_vl_text"} | text}
    return text | config  # the older two have the text's settings at the top


def _gemma_config(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    text |= {
        "model_type": "gemma3_text",
        "sliding_window": SLIDING_WINDOW,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "mm_tokens_per_image": 4,
    }
    return {
        "model_type": "gemma3",
        "hidden_size": HIDDEN,
        "mm_tokens_per_image": 4,
        "vocab_size": VOCAB_SIZE,
        "image_token_index": ids["<image_soft_token>"],
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "pad_token_id": 0,
        "eos_token_id": ids["<end_of_turn>"],
        "text_config": text,
        "vision_config": _siglip("siglip_vision_model", image_size=56, patch_size=14),
    }


def _idefics_config(kind: str, text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    text |= {"model_type": "llama"}
    return {
        "model_type": kind,
        "scale_factor": 2,
        "vocab_size": VOCAB_SIZE,
        "image_token_id": ids["<image>"],
        "pad_token_id": 0,
        "eos_token_id": ids["<end_of_utterance>"],
        "text_config": text,
        "vision_config": _siglip(
            "idefics3_vision" if kind == "idefics3" else "smolvlm_vision",
            image_size=32,
            patch_size=8,
        ),
    }


def _siglip(model_type: str, *, image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": _TOWER,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": 3,
    }


# --- the processor's files ------------------------------------------------------------------


def _write_processor(kind: str, folder: Path, config: dict[str, Any]) -> None:
    """preprocessor_config.json and processor_config.json, as the family's models have them."""
    vision, name = config["vision_config"], _FAMILIES[kind].name
    image: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    if kind == "gemma3":
        image |= {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": vision["image_size"], "width": vision["image_size"]},
            "image_seq_length": config["mm_tokens_per_image"],
        }
        processor = {"image_seq_length": config["mm_tokens_per_image"]}
    elif kind in ("idefics3", "smolvlm"):
        tile = vision["image_size"]
        image |= {
            "image_processor_type": f"{name}ImageProcessor",
            "do_image_splitting": True,
            "do_pad": True,
            "resample": 1,
            "size": {"longest_edge": _TILES * tile},
            "max_image_size": {"longest_edge": tile},
        }
        side = tile // vision["patch_size"] // config["scale_factor"]
        processor = {"image_seq_len": side**2}
    else:
        patch = vision["patch_size"]
        token = (patch * vision["spatial_merge_size"]) ** 2  # pixels of one image token
        image |= {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": patch,
            "merge_size": vision["spatial_merge_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            "size": {"shortest_edge": 4 * token, "longest_edge": 64 * token},
        }
        processor = {}
    named = {"processor_class": f"{name}Processor"}
    write_json(folder / "preprocessor_config.json", image | named)
    write_json(folder / "processor_config.json", processor | named)


# --- weights --------------------------------------------------------------------------------


def _weights(config: dict[str, Any], suppressed: list[int], dtype: str, seed: int) -> Any:
    """Random weights for ``config``, by name."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    module, _ = get_model_and_args(config)
    stated = json.loads(json.dumps(config))  # the library writes into what it is given
    model_config = module.ModelConfig.from_dict(stated)
    model_config = update_module_configs(model_config, module, stated, ["text", "vision"])
    model = module.Model(model_config)
    gemma = config["model_type"] == "gemma3"
    # A key of its own: the caller's random state stays as it is.
    keys = iter(mx.random.split(mx.random.key(seed), 1024))
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        key = next(keys)
        if not name.startswith("language_model."):
            new = _tower_weight(name, value, key)
        elif name.endswith(".bias"):
            new = mx.random.normal(value.shape, key=key) * 0.1
        elif gemma and name.endswith(("embed_tokens.weight", "model.norm.weight")):
            new = _tied_weight(name, value, key, suppressed)
        else:
            new = random_weight(name, value, key, suppressed, gemma=gemma)
        weights[name] = new.astype(getattr(mx, dtype))
    if gemma:
        del weights["language_model.lm_head.weight"]
    return weights


def _tower_weight(name: str, value: Any, key: Any) -> Any:
    """Of the vision tower and the projection to the language model's embeddings."""
    import mlx.core as mx

    if name.endswith(".bias"):
        return mx.random.normal(value.shape, key=key) * 0.1
    if value.ndim < 2:
        return mx.zeros_like(value) if "mm_soft_emb_norm" in name else mx.ones_like(value)
    weight = mx.random.normal(value.shape, key=key)
    if "pos" in name:
        return weight * 0.5  # where a patch is matters, but what is in it matters more
    inputs = value.size // value.shape[0]
    if name.endswith("mm_input_projection_weight"):
        inputs = value.shape[0]
    last = "merger" in name and name.endswith(("fc2.weight", "mlp.2.weight"))
    gain = 1.0 if last or "projection" in name else _GAIN  # features as large as text embeddings
    weight = weight * (gain / inputs**0.5)
    if value.ndim > 2:  # patches: what is drawn on them counts for more than their mean colour
        colour = weight.mean(axis=tuple(range(1, value.ndim - 1)), keepdims=True)
        weight = (weight - colour) * _DETAIL + colour
    return weight


def _tied_weight(name: str, value: Any, key: Any, suppressed: list[int]) -> Any:
    """For a model whose embeddings are its lm_head, too: as random as two matrices would be.

    The last norm turns the sign of half of the dimensions, so that a token does not ask for
    itself. The constant in dimension 0 is negative for the suppressed tokens.
    """
    import mlx.core as mx

    if name.endswith("norm.weight"):
        scale = mx.where(mx.random.bernoulli(shape=value.shape, key=key), 3.0, -3.0)
        scale[0] = 100.0
        return scale - 1.0  # Gemma's norms multiply by 1 + weight
    weight = mx.random.normal(value.shape, key=key)
    weight[:, 0] = 2.0
    weight[mx.array(suppressed), 0] = -2.0
    return weight / HIDDEN**0.5  # Gemma multiplies embeddings by this root
