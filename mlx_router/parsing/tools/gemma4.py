"""Gemma 4."""

from __future__ import annotations

from mlx_router.parsing.tools.gemma_calls import GemmaCalls


class Gemma4(GemmaCalls):
    starts = ("<|tool_call>",)
    close = "<tool_call|>"
    quote = '<|"|>'
