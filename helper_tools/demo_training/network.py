"""The network in PyTorch (only for training): Qwen3's architecture with Qwen3's weight names."""

# torch is no dependency of the project, so mypy sees its classes as Any.
# mypy: disable-error-code="misc, untyped-decorator, no-any-return"
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .tokenizer import CONTEXT


@dataclass(frozen=True)
class Sizes:
    """The sizes of a language model."""

    vocabulary: int
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 3
    head_size: int = 32
    inner: int = 512
    rope_base: float = 10000.0
    epsilon: float = 1e-6


class Shape(Sizes):
    """The sizes of the network."""

    def config(self, eos: int, pad: int) -> dict[str, Any]:
        """config.json as transformers and mlx-lm read it."""
        return {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "rms_norm_eps": self.epsilon,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": CONTEXT,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "hidden_act": "silu",
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the halves of each head."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Causal attention with normalised queries and keys, and shared key/value heads."""

    def __init__(self, shape: Sizes) -> None:
        super().__init__()
        self.shape = shape
        size, q, kv = (
            shape.head_size,
            shape.heads * shape.head_size,
            shape.kv_heads * shape.head_size,
        )
        self.q_proj = nn.Linear(shape.hidden, q, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(q, shape.hidden, bias=False)
        self.q_norm = Norm(size, shape.epsilon)
        self.k_norm = Norm(size, shape.epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        size = self.shape.head_size
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, size)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, size)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, size).transpose(1, 2)
        # Rows are padded at their end only, so the causal mask is all the mask there is.
        mixed = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, shape: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = Norm(shape.hidden, shape.epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, layers, last norm; a module of its own so that weight names come out right."""

    def __init__(self, shape: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.norm = Norm(shape.hidden, shape.epsilon)


class Network(nn.Module):
    """The language model; input and output embeddings are one matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, 0.5 / math.sqrt(parameter.shape[1]))
        nn.init.normal_(self.model.embed_tokens.weight, 0.0, 0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data /= math.sqrt(2 * shape.layers)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [batch, length, hidden] for token ids [batch, length]."""
        size = self.shape.head_size
        frequencies = self.shape.rope_base ** -(torch.arange(0, size, 2).float() / size)
        angles = torch.arange(ids.shape[1]).float()[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        x: Tensor = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        return hidden @ self.model.embed_tokens.weight.T
