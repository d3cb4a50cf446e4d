"""Phi-4-mini: a JSON list of calls between special tokens or, as it often writes, after
``functools``."""

from __future__ import annotations

from mlx_router.parsing.tools.json_calls import JsonCalls


class Phi4(JsonCalls):
    starts = ("<|tool_call|>", "functools[")
    close = "<|/tool_call|>"
