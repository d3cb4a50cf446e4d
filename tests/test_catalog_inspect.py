"""What the catalog says of one model's folder, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.catalog import inspect_folder
from mlx_router.catalog.supported import installed
from mlx_router.domain import ModelKind
from tests import models
from tests.catalog_support import (
    LLAMA,
    MLX_LM_ONLY,
    WITH_MLX_VLM,
    Tensors,
    inspect,
    problem_of,
    write_model,
    write_weights,
)

# --- real models ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", models.ARCHITECTURES)
def test_a_card_of_a_real_model_agrees_with_the_loaded_model(kind: str, tiny_models: Path) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import get_total_parameters, load_model

    folder = tiny_models / "tiny" / kind
    card = inspect(folder, libraries=installed())
    model, config = load_model(folder, lazy=True)
    assert card.problem is None
    assert card.kind is ModelKind.TEXT
    assert card.architecture == config["model_type"]
    if kind == "quantized":
        assert card.parameters == get_total_parameters(model)
    else:
        assert card.parameters == sum(v.size for _, v in tree_flatten(model.parameters()))
    assert card.weight_bytes == sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert card.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert card.quantization == ("4-bit g32" if kind == "quantized" else "f32")
    assert card.context_length == models.CONTEXT_LENGTH
    assert card.supports_tools
    assert card.supports_reasoning
    assert card.created == int((folder / "config.json").stat().st_mtime)
    assert card.required_bytes > card.weight_bytes + 2048 * card.kv_bytes_per_token // 2


@pytest.mark.parametrize("kind", models.ARCHITECTURES)
def test_kv_bytes_per_token_are_those_of_the_real_cache(kind: str, tiny_models: Path) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import ArraysCache, make_prompt_cache
    from mlx_lm.utils import load_model

    folder = tiny_models / "tiny" / kind
    model, _ = load_model(folder, lazy=True)
    cache = make_prompt_cache(model)
    model(mx.array([[1, 2, 3]]), cache=cache)
    arrays = [array for c in cache if not isinstance(c, ArraysCache) for array in c.state[:2]]
    measured = sum(array.nbytes // array.shape[2] for array in arrays)
    assert inspect(folder, libraries=installed()).kv_bytes_per_token == measured


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (models.truncate_shard, "is truncated"),
        (models.drop_shard, "is missing"),
        (models.html_shard, "is a web page"),
        (models.huge_header_shard, "is not a safetensors file"),
        (models.empty_shard, "is empty"),
    ],
)
def test_a_broken_shard_is_named(
    break_it: Callable[[Path], Path], says: str, tiny_models: Path, tmp_path: Path
) -> None:
    copy = models.copy_model(tiny_models / "tiny" / "sharded", tmp_path / "copy")
    broken = break_it(copy)
    assert problem_of(copy, libraries=installed()).startswith(f"{broken.name} {says}")


def test_a_missing_shard_is_noticed_without_an_index(tiny_models: Path, tmp_path: Path) -> None:
    copy = models.copy_model(tiny_models / "tiny" / "sharded", tmp_path / "copy")
    (copy / "model.safetensors.index.json").unlink()
    missing = models.drop_shard(copy)
    assert problem_of(copy) == f"{missing.name} is missing"


def test_a_stale_index_does_no_harm_while_all_tensors_are_there(tmp_path: Path) -> None:
    index = {"weight_map": {"embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect(folder).problem is None
    index["weight_map"]["norm.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problem_of(folder) == "model-00002-of-00002.safetensors is missing"


@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_own_code_is_refused_and_never_run(key: str, tiny_models: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    copy = models.copy_model(tiny_models / "tiny" / "qwen3", tmp_path / "copy")
    models.add_remote_code(copy, canary, key)
    problem = problem_of(copy)
    assert f"{key} in config.json" in problem
    assert "trust_remote_code" in problem
    assert inspect(copy, trust_remote_code=True).problem is None
    assert not canary.exists()


# --- problems -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {**LLAMA, "trust_remote_code": True}),
        ("config.json", {**LLAMA, "text_config": {"auto_map": {"AutoModel": "m.M"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "p.P"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "p.P"}}),
    ],
)
def test_own_code_is_refused_wherever_it_is_asked_for(
    name: str, content: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).write_text(json.dumps(content))
    assert f"in {name}" in problem_of(folder)
    assert inspect(folder, trust_remote_code=True).problem is None


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[1, 2]", id="a list"),
        pytest.param('"text"', id="a string"),
        pytest.param("null", id="null"),
        pytest.param("[" * 100_000, id="deep nesting"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="deep objects"),
        pytest.param('{"model_type": "llama", "x": "' + "x" * 10_000_001 + '"}', id="huge"),
        pytest.param('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", id="endless"),
        pytest.param({**LLAMA, "hidden_size": "4096"}, id="a number as a string"),
        pytest.param({**LLAMA, "num_hidden_layers": True}, id="a number as a boolean"),
        pytest.param({**LLAMA, "num_attention_heads": [4]}, id="a number as a list"),
        pytest.param({**LLAMA, "vocab_size": -5}, id="a negative number"),
        pytest.param({**LLAMA, "num_hidden_layers": 1_000_000}, id="too many layers"),
        pytest.param('{"model_type": "llama", "hidden_size": NaN}', id="not a number"),
        pytest.param('{"model_type": "llama", "hidden_size": 1e999}', id="infinity"),
        pytest.param({**LLAMA, "model_type": ["llama"]}, id="model_type a list"),
        pytest.param({**LLAMA, "model_type": "../../llama"}, id="model_type a path"),
        pytest.param({**LLAMA, "model_type": "l\ud800lama"}, id="model_type with a surrogate"),
        pytest.param({"hidden_size": 64}, id="no model_type"),
    ],
)
def test_an_odd_config_is_a_problem_that_names_it(config: object, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config)
    assert "config.json" in problem_of(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    [
        *("architectures", "attn_layer_period", "auto_map", "bits", "factor", "group_size"),
        *("full_attention_interval", "full_attn_idxs", "head_dim", "hidden_size"),
        *("hybrid_override_pattern", "kv_lora_rank", "layer_types", "linear_attn_config"),
        *("max_position_embeddings", "mode", "model_file", "model_type", "num_attention_heads"),
        *("num_hidden_layers", "num_key_value_heads", "num_kv_heads", "num_kv_shared_layers"),
        *("original_max_position_embeddings", "quantization", "quantization_config"),
        *("rope_scaling", "rope_type", "sliding_window", "sliding_window_pattern"),
        *("text_config", "thinker_config", "vision_config"),
    ]
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    config=st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON, max_size=4), max_size=8),
    model_type=st.sampled_from(["llama", "qwen3", "gemma3", "gpt_oss", "mamba2"]),
    tokenizer_config=_JSON,
)
def test_no_config_makes_inspection_raise(
    config: dict[str, Any], model_type: str, tokenizer_config: object, tmp_path: Path
) -> None:
    folder = write_model(
        tmp_path / "model",
        {"model_type": model_type, **config},
        files={"tokenizer_config.json": json.dumps(tokenizer_config)},
    )
    card = inspect_folder(folder, "model", libraries=MLX_LM_ONLY)
    assert card is None or (card.required_bytes >= 0 and 0 < card.context_length < 1 << 32)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        _JSON | st.fixed_dictionaries({"dtype": _JSON, "shape": _JSON, "data_offsets": _JSON}),
        max_size=3,
    )
    | _JSON,
    data=st.binary(max_size=16),
)
def test_no_weights_header_makes_inspection_raise(
    header: object, data: bytes, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(content)
    inspect(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "tokenizer.json").write_text(""), "tokenizer.json is empty"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "pytorch_model.bin is not safetensors",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
            "weights.safetensors would not be loaded",
        ),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/"),
            "model.safetensors is a Git LFS pointer",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes() + b"more"
            ),
            "model.safetensors is damaged",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "model.safetensors is truncated"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../../secret"}}'
            ),
            "model.safetensors.index.json is broken",
        ),
        (
            lambda f: (f / "config.json").write_text(
                json.dumps({**LLAMA, "model_type": "whisper"})
            ),
            "config.json asks for the architecture whisper",
        ),
    ],
)
def test_an_unusable_model_says_why(
    change: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    assert inspect(folder).problem is None
    change(folder)
    assert problem_of(folder).startswith(says)


def test_a_gguf_folder_is_listed_as_unusable(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert problem_of(tmp_path).startswith("model-Q4_K_M.gguf is a GGUF file")


def test_other_programs_folders_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"defaults": {"max_tokens": 4096}}')
    assert inspect_folder(tmp_path, "x") is None
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_bytes(b"")
    (adapter / "adapter_config.json").write_text("{}")
    assert inspect_folder(adapter, "x") is None
    assert inspect_folder(tmp_path / "nowhere", "x") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_in_a_folder_blocks_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer_config.json")
    assert inspect(folder).problem is None


def test_a_header_whose_length_looks_like_a_page_is_still_a_header(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].ljust(length // 256 * 256 + 256 + ord("<"))
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert file.read_bytes().startswith(b"<")
    assert inspect(folder).problem is None


# --- weights in folders of a model's folder ---------------------------------------------------

_BERT = {**LLAMA, "model_type": "bert", "architectures": ["BertModel"]}


def _with_dense(folder: Path) -> Path:
    """An embedding model with a dense layer of its own, as sentence-transformers lays it out."""
    write_model(folder, _BERT)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text("{}")
    write_weights(folder / "2_Dense" / "model.safetensors", {"linear.weight": ("F32", [64, 64])})
    return folder


def test_the_weights_in_folders_of_an_embedding_model_count(tmp_path: Path) -> None:
    plain = inspect(write_model(tmp_path / "plain", _BERT), libraries=WITH_MLX_VLM)
    folder = _with_dense(tmp_path / "model")
    card = inspect(folder, libraries=WITH_MLX_VLM)
    assert card.problem is None
    assert card.weight_bytes == plain.weight_bytes + 64 * 64 * 4
    assert card.size_bytes > plain.size_bytes + 64 * 64 * 4
    assert inspect(write_model(tmp_path / "text")).weight_bytes == plain.weight_bytes
    before = card.fingerprint
    write_weights(folder / "2_Dense" / "model.safetensors", {"linear.weight": ("F32", [64, 99])})
    assert inspect(folder, libraries=WITH_MLX_VLM).fingerprint != before


def test_broken_weights_in_a_folder_of_an_embedding_model_are_named(tmp_path: Path) -> None:
    folder = _with_dense(tmp_path / "model")
    weights = folder / "2_Dense" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert "2_Dense/model.safetensors is truncated" in problem_of(folder, libraries=WITH_MLX_VLM)
    weights.unlink()
    weights.symlink_to("nowhere")
    assert "2_Dense/model.safetensors is missing" in problem_of(folder, libraries=WITH_MLX_VLM)
    weights.unlink()
    write_weights(weights, {"linear.weight": ("F32", [64, 64])})
    (folder / "model.safetensors").unlink()
    assert problem_of(folder, libraries=WITH_MLX_VLM) == "model.safetensors is missing"


@pytest.mark.parametrize("name", ["2_Dense/model.safetensors", "2_Dense/config.json"])
def test_a_link_out_of_a_folder_of_an_embedding_model_is_refused(name: str, tmp_path: Path) -> None:
    folder = _with_dense(tmp_path / "models" / "model")
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    assert f"{name} is a link to a place outside" in problem_of(folder, libraries=WITH_MLX_VLM)
    assert inspect(folder, libraries=WITH_MLX_VLM, roots=[tmp_path]).problem is None
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer_config.json").write_text("{}")
    assert inspect(folder).problem is None, "a text model's loader does not read it"


@pytest.mark.parametrize(
    ("config", "bytes_each"),
    [
        ({"model_type": "deepseek_v3"}, 2),
        ({"model_type": "minimax_m2"}, 2),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}, 2),
        ({"model_type": "llama"}, 1),
        (
            {
                "model_type": "deepseek_v3",
                "quantization_config": {
                    "quant_method": "fp8",
                    "scale_fmt": "ue8m0",
                    "weight_block_size": [32, 32],
                },
            },
            1,
        ),
    ],
)
def test_fp8_weights_count_as_what_the_library_makes_of_them(
    config: dict[str, Any], bytes_each: int, tmp_path: Path
) -> None:
    tensors: Tensors = {
        "a.weight": ("F8_E4M3", [64, 64]),
        "a.weight_scale_inv": ("F32", [1, 1]),
        "b.weight": ("BF16", [64, 8]),
    }
    folder = write_model(tmp_path / "model", {**LLAMA, **config}, tensors)
    card = inspect(folder, libraries=installed())
    assert card.problem is None
    assert card.weight_bytes == 64 * 64 * bytes_each + 4 + 64 * 8 * 2
