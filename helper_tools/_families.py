"""What is known of model families: the sampling that their makers recommend, and their templates.

It fills what a model's own files leave open; those always come first.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Family:
    """``types`` are beginnings of model_type. ``sampling`` by the names of a config entry;
    ``thinking`` in its place for a model that reasons. ``template`` is the built-in one for a model
    without its own."""

    name: str
    types: tuple[str, ...]
    template: str = "generic"
    sampling: dict[str, float] = field(default_factory=dict)
    thinking: dict[str, float] = field(default_factory=dict)


_GEMMA = {"temp": 1.0, "top_p": 0.95, "top_k": 64, "min_p": 0.0}

FAMILIES = (
    Family(
        "Qwen 3",
        ("qwen3",),
        "qwen",
        {"temp": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
        {"temp": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
    ),
    Family("Qwen 2", ("qwen2", "qwen"), "qwen", {"temp": 0.7, "top_p": 0.8, "top_k": 20}),
    Family("Llama 3 and 4", ("llama4", "mllama", "llama"), "llama3", {"temp": 0.6, "top_p": 0.9}),
    Family("Gemma", ("gemma",), "generic", _GEMMA),
    Family("gpt-oss", ("gpt_oss",), "gpt-oss", {"temp": 1.0, "top_p": 1.0, "top_k": 0}),
    Family("DeepSeek", ("deepseek",), "deepseek", thinking={"temp": 0.6, "top_p": 0.95}),
    Family("Phi", ("phi",), "phi4"),
    Family("Mistral", ("mistral", "ministral", "mixtral", "pixtral"), "generic"),
    Family("GLM", ("glm", "chatglm"), "generic"),
)
UNKNOWN = Family("unknown", ())

# What a template writes, and the format that this makes it; the first that fits.
_TEMPLATES = (
    ("gpt-oss", ("<|channel|>",)),
    ("llama3", ("<|start_header_id|>",)),
    ("llama4", ("<|header_start|>",)),
    ("deepseek", ("<\uff5cAssistant\uff5c>",)),
    ("gemma", ("<start_of_turn>",)),
    ("phi4", ("<|im_sep|>",)),
    ("phi4", ("<|assistant|>", "<|end|>")),
    ("glm", ("[gMASK]",)),
    ("mistral", ("[INST]",)),
    ("granite", ("<|start_of_role|>",)),
    ("qwen", ("<|im_start|>", "<tool_call>")),
    ("chatml", ("<|im_start|>",)),
)


def family_of(model_type: str) -> Family:
    """The family of an architecture; :data:`UNKNOWN` if nothing is known of it."""
    name = model_type.lower()
    return next((f for f in FAMILIES if name.startswith(f.types)), UNKNOWN)


def template_format(source: str) -> str:
    """The format that a chat template writes; ``other`` if it is none of those known here."""
    for name, marks in _TEMPLATES:
        if all(mark in source for mark in marks):
            return name
    return "other"
