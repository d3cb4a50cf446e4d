"""KV caches of 4 or 8 bits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_router.engine.prefix.layers import evaluate
from mlx_router.errors import ModelLoadFailed

_GROUPS = (64, 32)  # numbers that share a scale; MLX has no other sizes for both 4 and 8 bits


class QuantizedCache:
    """Makes empty caches of ``bits`` bits for a model. Raises ModelLoadFailed if the model cannot
    compute with one: a sliding window or a recurrent state is not quantised, some kinds of
    attention read whole numbers only, and a head must divide into groups."""

    def __init__(self, model: Any, model_id: str, bits: int) -> None:
        self._model = model
        self._bits = bits
        try:
            self._group = self._find_group()
            cache = self()
            model(mx.array([[0, 0]]), cache=cache)
            model(mx.array([[0]]), cache=cache)
            evaluate(cache)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0][:200]
        else:
            return
        raise ModelLoadFailed(
            f"{model_id} cannot have a KV cache of {bits} bits ({reason}). Leave kv_bits out of "
            "its config."
        )

    def __call__(self) -> list[Any]:
        from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

        layers = make_prompt_cache(self._model)
        return [QuantizedKVCache(group_size=self._group, bits=self._bits) for _ in layers]

    def _find_group(self) -> int:
        from mlx_lm.models.cache import KVCache, make_prompt_cache

        layers = make_prompt_cache(self._model)
        other = next((layer for layer in layers if type(layer) is not KVCache), None)
        if other is not None:
            raise ValueError(f"its layers keep a {type(other).__name__}")
        self._model(mx.array([[0]]), cache=layers)
        sizes = {array.shape[-1] for layer in layers for array in (layer.keys, layer.values)}
        for group in _GROUPS:
            if all(size % group == 0 for size in sizes):
                return group
        raise ValueError(f"its heads have {min(sizes)} numbers, not a multiple of {_GROUPS[-1]}")
