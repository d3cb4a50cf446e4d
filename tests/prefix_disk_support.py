"""Real caches of small real models, to be kept on disk and read back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import _get_classes

from mlx_router.engine.prefix.blocks import parse
from mlx_router.engine.prefix.cache import text_key
from mlx_router.engine.prefix.disk import PrefixDisk
from mlx_router.engine.prefix.layers import cuttable
from tests.models import SLIDING_WINDOW, VOCAB_SIZE, random_weight, text_config
from tests.waiting import until_sync

PLENTY = 10**9
IDS = list(range(1100))  # four blocks
WIDTH = 16  # numbers for each token, in keys and in values: a block is 32 KB
PROMPT = [(7 * i * i + 3 * i) % 450 + 30 for i in range(700)]

# Families that tests/models.py has no folders of: caches of other kinds.
_MORE: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "lfm2": {
        "norm_eps": 1e-6,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 128,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    "falcon_h1": {
        "mamba_d_ssm": 128,
        "mamba_d_head": 32,
        "mamba_n_heads": 4,
        "mamba_d_state": 32,
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 32,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-6,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
        "hidden_size": 64,
        "intermediate_size": 128,
    },
}

FAMILIES = ("qwen3", "gemma3_text", "gpt_oss", "qwen3_next", "lfm2", "falcon_h1", "mamba2")


@dataclass(frozen=True, slots=True, eq=False)
class Tiny:
    """A small model, and what its caches are after a prompt."""

    model: Any

    def prefill(
        self, ids: Sequence[int], stops: Sequence[int] = (), change: Callable[[Any], Any] = list
    ) -> tuple[list[Any], dict[int, dict[int, Any]]]:
        """The cache of all of ``ids``, and the layers that cannot be cut after each of ``stops``.
        ``change``: of the new cache, before anything is in it."""
        cache = change(make_prompt_cache(self.model))
        marks: dict[int, dict[int, Any]] = {}
        done = 0
        for stop in (*stops, len(ids)):
            if stop > done:
                self.model(mx.array([ids[done:stop]]), cache=cache)
                mx.eval([layer.state for layer in cache])
            done = stop
            marks[stop] = {
                number: copy.deepcopy(layer)
                for number, layer in enumerate(cache)
                if not cuttable(layer)
            }
        return cache, marks

    def go_on(self, cache: list[Any] | None, ids: Sequence[int], count: int = 12) -> list[int]:
        """The greedy answer to ``ids`` after what is in ``cache``."""
        steps = generate_step(mx.array(list(ids)), self.model, max_tokens=count, prompt_cache=cache)
        return [int(token) for token, _ in steps]


def make_tiny(kind: str, models: Path) -> Tiny:
    """``models``: the folder of ``tests.conftest.tiny_models``."""
    if kind not in _MORE:
        import mlx_lm

        return Tiny(mlx_lm.load(str(models / "tiny" / kind))[0])
    config = text_config() | {"model_type": kind, "vocab_size": VOCAB_SIZE} | _MORE[kind]
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    keys = iter(mx.random.split(mx.random.key(0), 4096))
    weights = [
        (name, random_weight(name, value, next(keys), [0], gemma=False))
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(weights, strict=False)
    mx.eval(model.parameters())
    return Tiny(model)


def rows_cache(ids: Sequence[int]) -> list[Any]:
    """A KV cache whose rows are the token ids that it holds, :data:`WIDTH` times."""
    layer = KVCache()
    rows = mx.repeat(mx.array(list(ids), dtype=mx.float32).reshape(1, 1, -1, 1), WIDTH, axis=-1)
    layer.update_and_fetch(rows, rows)
    mx.eval(layer.state)
    return [layer]


def held(layers: list[Any] | None) -> list[int] | None:
    """The ids in a cache of :func:`rows_cache`."""
    if layers is None:
        return None
    rows = layers[0].keys_and_values()[0]
    assert (rows == rows[..., :1]).all()
    return [int(value) for value in rows[..., 0].flatten().tolist()]


@contextmanager
def opened(
    folder: Path, max_bytes: int = PLENTY, fingerprint: str = "model"
) -> Iterator[PrefixDisk]:
    """Closed in the end, with all that waits written."""
    disk = PrefixDisk(folder, max_bytes, fingerprint)
    try:
        yield disk
    finally:
        disk.close(60)


def keep(folder: Path, ids: Sequence[int], cache: list[Any], **given: Any) -> None:
    """All of it is on disk when this returns."""
    marks = given.pop("marks", {})
    scope = given.pop("scope", "")
    with opened(folder, **given) as disk:
        disk.write(scope, text_key(ids), cache, marks)


def read(disk: PrefixDisk, ids: Sequence[int], tokens: int, scope: str = "") -> list[Any] | None:
    return disk.read(scope, text_key(ids), tokens).result(timeout=60)


def longest(disk: PrefixDisk, ids: Sequence[int], limit: int = 10**6, scope: str = "") -> int:
    return disk.longest(scope, text_key(ids), limit)


def settled(disk: PrefixDisk, ids: Sequence[int], tokens: int, scope: str = "") -> None:
    """Wait until so many tokens can be read back."""
    until_sync(lambda: longest(disk, ids, scope=scope) >= tokens)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def in_order(folder: Path) -> list[Path]:
    """The files of one prompt, each after the one it needs."""
    entries = {entry.parent: entry for file in files(folder) if (entry := parse(file.name))}
    (parent,) = entries.keys() - {entry.digest for entry in entries.values()}
    found = []
    while parent in entries:
        found.append(folder / entries[parent].file)
        parent = entries[parent].digest
    return found
