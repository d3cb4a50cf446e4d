"""A few models that are worth a try. Names and sizes are those of when this was written: the
Hugging Face Hub has the last word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suggestion:
    """``gigabytes``: about what the download has. ``memory_gb``: the memory of a machine on which
    it runs beside other programs."""

    id: str
    gigabytes: float
    memory_gb: int
    good_for: str


SUGGESTIONS = (
    Suggestion("mlx-community/Qwen3-0.6B-4bit", 0.4, 8, "a first try; quick, knows little"),
    Suggestion("mlx-community/Llama-3.2-1B-Instruct-4bit", 0.7, 8, "short chats"),
    Suggestion("mlx-community/Llama-3.2-3B-Instruct-4bit", 1.8, 8, "chats, simple tools"),
    Suggestion("mlx-community/Qwen3-4B-Instruct-2507-4bit", 2.3, 8, "chats and tools"),
    Suggestion("mlx-community/gemma-3-4b-it-4bit", 3.4, 8, "chats and images"),
    Suggestion("mlx-community/Qwen3-8B-4bit", 4.7, 16, "chats, tools, reasoning"),
    Suggestion("mlx-community/Qwen3-VL-8B-Instruct-4bit", 5.8, 16, "images, PDFs, tools"),
    Suggestion("mlx-community/gemma-3-12b-it-4bit", 8.0, 16, "chats and images"),
    Suggestion("mlx-community/Qwen3-14B-4bit", 8.3, 16, "chats, tools, reasoning"),
    Suggestion("mlx-community/gpt-oss-20b-MXFP4-Q8", 12.1, 32, "reasoning and tools"),
    Suggestion(
        "mlx-community/Mistral-Small-3.2-24B-Instruct-2506-4bit", 13.5, 32, "chats and tools"
    ),
    Suggestion("mlx-community/Qwen3-30B-A3B-Instruct-2507-4bit", 17.2, 32, "chats, tools; fast"),
    Suggestion("mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit", 17.2, 32, "coding agents; fast"),
    Suggestion("mlx-community/Qwen3-32B-4bit", 18.5, 32, "chats, tools, reasoning"),
    Suggestion("mlx-community/Llama-3.3-70B-Instruct-4bit", 39.7, 64, "chats and tools"),
    Suggestion("mlx-community/Qwen3-Next-80B-A3B-Instruct-4bit", 44.8, 64, "long prompts; fast"),
    Suggestion("mlx-community/gpt-oss-120b-MXFP4-Q8", 63.4, 96, "reasoning and tools"),
    Suggestion("mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ", 0.4, 8, "embeddings"),
)
