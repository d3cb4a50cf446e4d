"""Small random models in real architectures, made in about a second each, and ways to break them.

The weights are random but scaled so that a greedy answer wanders: it depends on the whole prompt,
hardly ever repeats itself, and its best token wins by a clear margin, so that batched and single
decoding can be compared token by token. The first hidden dimension carries a constant that no
layer changes; through it ``lm_head`` holds a bias of about -30 for every special token (also
end-of-sequence and the think and tool markers) and for every token that is not whole UTF-8 text.
So an answer ends at its length, unless a logit_bias of +100 asks for one of those tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

# Without it MLX's CPU backend runs g++ for every fused function: seconds instead of milliseconds.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

ARCHITECTURES: tuple[str, ...] = (
    "llama",
    "qwen3",
    "gemma3_text",
    "qwen3_next",
    "sharded",
    "quantized",
)

VOCAB_SIZE = 512  # of the model; the tokenizer has a few ids less, as padded real models do
SLIDING_WINDOW = 32  # of gemma3_text: a test that generates 40 tokens crosses it
CONTEXT_LENGTH = 2048

HIDDEN = 64  # the size of the hidden state
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_EOS_ID = _SPECIAL.index("<|im_end|>")
_LOGIT_STD = 3.0  # few likely tokens, but more than one: seeds matter when sampling
_SUPPRESSION = 60.0
_GAIN = 1.5

_CORPUS = """
The router answers every question that it can, and says so when it cannot.
What is the capital of Norway? The capital of Norway is Oslo. And of France? It is Paris.
Count from one to nine: one, two, three, four, five, six, seven, eight, nine.
Write a short story about a small boat, a green hill and the old man who lived near the sea.
A model is loaded when it is first asked for; the least recently used one makes room for it.
{"name": "get_weather", "arguments": {"city": "Lyon", "unit": "celsius"}} is a call of a tool.
user system assistant tool function result value number string object true false null 0123456789
The weather in Madrid is sunny with 21 degrees, in Bergen it rains, and in Oslo it is cloudy.
Crème brûlée, naïve café, señor, Straße, größer, ça va, 日本 東京 你好 Привет 🙂 🚀 — “quotes”.
def add(first, second): return first + second  # and print the sum of both numbers
""".strip().splitlines()

CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools>\nCall a tool with a JSON object in <tool_call></tool_call>.<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content and loop.last %}
            {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
        {%- endif %}
        {{- message.content or '' }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content }}
        {{- '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".strip()


def make_model(
    kind: str,
    folder: Path,
    *,
    layout: Literal["plain", "hf_cache"] = "plain",
    repo_id: str = "tiny/qwen3",
    dtype: str = "float32",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Make a model of one of :data:`ARCHITECTURES` and return the folder to load it from.

    ``plain``: ``folder`` is the model's folder. ``hf_cache``: ``folder`` is a Hugging Face cache,
    and the model goes to its snapshot of ``repo_id``, as links to blobs. Other ``seed``, other
    weights; the tokenizer is always the same. ``changes`` are to what config.json says.
    """
    if layout == "hf_cache":
        plain = folder / ".making"
        make_model(kind, plain, dtype=dtype, seed=seed, changes=changes)
        return _into_hf_cache(plain, folder, repo_id)
    folder.mkdir(parents=True, exist_ok=True)
    suppressed = write_tokenizer(folder, template_file=kind in ("qwen3", "gemma3_text", "sharded"))
    config = _config(kind) | dict(changes or {})
    weights, config = _weights(config, suppressed, dtype, seed, quantized=kind == "quantized")
    write_weights(folder, weights, shards=3 if kind == "sharded" else 1)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": [_EOS_ID, 0], "temperature": 0.6, "top_p": 0.95, "top_k": 20},
    )
    return folder


def text_config() -> dict[str, Any]:
    """What config.json says of the size of a language model."""
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": False,
    }


def _config(kind: str) -> dict[str, Any]:
    common = text_config() | {"eos_token_id": _EOS_ID}
    extra: dict[str, dict[str, Any]] = {
        "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "gemma3_text": {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "sliding_window": SLIDING_WINDOW,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 16,
        },
        "qwen3_next": {
            "model_type": "qwen3_next",
            "architectures": ["Qwen3NextForCausalLM"],
            "full_attention_interval": 2,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            # The gated delta kernel takes multiples of 32.
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "partial_rotary_factor": 0.5,
        },
    }
    alias = {"sharded": "qwen3", "quantized": "llama"}
    return common | extra[alias.get(kind, kind)]


