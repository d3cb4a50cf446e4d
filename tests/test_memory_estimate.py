"""What a model is said to need is what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_router.catalog import Catalog, inspect_folder
from mlx_router.catalog.estimate import kv_cost
from tests.models import ARCHITECTURES, make_model

Peaks = Callable[..., list[int]]

# Layers enough for one to be a part of the whole, and a cache that is no trifle beside the rest.
_LARGER: dict[str, Any] = {"num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 32}
_SHAPES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 256},
    "qwen3_next": {"linear_num_value_heads": 8, "num_experts": 8, "num_experts_per_tok": 4},
}
_MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_LINEAR: dict[str, Any] = {
    "full_attention_interval": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.5,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
_SLICE = 512
_LENGTHS = (600, 1300)  # a slice and a part of one; two and a part
_ANSWER_TOKENS = 8

# Loads the model of each line it is given and computes a conversation, for each length.
_MEASURE = """
import json
import sys
from pathlib import Path

import mlx.core as mx

from mlx_router.catalog import inspect_folder
from mlx_router.engine import device
from mlx_router.engine.base import Job, Sampling
from mlx_router.engine.text import TextEngine, TextEngineOptions

def peak(folder, answer, prefill, tokens):
    assert mx.get_active_memory() < 1000
    mx.reset_peak_memory()
    card = inspect_folder(Path(folder), "m")
    engine = TextEngine(card, TextEngineOptions(prefill_step_size=prefill))
    engine.load()
    prompt = [(7 * i + 3) % 500 for i in range(tokens - answer)]
    engine.add(Job(id=1, prompt=prompt, max_tokens=answer, sampling=Sampling()))
    while engine.busy:
        engine.step()
    found = mx.get_peak_memory()
    engine.close()
    return found

device.prepare()
for line in sys.stdin:
    folder, answer, prefill, *lengths = json.loads(line)
    print(json.dumps([peak(folder, answer, prefill, tokens) for tokens in lengths]), flush=True)
"""


@pytest.fixture(scope="module")
def peaks() -> Iterator[Peaks]:
    """Bytes of MLX's memory at the most, weights included, in a process that does nothing else."""
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURE],
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None

        def measured(folder: Path, *lengths: int, prefill_tokens: int = _SLICE) -> list[int]:
            ask.write(json.dumps([str(folder), _ANSWER_TOKENS, prefill_tokens, *lengths]) + "\n")
            ask.flush()
            found: list[int] = json.loads(answers.readline())
            return found

        yield measured


def estimates(folder: Path, *lengths: int, prefill_tokens: int = _SLICE) -> list[int]:
    """What the cards of models say that have such contexts, and are this one but for that."""
    found = []
    text = (folder / "config.json").read_text()
    for length in lengths:
        changed = {**json.loads(text), "max_position_embeddings": length}
        (folder / "config.json").write_text(json.dumps(changed))
        card = inspect_folder(folder, "tiny/model", prefill_tokens=prefill_tokens)
        assert card is not None
        assert (card.problem, card.usual_tokens) == (None, length)
        found.append(card.required_bytes)
    (folder / "config.json").write_text(text)
    return found


def larger(kind: str, folder: Path, **options: Any) -> Path:
    return make_model(kind, folder, changes={**_LARGER, **_SHAPES.get(kind, {})}, **options)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_required_memory_is_within_a_tenth_of_the_peak(
    kind: str, tmp_path: Path, peaks: Peaks
) -> None:
    folder = larger(kind, tmp_path / "model")
    lengths = _LENGTHS[:1] if kind in ("sharded", "quantized") else _LENGTHS  # a llama's cache
    assert estimates(folder, *lengths) == pytest.approx(peaks(folder, *lengths), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen3_moe", **_MIXTURE},
        {"model_type": "deepseek_v3", "rope_scaling": None, **_MIXTURE, **_LATENT},
        {"model_type": "gpt_oss", "sliding_window": 128, **_MIXTURE},
    ],
    ids=lambda changes: changes["model_type"],
)
def test_required_memory_is_right_for_other_kinds_of_layers(
    changes: dict[str, Any], tmp_path: Path, peaks: Peaks
) -> None:
    folder = make_model("qwen3", tmp_path / "model", changes={"num_hidden_layers": 4, **changes})
    assert estimates(folder, 600) == pytest.approx(peaks(folder, 600), rel=0.1)


def test_required_memory_is_right_for_half_precision_and_other_slices(
    tmp_path: Path, peaks: Peaks
) -> None:
    folder = larger("llama", tmp_path / "model", dtype="bfloat16")
    estimated = estimates(folder, 900, prefill_tokens=256)
    assert estimated == pytest.approx(peaks(folder, 900, prefill_tokens=256), rel=0.1)


def test_estimates_follow_the_prefill_step_of_the_settings(tmp_path: Path) -> None:
    larger("llama", tmp_path / "model")
    small, large = Catalog([tmp_path], prefill_tokens=64), Catalog([tmp_path], prefill_tokens=2048)
    small.refresh()
    large.refresh()
    assert small.cards()[0].required_bytes < large.cards()[0].required_bytes
    assert small.cards()[0].cache_bytes == large.cards()[0].cache_bytes


# --- the KV cache of a real model ---------------------------------------------------------------

_WINDOW: dict[str, Any] = {"sliding_window": 64, "sliding_window_pattern": 2}

_FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama qwen2 qwen3 gemma gemma2 granite olmo2 phi3 cohere internlm2 nemotron", {}),
    ("seed_oss smollm3 starcoder2", {}),
    ("mixtral olmoe phimoe qwen2_moe qwen3_moe", _MIXTURE),
    ("gemma3_text cohere2", _WINDOW),
    ("gpt_oss", {**_MIXTURE, **_WINDOW}),
    ("qwen3_next qwen3_5 qwen3_5_moe", {**_MIXTURE, **_LINEAR}),
    ("deepseek_v3 glm4_moe_lite youtu_llm", {**_MIXTURE, **_LATENT}),
    ("deepseek_v32", {**_MIXTURE, **_LATENT, "index_head_dim": 64, "index_n_heads": 2}),
]
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "norm_epsilon": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "query_pre_attn_scalar": 16,
    "hidden_act": "silu",
    "logits_scaling": 1.0,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}


@pytest.mark.parametrize(
    ("family", "details"), [(name, more) for names, more in _FAMILIES for name in names.split()]
)
def test_the_estimated_cache_is_that_of_the_real_model(
    family: str, details: dict[str, Any]
) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import _get_classes

    from mlx_router.engine.loading import cache_bytes

    config = {**_COMMON, **details, "model_type": family}
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.set_dtype(mx.bfloat16)
    for tokens in (50, 1000, 4096):
        assert kv_cost(config).total(tokens) == cache_bytes(model, make_prompt_cache(model), tokens)


def test_a_cache_of_an_unknown_kind_is_not_guessed_at() -> None:
    from mlx_router.engine.loading import cache_bytes

    class Odd:
        layers = ()

        def __call__(self, tokens: object, cache: object) -> None:
            pass

    assert cache_bytes(Odd(), [object()], 100) is None
