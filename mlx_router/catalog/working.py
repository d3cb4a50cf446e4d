"""What a conversation needs in memory beside the weights, from a model's config alone.

A prompt is computed in slices, and the layers of a slice one after the other, so the peak is that
of the hungriest layer at one of the last slices. For each token of a slice a layer holds

==================  ============================================================================
attention layers    7 hidden states, 6 times the queries, the keys and values, and 3 times the
                    MLP's inner state (in a mixture: of as many experts as a token asks)
attention scores    heads * the tokens so far, and a byte of mask for each of them; three times
                    with an attention sink, twice with latent attention, which also expands the
                    keys and values of all tokens so far
linear attention    projections, what goes through the convolution, and a recurrent state
==================  ============================================================================

and beside that there are

==================  ============================================================================
cache               :class:`~mlx_router.catalog.estimate.KVCost`, of all layers
growth              the layer's cache once more, while it is copied to a larger place; that of two
                    layers when decoding begins
sliding window      a slice's keys and values beyond the window, in all such layers
convolution         a slice's inputs in all linear layers: the cache keeps a view of them
==================  ============================================================================

The last layer does not count: a slice needs nothing of it but its keys and values. The counts were
measured with MLX's CPU backend. Metal has fused kernels that write neither scores (but for latent
attention, whose positions are scored apart) nor recurrent states, so these are left out there; that
is read from the library's source, and was not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mlx_router.catalog.estimate import (
    STATE_BYTES,
    Layer,
    LinearAttention,
    integer,
    kv_cost,
    layer_elements,
    layers_of,
    text_config,
    window_of,
)

PREFILL_TOKENS = 512  # a slice, unless the settings say otherwise
_SINKS = frozenset({"gpt_oss", "mimo_v2_flash"})
_SINK_COPIES = 3  # of the scores: with an attention sink they are joined to it and cut off again
FUSED = sys.platform == "darwin"


def conversation_bytes(
    config: Mapping[str, Any],
    tokens: int,
    element_bytes: int = 2,
    *,
    slice_tokens: int = PREFILL_TOKENS,
    fused: bool = FUSED,
) -> int:
    """The most that a conversation of so many tokens, nearly all of them its prompt, holds at once.
    ``fused``: as on Metal."""
    text = text_config(config)
    cost = kv_cost(text, element_bytes)
    # The last whole slice, and what is left after it.
    left = tokens % slice_tokens
    slices = [(slice_tokens, tokens - left), (left, tokens)]
    peaks = [
        cost.total(so_far) + _slice_bytes(text, new, so_far, element_bytes, fused=fused)
        for new, so_far in slices
        if new <= so_far
    ]
    layers = max(len(layers_of(text)), 1)
    return max(*peaks, cost.total(tokens) * (layers + 2) // layers)


def forward_bytes(
    config: Mapping[str, Any], tokens: int, element_bytes: int = 2, *, fused: bool = FUSED
) -> int:
    """As :func:`conversation_bytes`, for one pass over so many tokens without a cache."""
    return _slice_bytes(text_config(config), tokens, tokens, element_bytes, fused=fused)


def _slice_bytes(
    text: Mapping[str, Any], new: int, so_far: int, element_bytes: int, *, fused: bool
) -> int:
    """For ``new`` tokens at the end of ``so_far``."""
    layers = layers_of(text)
    computed = set(layers[:-1]) or {Layer.NONE}
    linear = LinearAttention.of(text)
    kept = 0
    if linear is not None:
        kept += layers.count(Layer.NONE) * new * linear.convolved * element_bytes
    if window := window_of(text):
        beyond = min(new, max(so_far - window, 0))
        kept += kv_cost(text, element_bytes).windowed * beyond
    peaks = [
        _linear_bytes(text, linear, new, element_bytes, fused=fused)
        if kind is Layer.NONE and linear is not None
        else _attention_bytes(text, kind, new, so_far, element_bytes, fused=fused)
        for kind in computed
    ]
    return kept + max(peaks)


def _attention_bytes(
    text: Mapping[str, Any],
    kind: Layer,
    new: int,
    so_far: int,
    element_bytes: int,
    *,
    fused: bool,
) -> int:
    heads = integer(text, "num_attention_heads", "n_head", "n_heads") or 0
    hidden = integer(text, "hidden_size", "n_embd", "d_model", "dim") or 0
    keys, cached = so_far, layer_elements(text, kind)
    if kind is Layer.WINDOW:
        keys = min(so_far, new + (window_of(text) or so_far))
    elif kind is Layer.NONE:  # a convolution or a state space: about as much, but no scores
        keys = cached = 0
    copies = _SINK_COPIES if str(text.get("model_type")) in _SINKS else 1
    per_key = 0 if fused else heads * element_bytes * copies + 1
    queries = heads * (integer(text, "head_dim") or (hidden // heads if heads else 0))
    if integer(text, "kv_lora_rank"):
        key = integer(text, "qk_nope_head_dim") or 0
        queries = heads * (key + (integer(text, "qk_rope_head_dim") or 0))
        per_key = heads * element_bytes * (1 if fused else 2) + 1
        # Keys and values of all tokens so far, for the time of the layer.
        cached += heads * (key + (integer(text, "v_head_dim") or 0))
    per_token = 7 * hidden + 6 * queries + cached + 3 * _inner(text, hidden)
    growth = cached * keys if so_far > new else 0
    return new * (per_token * element_bytes + keys * per_key) + growth * element_bytes


def _linear_bytes(
    text: Mapping[str, Any],
    linear: LinearAttention,
    new: int,
    element_bytes: int,
    *,
    fused: bool,
) -> int:
    hidden = integer(text, "hidden_size") or 0
    repeated = linear.state // (integer(text, "linear_value_head_dim") or 1)  # queries, keys
    per_token = 2 * hidden + 4 * linear.keys + 3 * linear.values + 2 * repeated
    state = 0 if fused else linear.state * STATE_BYTES
    return new * (per_token * element_bytes + state)


def _inner(text: Mapping[str, Any], hidden: int) -> int:
    """The numbers of an MLP's inner state for one token."""
    dense = integer(text, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim") or 4 * hidden
    experts = integer(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk")
    if experts is None:
        return dense
    return experts * (integer(text, "moe_intermediate_size") or dense)
