"""Granite 3: a JSON list of calls after ``<|tool_call|>`` or ``<tool_call>``."""

from __future__ import annotations

from mlx_router.parsing.tools.json_calls import JsonCalls


class Granite(JsonCalls):
    starts = ("<|tool_call|>", "<tool_call>")
    close = "</tool_call>"
