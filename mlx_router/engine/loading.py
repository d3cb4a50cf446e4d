"""What every engine asks of a model that was loaded, or that was not."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_router.domain import ModelCard
from mlx_router.engine import device
from mlx_router.errors import ModelCorrupt, ModelLoadFailed, RouterError

log = logging.getLogger(__name__)

_CLEAR_BYTES = 100_000_000
# An absolute path: to its closing quote, or, as names may hold spaces, to the end of the line.
# Not the slash in "org/name", "../name" or "</s>", nor the one of a web address.
_PATH = re.compile(
    r"""(?P<web>https?://\S+)|(?P<quote>['"`])~?/.*?(?P=quote)|(?<![\w.<)\]])~?/+[^\s/].*"""
)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def cache_bytes(model: Any, layers: list[Any], tokens: int) -> int | None:
    """Bytes of the KV cache of a sequence of so many tokens; None if it cannot be told. Puts one
    token through the model into the empty ``layers`` without computing it, and looks at the
    shapes."""
    try:
        model(mx.array([[0]]), cache=layers)
        return sum(_layer_cache_bytes(layer, tokens) for layer in layers)
    except Exception:  # an architecture with a cache of its own kind: the estimate stays
        log.debug("the cache of a model could not be measured", exc_info=True)
        return None


def _layer_cache_bytes(layer: Any, tokens: int) -> int:
    from mlx_lm.models.cache import ArraysCache, CacheList

    if isinstance(layer, CacheList):
        return sum(_layer_cache_bytes(part, tokens) for part in layer.caches)
    if isinstance(layer, ArraysCache):  # a state, whatever the length
        return int(layer.nbytes)
    keys = layer.keys[0] if isinstance(layer.keys, tuple) else layer.keys
    per_token = layer.nbytes // keys.shape[2]
    if (window := getattr(layer, "max_size", None)) is not None:
        return int(per_token * min(tokens, window))
    step = getattr(layer, "step", 1)
    return int(per_token * -(-tokens // step) * step)


def vocabulary_size(model: nn.Module, card: ModelCard) -> int:
    """Ids below this are safe to embed: what config.json says, or the rows of the largest
    embedding (padded beyond the tokenizer's vocabulary) where it says nothing or too much."""
    rows = max(
        (
            int(module.weight.shape[0])
            for _, module in model.named_modules()
            if isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
        ),
        default=0,
    )
    config = json.loads((card.path / "config.json").read_text())
    stated = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0
    if not rows and not stated:
        raise ModelCorrupt(f"config.json of {card.id} does not say its vocab_size.")
    return min(rows, int(stated)) if rows and stated else max(rows, int(stated))


def dismantle(model: nn.Module) -> None:
    """Free the weights of a model that nobody uses any more, array by array: freed all at once, as
    the last reference goes, gigabytes of them stop every other thread for a tenth of a second."""
    device.settle()  # lets others run meanwhile; to free what is still computed with does not
    freed = 0
    for module in model.modules():
        while module:
            freed += getattr(module.popitem()[1], "nbytes", 0)
            if freed >= _CLEAR_BYTES:  # more often, other models would miss buffers they reuse
                mx.clear_cache()
                freed = 0


def load_error(card: ModelCard, error: Exception) -> RouterError:
    """The error for a client, without paths: the whole of it is in the log."""
    if isinstance(error, RouterError):
        return error.with_traceback(None)
    said = f"{type(error).__name__}: {error}".replace(str(card.path), card.id).splitlines()[0]
    what = _PATH.sub(lambda found: found["web"] or "<path>", said)[:200]
    if isinstance(error, FileNotFoundError | KeyError | ValueError):
        return ModelCorrupt(
            f"The model {card.id} could not be loaded from its files ({what}). "
            "Download it again, or look at the log."
        )
    return ModelLoadFailed(f"Loading {card.id} failed ({what}); the log has the details.")
