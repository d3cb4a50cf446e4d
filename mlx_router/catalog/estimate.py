"""What a conversation costs in memory, and how long it may be, from a model's config alone.

The formulas follow what mlx-lm keeps for each token and attention layer:

=====================  ==========================================================
grouped-query          KV heads * (key dimension + value dimension)
latent (MLA)           kv_lora_rank + qk_rope_head_dim, whatever the heads; some
                       architectures keep keys and values in full
sliding or chunked     as above, but for the last ``window`` tokens only
linear (Qwen3-Next)    nothing per token; a state of value heads * key dimension * value
                       dimension in float32, and the last inputs of a convolution
state space,           nothing per token (and a state that is not counted, tens of MB at most)
convolution
layers that share      nothing: they read another layer's cache
=====================  ==========================================================

times the size of one element. A cache that grows does so by 256 tokens at a time. Configs are read
as untrusted: what makes no sense counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

DEFAULT_CONTEXT = 4096
MAX_LAYERS = 4096
STATE_BYTES = 4  # a number of a recurrent state: float32, whatever the weights are
GROWTH_TOKENS = 256  # mlx-lm enlarges a KV cache by so many at a time
_MAX_CONTEXT = 1 << 31

# What transformers leaves out of a config.json since it equals the default of its class.
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "num_hidden_layers": 26,
    "sliding_window_pattern": 6,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
}
_GEMMA4 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_hidden_layers": 35,
    "num_kv_shared_layers": 20,
    "sliding_window_pattern": 5,
    "sliding_window": 512,
    "max_position_embeddings": 131072,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "cohere2": {"head_dim": 128, "sliding_window": 4096, "sliding_window_pattern": 4},
    "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    # A window in these configs is one that mlx-lm does not use.
    "gemma2": {"sliding_window": None, "layer_types": None},
}
_EXPANDED_LATENT = frozenset({"deepseek_v2", "minicpm3", "youtu_llm"})
_STATE_SPACE = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv7"})
_ROBERTA = frozenset({"camembert", "roberta", "xlm-roberta", "xlm_roberta"})
_NESTED = ("text_config", "llm_config", "language_config")


class Layer(Enum):
    FULL = "keeps every token"
    WINDOW = "keeps the last tokens"
    NONE = "keeps no tokens"


_LAYERS = {
    "full_attention": Layer.FULL,
    "attention": Layer.FULL,
    "*": Layer.FULL,
    "sliding_attention": Layer.WINDOW,
    "chunked_attention": Layer.WINDOW,
}


@dataclass(frozen=True, slots=True)
class KVCost:
    """The KV cache of one sequence. ``growing`` and ``windowed`` are bytes per token; the windowed
    part stops growing at ``window`` tokens. ``constant`` are the bytes of recurrent states."""

    growing: int = 0
    windowed: int = 0
    window: int = 0
    constant: int = 0

    @property
    def bytes_per_token(self) -> int:
        """The cost of a token while the sequence is shorter than the window."""
        return self.growing + self.windowed

    def total(self, tokens: int) -> int:
        """Bytes for a sequence of so many tokens, room to grow included."""
        room = -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS
        return self.growing * room + self.windowed * min(tokens, self.window) + self.constant


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """A linear layer of Qwen3-Next or Qwen3.5: how many numbers its keys and values have per token,
    its recurrent state, and the past inputs that its convolution looks at."""

    keys: int
    values: int
    state: int
    kernel: int

    @property
    def convolved(self) -> int:
        """Numbers per token that go through the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    def state_bytes(self, element_bytes: int) -> int:
        """What the cache of a layer holds, however long the sequence is."""
        return self.state * STATE_BYTES + (self.kernel - 1) * self.convolved * element_bytes

    @classmethod
    def of(cls, text: Mapping[str, Any]) -> LinearAttention | None:
        """None if the config does not describe such layers."""
        key, value = integer(text, "linear_key_head_dim"), integer(text, "linear_value_head_dim")
        keys, values = (
            integer(text, "linear_num_key_heads"),
            integer(text, "linear_num_value_heads"),
        )
        if not (key and value and keys and values):
            return None
        kernel = integer(text, "linear_conv_kernel_dim") or 1
        return cls(key * keys, value * values, values * key * value, kernel)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part that describes the language model, with what its class leaves out filled in."""
    inner: Mapping[str, Any] = config
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        inner = thinker
    for name in _NESTED:
        if isinstance(nested := inner.get(name), dict):
            inner = nested
            break
    merged = {**config, **inner}
    defaults = _DEFAULTS.get(str(merged.get("model_type")), {})
    fixed = {name: value for name, value in defaults.items() if value is None}
    return {**defaults, **merged, **fixed}


def integer(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a whole number from 1 to 2**40; None if none does."""
    for name in names:
        value = config.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 40:
            return value
    return None


