"""The network in PyTorch (only for training): Qwen3-VL's architecture, mlx-vlm's weight names."""

# torch is no dependency of the project, so mypy sees its classes as Any.
# mypy: disable-error-code="misc, untyped-decorator, no-any-return"
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .network import Body, Sizes, rotate
from .vision_scenes import PATCH

MERGED = 4  # patches that become one token


@dataclass(frozen=True)
class Shape(Sizes):
    """The sizes of the network."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    inner: int = 320
    vision_hidden: int = 96
    vision_layers: int = 4
    vision_heads: int = 3
    vision_inner: int = 192

    def config(self, ids: dict[str, int], context: int) -> dict[str, Any]:
        """config.json as transformers and mlx-vlm read it; ``ids`` of the control tokens."""
        text = {
            "model_type": "qwen3_vl_text",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "rms_norm_eps": self.epsilon,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": context,
            "rope_theta": self.rope_base,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
            },
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "dtype": "float16",
        }
        vision = {
            "model_type": "qwen3_vl",
            "depth": self.vision_layers,
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_inner,
            "out_hidden_size": self.hidden,
            "num_heads": self.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "num_position_embeddings": 4,
            "deepstack_visual_indexes": [],
            "hidden_act": "gelu_pytorch_tanh",
        }
        return {
            "model_type": "qwen3_vl",
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "text_config": text,
            "vision_config": vision,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_token_id": ids["<|vision_pad|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
        }


class VisionAttention(nn.Module):
    """Attention among all patches of a picture."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.vision_heads
        self.qkv = nn.Linear(shape.vision_hidden, 3 * shape.vision_hidden)
        self.proj = nn.Linear(shape.vision_hidden, shape.vision_hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class VisionFeedForward(nn.Module):
    """Two matrices with a GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(shape.vision_hidden, shape.vision_inner)
        self.linear_fc2 = nn.Linear(shape.vision_inner, shape.vision_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(functional.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.vision_hidden, eps=1e-6)
        self.norm2 = nn.LayerNorm(shape.vision_hidden, eps=1e-6)
        self.attn = VisionAttention(shape)
        self.mlp = VisionFeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Four patches to one token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide = MERGED * shape.vision_hidden
        self.norm = nn.LayerNorm(shape.vision_hidden, eps=1e-6)
        self.linear_fc1 = nn.Linear(wide, wide)
        self.linear_fc2 = nn.Linear(wide, shape.hidden)

    def forward(self, normed: Tensor) -> Tensor:
        batch, length, width = normed.shape
        x = normed.reshape(batch, length // MERGED, width * MERGED)
        return self.linear_fc2(functional.gelu(self.linear_fc1(x)))


class VisionTower(nn.Module):
    """Patches to tokens. There is no absolute position, so all sizes of pictures are alike."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.size = shape.vision_hidden // shape.vision_heads
        self.patch_embed = nn.Linear(3 * PATCH * PATCH, shape.vision_hidden)
        self.blocks = nn.ModuleList([VisionBlock(shape) for _ in range(shape.vision_layers)])
        self.merger = Merger(shape)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens [batch, cells, hidden] and normed patches [batch, patches, vision hidden]."""
        rows, columns = grid
        place = torch.arange(rows * columns).view(rows // 2, columns // 2, 2, 2)
        block = torch.arange(rows // 2)[:, None, None, None] * 2 + torch.arange(2)[:, None]
        row = block.expand_as(place).reshape(-1)
        across = torch.arange(columns // 2)[:, None, None] * 2 + torch.arange(2)
        column = across.expand_as(place).reshape(-1)
        frequencies = 10000.0 ** -(torch.arange(0, self.size // 2, 2).float() / (self.size // 2))
        angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], -1)
        cos, sin = angles.cos(), angles.sin()
        x = self.patch_embed(patches)
        for block_ in self.blocks:
            x = block_(x, cos, sin)
        normed = self.merger.norm(x)
        return self.merger(normed), normed


class Network(nn.Module):
    """Vision tower and language model, and heads that are used in training alone."""

    def __init__(self, shape: Shape, heads: dict[str, int]) -> None:
        super().__init__()
        self.shape = shape
        self.vision_tower = VisionTower(shape)
        self.language_model = Body(shape)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(shape.vision_hidden, classes) for name, classes in heads.items()}
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, 0.5 / math.sqrt(parameter.shape[1]))
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data /= math.sqrt(2 * shape.layers)
            if ".blocks." in name and name.endswith(("proj.weight", "linear_fc2.weight")):
                parameter.data /= math.sqrt(2 * shape.vision_layers)
        # Words and the tokens of pictures start at one size, about that of what layers add.
        nn.init.normal_(self.language_model.embed_tokens.weight, 0.0, 0.1)
        axis = torch.zeros(shape.head_size // 2, dtype=torch.long)
        axis[1:15:3], axis[2:15:3] = 1, 2
        self.register_buffer("axis", axis, persistent=False)

    def forward(
        self, ids: Tensor, positions: Tensor, pictures: list[Tensor], grids: list[tuple[int, int]],
        image_token: int,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Hidden states [batch, length, hidden] and the normed patches of each picture."""
        x = self.language_model.embed_tokens(ids)
        seen = [self.vision_tower(p, g) for p, g in zip(pictures, grids, strict=True)]
        if seen:
            tokens = torch.cat([tokens for tokens, _ in seen], 1).reshape(-1, x.shape[-1])
            where = (ids == image_token)[..., None].expand_as(x)
            x = x.masked_scatter(where, tokens)
        size = self.shape.head_size
        frequencies = self.shape.rope_base ** -(torch.arange(0, size, 2).float() / size)
        angles = positions.float()[self.axis].permute(1, 2, 0) * frequencies
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        for layer in self.language_model.layers:
            x = layer(x, cos, sin)
        return self.language_model.norm(x), [normed for _, normed in seen]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        return hidden @ self.language_model.embed_tokens.weight.T

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Copies the weights of an exported model; the heads of training start anew."""
        given = {name: value.float() for name, value in tensors.items()}
        kernel = given["vision_tower.patch_embed.proj.weight"].permute(0, 4, 1, 2, 3).sum(2)
        given["vision_tower.patch_embed.weight"] = kernel.flatten(1)
        given["vision_tower.patch_embed.bias"] = given["vision_tower.patch_embed.proj.bias"]
        for name, parameter in self.named_parameters():
            if not name.startswith("heads."):
                exported = name.replace("language_model.", "language_model.model.", 1)
                parameter.data.copy_(given[exported])

    def exported(self) -> dict[str, Tensor]:
        """The weights under mlx-vlm's names and in its layouts."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            if name.startswith("heads."):
                continue
            if name == "vision_tower.patch_embed.weight":
                # A still picture is two equal frames to this family: half of the weight each.
                kernel = value.view(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1) / 2
                tensors["vision_tower.patch_embed.proj.weight"] = kernel.permute(0, 2, 3, 4, 1)
            elif name == "vision_tower.patch_embed.bias":
                tensors["vision_tower.patch_embed.proj.bias"] = value
            else:
                tensors[name.replace("language_model.", "language_model.model.", 1)] = value
        tensors["vision_tower.pos_embed.weight"] = torch.zeros(4, self.shape.vision_hidden)
        return tensors
