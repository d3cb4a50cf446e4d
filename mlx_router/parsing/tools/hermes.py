"""Hermes, Qwen 2.5, Qwen 3 and many others: JSON between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

from mlx_router.parsing.tools.json_calls import JsonCalls


class Hermes(JsonCalls):
    starts = ("<tool_call>",)
    close = "</tool_call>"