def kv_cost(config: Mapping[str, Any], element_bytes: int = 2) -> KVCost:
    """The KV cache's cost; all zero where the config does not tell."""
    text = text_config(config)
    layers = layers_of(text)
    full = layers.count(Layer.FULL) * layer_elements(text, Layer.FULL)
    if isinstance(per_layer := text.get("num_kv_heads"), list):  # OpenELM: a number for each layer
        heads = sum(head for head in per_layer[:MAX_LAYERS] if isinstance(head, int))
        full = 2 * heads * (integer(text, "head_dim") or 0)
    windowed = layers.count(Layer.WINDOW) * layer_elements(text, Layer.WINDOW)
    linear = LinearAttention.of(text)
    states = layers.count(Layer.NONE) * linear.state_bytes(element_bytes) if linear else 0
    return KVCost(full * element_bytes, windowed * element_bytes, window_of(text) or 0, states)


def context_length(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int:
    """The longest sequence, in tokens, that the model was made for."""
    text = text_config(config)
    length = integer(
        text,
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "seq_length",
        "max_sequence_length",
        "max_seq_len",
        "model_max_length",
    )
    if length is not None and str(text.get("model_type")) in _ROBERTA:
        # Positions begin after the padding's id: 512 tokens for a table of 514.
        length = max(length - (integer(text, "pad_token_id") or 1) - 1, 1)
    if length is None:
        # Many tokenizers say 10**30 here, for "no limit".
        limit = integer(tokenizer_config, "model_max_length")
        length = limit if limit is not None and limit < 1_000_000_000 else None
    stretched = _yarn_context(text)
    if stretched is not None:
        length = max(length or 0, stretched)
    return min(length or DEFAULT_CONTEXT, _MAX_CONTEXT)


def _yarn_context(text: Mapping[str, Any]) -> int | None:
    """YaRN stretches the original context by its factor. Other kinds of scaling either state the
    stretched length themselves or have a factor that means something else (llama3, longrope)."""
    for name in ("rope_scaling", "rope_parameters"):
        scaling = text.get(name)
        if not isinstance(scaling, dict):
            continue
        original = integer(scaling, "original_max_position_embeddings")
        factor = scaling.get("factor")
        if (
            scaling.get("rope_type", scaling.get("type")) == "yarn"
            and original is not None
            and isinstance(factor, int | float)
            and 1 <= factor <= 1024
        ):
            return int(original * factor)
    return None


def layers_of(text: Mapping[str, Any]) -> list[Layer]:
    """What each layer keeps, without those that share another one's cache."""
    count = min(
        integer(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers") or 0, MAX_LAYERS
    )
    if str(text.get("model_type")) in _STATE_SPACE:
        return []
    layers = _listed_layers(text, count) or _patterned_layers(text, count) or [Layer.FULL] * count
    if window_of(text) is None:
        layers = [Layer.FULL if layer is Layer.WINDOW else layer for layer in layers]
    shared = integer(text, "num_kv_shared_layers") or 0
    return layers[: max(len(layers) - shared, 0)]


def _listed_layers(text: Mapping[str, Any], count: int) -> list[Layer]:
    """Layers that the config names one by one; empty if it does not."""
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        types = text.get(name)
        if isinstance(types, list | str) and types:
            return [_LAYERS.get(str(kind), Layer.NONE) for kind in types[:MAX_LAYERS]]
    if isinstance(pattern := text.get("hybrid_layer_pattern"), list):  # MiMo: 1 is a window
        return [Layer.WINDOW if kind == 1 else Layer.FULL for kind in pattern[:MAX_LAYERS]]
    linear = text.get("linear_attn_config")  # Kimi Linear, layers counted from 1
    if isinstance(linear, dict) and isinstance(full := linear.get("full_attn_layers"), list):
        numbers = {number - 1 for number in full if isinstance(number, int)}
        return [Layer.FULL if i in numbers else Layer.NONE for i in range(count)]
    if isinstance(full := text.get("full_attn_idxs"), list):  # LFM2, counted from 0
        numbers = {number for number in full if isinstance(number, int)}
        return [Layer.FULL if i in numbers else Layer.NONE for i in range(count)]
    return []


def _patterned_layers(text: Mapping[str, Any], count: int) -> list[Layer]:
    """Layers that repeat; empty if there is no pattern."""
    if every := integer(text, "full_attention_interval"):  # Qwen3-Next, Qwen3.5
        return [Layer.NONE if (i + 1) % every else Layer.FULL for i in range(count)]
    if every := integer(text, "attn_layer_period"):  # Jamba
        offset = text.get("attn_layer_offset")
        return [Layer.FULL if i % every == offset else Layer.NONE for i in range(count)]
    pattern = text.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:  # EXAONE 4: "LLLG", the last layer always global
        layers = [pattern[i % len(pattern)] for i in range(count)]
        return [Layer.WINDOW if kind == "L" else Layer.FULL for kind in layers[:-1]] + [Layer.FULL]
    if every := integer(text, "sliding_window_pattern"):  # Gemma 3, Cohere 2
        return [Layer.WINDOW if (i + 1) % every else Layer.FULL for i in range(count)]
    if text.get("model_type") == "gpt_oss":
        return [Layer.FULL if i % 2 else Layer.WINDOW for i in range(count)]
    return []


def window_of(text: Mapping[str, Any]) -> int | None:
    return integer(text, "sliding_window", "sliding_window_size", "attention_chunk_size")


def layer_elements(text: Mapping[str, Any], layer: Layer) -> int:
    """Numbers that one attention layer keeps for each token."""
    queries = integer(text, "num_attention_heads", "n_head", "n_heads") or 0
    hidden = integer(text, "hidden_size", "n_embd", "d_model", "dim") or 0
    head = hidden // queries if queries else 0
    if latent := integer(text, "kv_lora_rank"):
        rope = integer(text, "qk_rope_head_dim") or 0
        if str(text.get("model_type")) in _EXPANDED_LATENT:
            key = rope + (integer(text, "qk_nope_head_dim") or 0)
            return queries * (key + (integer(text, "v_head_dim") or head))
        # DeepSeek V3.2 has a cache of index keys as well, and of as many zeros for values.
        return latent + rope + 2 * (integer(text, "index_head_dim") or 0)
    # Some models have other heads in windowed layers (MiMo) or in full ones (Gemma 4).
    own = "swa_" if layer is Layer.WINDOW else "global_"
    heads = integer(
        text,
        "swa_num_key_value_heads" if layer is Layer.WINDOW else "num_global_key_value_heads",
        "num_key_value_heads",
        "n_head_kv",
        "multi_query_group_num",
    )
    key = integer(text, own + "head_dim", "head_dim", "hidden_size_per_head") or head
    return (heads or queries) * (key + (integer(text, own + "v_head_dim", "v_head_dim") or key))