def _weights(
    config: dict[str, Any], suppressed: list[int], dtype: str, seed: int, *, quantized: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random weights for ``config``, and the config, with its quantisation if there is one."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import _get_classes, quantize_model

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    gemma = config["model_type"] == "gemma3_text"
    # A key of its own: the caller's random state stays as it is.
    keys = iter(mx.random.split(mx.random.key(seed), 4096))
    tree = [
        (name, random_weight(name, value, next(keys), suppressed, gemma=gemma))
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(tree))
    model.set_dtype(getattr(mx, dtype))
    if quantized:
        model, config = quantize_model(model, config, group_size=32, bits=4)
    return dict(tree_flatten(model.parameters())), config


def random_weight(name: str, value: Any, key: Any, suppressed: list[int], *, gemma: bool) -> Any:
    """A random value for one parameter; dimension 0 of the hidden state is kept constant."""
    import mlx.core as mx

    part = name.rsplit(".", 2)[-2]  # model.layers.0.self_attn.q_proj.weight -> q_proj
    if value.ndim < 2:
        scale = mx.ones_like(value)
        if part in ("q_norm", "k_norm"):
            scale = scale * 2  # sharp attention: single words of the past decide
        if not gemma:
            return scale * value
        if part in ("post_attention_layernorm", "post_feedforward_layernorm"):
            scale[0] = 0.0  # Gemma scales what a block adds: nothing for the constant
        return scale - 1.0  # Gemma's norms multiply by 1 + weight
    weight = mx.random.normal(value.shape, key=key)
    if part == "embed_tokens":
        weight[:, 0] = 2.0
        return weight / HIDDEN**0.5 if gemma else weight  # Gemma multiplies by this root
    if part == "lm_head":
        weight = weight * (_LOGIT_STD / HIDDEN**0.5)
        weight[:, 0] = 0.0
        weight[mx.array(suppressed), 0] = -_SUPPRESSION
        return weight
    if part == "conv1d":
        return weight
    weight = weight * (_GAIN / value.shape[-1] ** 0.5)
    if part in ("o_proj", "out_proj", "down_proj"):
        weight = weight * 2  # a block says more than the last token alone: the past counts
        weight[..., 0, :] = 0.0  # and it never writes to the constant
    return weight


def write_weights(folder: Path, weights: dict[str, Any], shards: int = 1) -> None:
    """Write ``weights`` to safetensors files, in MLX's layout."""
    import mlx.core as mx

    names = sorted(weights)
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    )
    for number, file in enumerate(files):
        part = {name: weights[name] for name in names[number::shards]}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
    if shards > 1:
        index = {
            "metadata": {"total_size": sum(value.nbytes for value in weights.values())},
            "weight_map": {name: files[i % shards] for i, name in enumerate(names)},
        }
        write_json(folder / "model.safetensors.index.json", index)


def write_tokenizer(
    folder: Path,
    *,
    template_file: bool = False,
    chat_template: str = CHAT_TEMPLATE,
    markers: tuple[str, ...] = (),
    vocab_size: int = VOCAB_SIZE,
    settings: Mapping[str, Any] | None = None,
) -> list[int]:
    """Write the tokenizer; returns the ids that a model must not say by itself.

    ``markers`` are special tokens that a family has besides, ``vocab_size`` is the model's, and
    ``settings`` are changes to tokenizer_config.json.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _ADDED])
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in markers])
    tokenizer.save(str(folder / "tokenizer.json"))
    stated: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "model_max_length": CONTEXT_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    if template_file:
        (folder / "chat_template.jinja").write_text(chat_template)
    else:
        stated["chat_template"] = chat_template
    write_json(folder / "tokenizer_config.json", stated | dict(settings or {}))
    words = tokenizer.get_vocab_size()
    ids = tokenizer.get_vocab()
    reserved = {ids[text] for text in (*_SPECIAL, *_ADDED, *markers)}
    unreadable = {i for i in range(words) if not _readable(tokenizer.decode([i]))}
    return sorted(reserved | unreadable | set(range(words, vocab_size)))


def _readable(text: str) -> bool:
    """Whether a token is whole characters: no half of one, no control character."""
    return text == "\n" or (text != "" and text.isprintable() and "\ufffd" not in text)


def _into_hf_cache(plain: Path, cache: Path, repo_id: str) -> Path:
    repo = cache / ("models--" + repo_id.replace("/", "--"))
    revision = hashlib.sha1(repo_id.encode(), usedforsecurity=False).hexdigest()
    snapshot = repo / "snapshots" / revision
    for directory in (repo / "blobs", repo / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    for file in sorted(plain.iterdir()):
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, repo / "blobs" / blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob)
    (repo / "refs" / "main").write_text(revision)
    plain.rmdir()
    return snapshot


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1))


# --- breaking a copy ------------------------------------------------------------------------


def copy_model(model: Path, folder: Path) -> Path:
    """A copy with files of its own, to be broken; links of a cache are followed."""
    return Path(shutil.copytree(model, folder))


def truncate_shard(folder: Path) -> Path:
    """Cut the last weights file in half; returns the file."""
    return _rewrite(folder, lambda content: content[: len(content) // 2])


def empty_shard(folder: Path) -> Path:
    """Leave nothing of the last weights file; returns the file."""
    return _rewrite(folder, lambda _: b"")


def html_shard(folder: Path) -> Path:
    """Put a login page where the weights were, as a failed download does; returns the file."""
    return _rewrite(
        folder, lambda _: b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n"
    )


def huge_header_shard(folder: Path) -> Path:
    """Let the last weights file announce a header of 2**63 bytes; returns the file."""
    return _rewrite(folder, lambda content: (2**63).to_bytes(8, "little") + content[8:])


def drop_shard(folder: Path) -> Path:
    """Remove the last weights file; returns where it was."""
    file = _last_shard(folder)
    file.unlink()
    return file


def remove_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def add_remote_code(folder: Path, canary: Path, key: str = "auto_map") -> None:
    """Ask for the model's own code by ``auto_map`` or ``model_file``; run, it makes ``canary``."""
    code = f"import pathlib\n\npathlib.Path({str(canary)!r}).write_text('executed')\n"
    (folder / "modeling_own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config[key] = (
        "modeling_own.py"
        if key == "model_file"
        else {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    )
    write_json(folder / "config.json", config)


def _last_shard(folder: Path) -> Path:
    return sorted(folder.glob("model*.safetensors"))[-1]


def _rewrite(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    file = _last_shard(folder)
    file.write_bytes(change(file.read_bytes()))
    return file
