"""Model folders made of nothing, for the tests of the catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_router.catalog import Catalog, ModelOverride, inspect_folder
from mlx_router.catalog.supported import Library, Supported
from mlx_router.domain import ModelCard

MLX_LM_ONLY = Supported(
    text=Library(frozenset({"llama", "qwen3", "gemma3", "gemma3_text"}), {"mistral": "llama"}),
    vision=Library(),
)
WITH_MLX_VLM = Supported(
    text=MLX_LM_ONLY.text, vision=Library(frozenset({"gemma3", "bert", "qwen3_vl", "xlm_roberta"}))
)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 2048,
}
Tensors = dict[str, tuple[str, list[int]]]
_WIDTH = {"F32": 4, "BF16": 2, "U32": 4, "U8": 1, "F8_E4M3": 1}


def write_weights(file: Path, tensors: Tensors) -> None:
    """A safetensors file with these tensors; its data is a hole that takes no space on disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = _WIDTH[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(file, "wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        output.truncate(8 + len(text) + end)


def write_model(
    folder: Path,
    config: object = LLAMA,
    tensors: Tensors | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """A folder that passes for a model's; ``config`` is written as it is if it is a string."""
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    (folder / "tokenizer.json").write_text("{}")
    write_weights(
        folder / "model.safetensors", tensors or {"embed_tokens.weight": ("BF16", [128, 64])}
    )
    for name, content in (files or {}).items():
        (folder / name).write_text(content)
    return folder


def hf_model(cache: Path, repo: str, revision: str = "abc", main: str | None = None) -> Path:
    """A model in a Hugging Face cache, its files links to blobs."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    plain = write_model(cache.parent / "making")
    snapshot = folder / "snapshots" / revision
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    for file in plain.iterdir():
        blob = folder / "blobs" / f"{revision}-{file.name}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    plain.rmdir()
    (folder / "refs" / "main").write_text(main or revision)
    return snapshot


def inspect(folder: Path, model_id: str = "org/model", **options: Any) -> ModelCard:
    card = inspect_folder(folder, model_id, **{"libraries": MLX_LM_ONLY} | options)
    assert card is not None
    return card


def problem_of(folder: Path, **options: Any) -> str:
    problem = inspect(folder, **options).problem
    assert problem is not None, "the model passes for usable"
    assert str(folder) not in problem, "a problem names files, never this machine's paths"
    assert "\n" not in problem
    return problem


def make_catalog(
    *directories: Path, overrides: Mapping[str, ModelOverride] | None = None
) -> Catalog:
    catalog = Catalog(directories, overrides, libraries=MLX_LM_ONLY)
    catalog.refresh()
    return catalog


def ids(catalog: Catalog) -> list[str]:
    return [card.id for card in catalog.cards()]
