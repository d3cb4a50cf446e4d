"""The model that is measured: a random llama in float32, with a tokenizer and a chat template.

Its words are made up, and each is one token, so a prompt has about as many tokens as words. The
rows of the output layer are zero for the end of sequence and for tokens that are not whole words:
their logit is always 0, which is never the largest of thousands, so every answer goes on to its
full length and every token is text that a server sends at once.

``python -m benchmarks.model FOLDER full`` writes the model of decode, aggregate and ttft to FOLDER,
``long`` that of prefix and fairness: for a server that is started by hand (peers.md).
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB_SIZE = 4096
CONTEXT_LENGTH = 16_384
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Thinking of earlier turns is left out, as Qwen3 and others do it.
AGENT_TEMPLATE = (
    "{% set turn = namespace(at=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set turn.at = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content }}\n"
    "</tool_response>{% else %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content and loop.index0 > turn.at %}<think>\n"
    "{{ message.reasoning_content }}\n</think>\n\n{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n"
    "</tool_call>{% endfor %}{% if loop.first %}{% for tool in tools or [] %}\n"
    "{{ tool | tojson }}{% endfor %}{% endif %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_WORDS = [f"{first}{second}" for first in _SYLLABLES[::2] for second in _SYLLABLES]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a llama. ``heads`` have 64 dimensions each; half as many heads of keys."""

    hidden: int
    layers: int
    feed_forward: int

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def parameters(self) -> int:
        attention = 3 * self.hidden * self.hidden
        norms = 2 * self.hidden
        layer = attention + 3 * self.hidden * self.feed_forward + norms
        return self.layers * layer + 2 * VOCAB_SIZE * self.hidden + self.hidden

    def __str__(self) -> str:
        return (
            f"random llama, float32, {self.parameters / 1e6:.0f} million parameters "
            f"({self.layers} layers, hidden size {self.hidden}, vocabulary {VOCAB_SIZE})"
        )


FULL = Shape(hidden=768, layers=4, feed_forward=2048)  # a decoding step takes 30 to 60 ms
SMALL = Shape(hidden=256, layers=4, feed_forward=704)
SWAPPED = Shape(hidden=768, layers=3, feed_forward=2048)  # 103 MB
BIG = Shape(hidden=2048, layers=5, feed_forward=5632)  # 1.01 GB
LONG = Shape(hidden=384, layers=2, feed_forward=1536)  # 8,000 tokens take seconds, not minutes
TINY = Shape(hidden=128, layers=1, feed_forward=256)  # to count what it does, not to time it


def make_model(
    folder: Path,
    shape: Shape,
    seed: int = 0,
    *,
    template: str = _CHAT_TEMPLATE,
    recites: bool = False,
) -> Path:
    """Write the model in Hugging Face's layout, four bytes a parameter; returns ``folder``. One
    that ``recites`` says the words of :func:`recital` again and again, whatever it is asked."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    ids = _write_tokenizer(folder, template)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": False,
        "eos_token_id": _SPECIAL.index("<|im_end|>"),
        "torch_dtype": "float32",
    }
    _write_json(folder / "config.json", config)
    weights = _weights(shape, _silent(ids), seed)
    if recites:
        _recite(weights, [ids[text] for text in ("\u010a", *_spoken(recital()))])
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder


def make_prompt(name: str, words: int) -> str:
    """Random words, others for every ``name`` from the first ones on, so that no server's prefix
    cache has seen them; always the same for the same name."""
    chosen = random.Random(name)
    return " ".join(chosen.choice(_WORDS) for _ in range(words))


def recital(words: int = 64) -> list[str]:
    """What a model that recites says."""
    return random.Random("recital").sample(_WORDS, words)


def _recite(weights: dict[str, NDArray[np.float32]], ids: list[int]) -> None:
    """Every one of ``ids`` but the first is said after the one before it, and the second one after
    the last. The layers are computed, and add nothing."""
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][:] = 0.0
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    head[ids[1:]] = embedding[ids[:-1]]
    head[ids[1]] += embedding[ids[-1]]


def _weights(shape: Shape, silent: list[int], seed: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)

    def normal(rows: int, columns: int, gain: float) -> NDArray[np.float32]:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        values *= gain / columns**0.5
        return values

    hidden, narrow = shape.hidden, shape.hidden // 2
    ones = np.ones(hidden, dtype=np.float32)
    # Gains above 1: a block says more than the last token alone, so answers do not go in circles.
    weights = {
        "model.embed_tokens.weight": normal(VOCAB_SIZE, hidden, hidden**0.5),
        "model.norm.weight": ones,
        "lm_head.weight": normal(VOCAB_SIZE, hidden, 3.0),
    }
    weights["lm_head.weight"][silent] = 0.0
    for number in range(shape.layers):
        layer = f"model.layers.{number}."
        weights |= {
            f"{layer}input_layernorm.weight": ones.copy(),
            f"{layer}post_attention_layernorm.weight": ones.copy(),
            f"{layer}self_attn.q_proj.weight": normal(hidden, hidden, 1.5),
            f"{layer}self_attn.k_proj.weight": normal(narrow, hidden, 1.5),
            f"{layer}self_attn.v_proj.weight": normal(narrow, hidden, 1.5),
            f"{layer}self_attn.o_proj.weight": normal(hidden, hidden, 3.0),
            f"{layer}mlp.gate_proj.weight": normal(shape.feed_forward, hidden, 1.5),
            f"{layer}mlp.up_proj.weight": normal(shape.feed_forward, hidden, 1.5),
            f"{layer}mlp.down_proj.weight": normal(hidden, shape.feed_forward, 3.0),
        }
    return weights


def _write_tokenizer(folder: Path, template: str) -> dict[str, int]:
    """Write a byte-level BPE tokenizer; returns its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_WORDS)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    ids: dict[str, int] = tokenizer.get_vocab()
    return ids


def _silent(ids: dict[str, int]) -> list[int]:
    """What the model must not say: all that is not a whole word."""
    spoken = {ids[text] for text in _spoken(_WORDS) if text in ids}
    if len(spoken) < VOCAB_SIZE // 4:
        raise RuntimeError(f"the tokenizer knows {len(spoken)} words only")
    return sorted(set(range(VOCAB_SIZE)) - spoken)


def _spoken(words: list[str]) -> list[str]:
    """As the tokenizer writes them: with the space before them."""
    return ["\u0120" + word for word in words]


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1))


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "full":
        make_model(folder, FULL)
    elif kind == "long":
        make_model(folder, LONG, template=AGENT_TEMPLATE)
    else:
        sys.exit(f"{kind!r} is none of full, long")


if __name__ == "__main__":
    main()
