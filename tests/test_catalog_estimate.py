"""What a model is for, what it can, and what it will cost, from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_router.catalog.estimate import context_length, kv_cost
from mlx_router.domain import ModelKind
from tests.catalog_support import (
    LLAMA,
    WITH_MLX_VLM,
    Tensors,
    inspect,
    problem_of,
    write_model,
)


@pytest.mark.parametrize(
    ("model_id", "config", "kind"),
    [
        ("org/m", LLAMA, ModelKind.TEXT),
        ("org/m", {**LLAMA, "model_type": "mistral"}, ModelKind.TEXT),
        ("org/m", {**LLAMA, "vision_config": None}, ModelKind.TEXT),
        ("org/m", {**LLAMA, "model_type": "gemma3", "vision_config": {}}, ModelKind.VISION),
        ("org/m", {**LLAMA, "model_type": "qwen3_vl", "vision_config": {}}, ModelKind.VISION),
        ("org/m", {**LLAMA, "model_type": "bert"}, ModelKind.EMBEDDING),
        ("org/Qwen3-Embedding-0.6B", {**LLAMA, "model_type": "qwen3"}, ModelKind.EMBEDDING),
        ("org/Qwen3-Reranker-4bit", {**LLAMA, "model_type": "qwen3"}, ModelKind.RERANKER),
        (
            "org/m",
            {**LLAMA, "model_type": "xlm-roberta", "architectures": ["XForSequenceClassification"]},
            ModelKind.RERANKER,
        ),
    ],
)
def test_kinds(model_id: str, config: dict[str, Any], kind: ModelKind, tmp_path: Path) -> None:
    card = inspect(write_model(tmp_path / "model", config), model_id, libraries=WITH_MLX_VLM)
    assert card.problem is None
    assert card.kind is kind


def test_a_sentence_transformer_is_an_embedding_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", files={"modules.json": "[]"})
    assert inspect(folder).kind is ModelKind.EMBEDDING


def test_without_mlx_vlm_an_image_model_serves_text_or_says_what_to_install(
    tmp_path: Path,
) -> None:
    half = write_model(tmp_path / "a", {**LLAMA, "model_type": "gemma3", "vision_config": {}})
    assert inspect(half).kind is ModelKind.TEXT
    assert inspect(half).problem is None
    assert inspect(half).blind
    whole = write_model(tmp_path / "b", {**LLAMA, "model_type": "qwen3_vl", "vision_config": {}})
    assert "uv sync --extra vision" in problem_of(whole)


_TOOLS = "{% if tools %}{{ tools }}{% endif %}{{ messages }}"
_THINK = "{{ messages }}<think>"


@pytest.mark.parametrize(
    ("files", "tools", "reasoning"),
    [
        ({}, False, False),
        ({"chat_template.jinja": _TOOLS}, True, False),
        ({"chat_template.jinja": _THINK}, False, True),
        ({"tokenizer_config.json": json.dumps({"chat_template": _TOOLS + _THINK})}, True, True),
        ({"chat_template.json": json.dumps({"chat_template": _TOOLS})}, True, False),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {
                        "chat_template": [
                            {"name": "default", "template": "{{ messages }}"},
                            {"name": "tool_use", "template": _TOOLS},
                        ]
                    }
                )
            },
            True,
            False,
        ),
    ],
)
def test_tools_and_reasoning_are_what_the_template_knows(
    files: dict[str, str], tools: bool, reasoning: bool, tmp_path: Path
) -> None:
    card = inspect(write_model(tmp_path / "model", files=files))
    assert (card.supports_tools, card.supports_reasoning) == (tools, reasoning)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({}, "bf16"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "4-bit g64"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "affine"}}, "4-bit g32"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "4-bit awq"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "bitnet"),
        ({"text_config": {"quantization": {"bits": 8, "group_size": 64}}}, "8-bit g64"),
    ],
)
def test_quantization_labels(config: dict[str, Any], label: str, tmp_path: Path) -> None:
    assert inspect(write_model(tmp_path / "model", {**LLAMA, **config})).quantization == label


def test_packed_weights_count_as_what_they_hold(tmp_path: Path) -> None:
    quantization = {"bits": 4, "group_size": 64, "lm_head": {"bits": 8, "group_size": 64}}
    tensors: Tensors = {
        "layer.weight": ("U32", [128, 8]),  # 8 numbers of 4 bits in each
        "layer.scales": ("BF16", [128, 1]),
        "layer.biases": ("BF16", [128, 1]),
        "layer.bias": ("BF16", [128]),
        "lm_head.weight": ("U32", [128, 16]),  # 4 numbers of 8 bits in each
        "lm_head.scales": ("BF16", [128, 1]),
        "norm.weight": ("BF16", [64]),
    }
    folder = write_model(tmp_path / "model", {**LLAMA, "quantization": quantization}, tensors)
    card = inspect(folder)
    assert card.parameters == 128 * 64 + 128 + 128 * 64 + 64
    assert card.weight_bytes == 128 * 8 * 4 + 128 * 16 * 4 + 2 * (3 * 128 + 128 + 64)


# --- estimates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "per_token", "at_16k"),
    [
        (
            "Llama-3.1-8B",
            {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
            | {"num_key_value_heads": 8},
            131_072,
            131_072 * 16384,
        ),
        (
            "Qwen3-8B",
            {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32}
            | {"num_key_value_heads": 8, "head_dim": 128},
            147_456,
            147_456 * 16384,
        ),
        (
            "DeepSeek-V3",
            {"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128}
            | {"num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
            | {"qk_nope_head_dim": 128, "v_head_dim": 128, "hidden_size": 7168},
            70_272,
            70_272 * 16384,
        ),
        (
            "gpt-oss-20b",
            {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_attention_heads": 64}
            | {"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128}
            | {"layer_types": ["sliding_attention", "full_attention"] * 12},
            49_152,
            24_576 * 16384 + 24_576 * 128,
        ),
        (
            "Gemma3-12B, as published, with the defaults left out",
            {
                "model_type": "gemma3",
                "text_config": {"model_type": "gemma3_text"}
                | {"hidden_size": 3840, "num_hidden_layers": 48, "num_attention_heads": 16}
                | {"num_key_value_heads": 8, "sliding_window": 1024},
            },
            393_216,
            65_536 * 16384 + 327_680 * 1024,
        ),
        (
            "Qwen3-Next-80B",
            {"model_type": "qwen3_next", "num_hidden_layers": 48, "num_attention_heads": 16}
            | {"num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4},
            24_576,
            24_576 * 16384,
        ),
        (
            "DeepSeek-V2-Lite, which keeps keys and values in full",
            {"model_type": "deepseek_v2", "num_hidden_layers": 27, "num_attention_heads": 16}
            | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
            | {"v_head_dim": 128},
            276_480,
            276_480 * 16384,
        ),
        (
            "a state-space model",
            {"model_type": "mamba2", "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64},
            0,
            0,
        ),
        (
            "LFM2, mostly convolutions",
            {"model_type": "lfm2", "num_hidden_layers": 16, "num_attention_heads": 32}
            | {
                "num_key_value_heads": 8,
                "hidden_size": 2048,
                "full_attn_idxs": [2, 5, 8, 10, 12, 14],
            },
            12_288,
            12_288 * 16384,
        ),
        (
            "Nemotron-H, attention where the pattern has a star",
            {"model_type": "nemotron_h", "num_hidden_layers": 6, "num_attention_heads": 40}
            | {"num_key_value_heads": 8, "head_dim": 128, "hybrid_override_pattern": "M-M*-M"},
            4096,
            4096 * 16384,
        ),
        (
            "layers that share another one's cache",
            {"model_type": "gemma3n_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2}
            | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256}
            | {"sliding_window": 512}
            | {"layer_types": ["sliding_attention", "full_attention"] * 2},
            4096,
            2048 * 16384 + 2048 * 512,
        ),
        (
            "a window that mlx-lm does not use",
            {"model_type": "mistral", "num_hidden_layers": 32, "num_attention_heads": 32}
            | {"num_key_value_heads": 8, "hidden_size": 4096, "sliding_window": 4096},
            131_072,
            131_072 * 16384,
        ),
    ],
)
def test_kv_cost(name: str, config: dict[str, Any], per_token: int, at_16k: int) -> None:
    cost = kv_cost({"model_type": "llama", **config})
    assert cost.bytes_per_token == per_token, name
    assert cost.total(16384) == at_16k, name
    assert kv_cost({"model_type": "llama", **config}, element_bytes=4).total(100) == 2 * cost.total(
        100
    )


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"max_position_embeddings": 40960}, {"model_max_length": 131072}, 40960),
        ({"text_config": {"max_position_embeddings": 262144}}, {}, 262144),
        ({"n_positions": 1024}, {}, 1024),
        ({"seq_length": 8192}, {}, 8192),
        ({"max_sequence_length": 2048}, {}, 2048),
        ({}, {"model_max_length": 8192}, 8192),
        ({}, {"model_max_length": 10**30}, 4096),
        ({}, {"model_max_length": 1e30}, 4096),
        ({"max_position_embeddings": "many"}, {"model_max_length": 512}, 512),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, {}, 131072),
        (
            {"max_position_embeddings": 32768}
            | {
                "rope_scaling": {"type": "yarn", "factor": 4.0}
                | {"original_max_position_embeddings": 32768}
            },
            {},
            131072,
        ),
        (
            {"max_position_embeddings": 131072}
            | {
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0}
                | {"original_max_position_embeddings": 8192}
            },
            {},
            131072,
        ),
    ],
)
def test_context_length(
    config: dict[str, Any], tokenizer_config: dict[str, Any], expected: int
) -> None:
    assert context_length({"model_type": "llama", **config}, tokenizer_config) == expected


def test_required_memory_is_weights_and_the_cache_of_a_usual_conversation(tmp_path: Path) -> None:
    short = inspect(write_model(tmp_path / "short"))
    long = inspect(write_model(tmp_path / "long", {**LLAMA, "max_position_embeddings": 131072}))
    per_token = 2 * 2 * 2 * 16 * 2
    assert short.kv_bytes_per_token == long.kv_bytes_per_token == per_token
    assert (short.cache_bytes, long.cache_bytes) == (2048 * per_token, 8192 * per_token)
    assert short.required_bytes > short.weight_bytes + short.cache_bytes
    assert long.required_bytes > long.weight_bytes + long.cache_bytes
