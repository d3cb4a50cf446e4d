"""LongCat: GLM's calls with longer tags."""

from __future__ import annotations

from mlx_router.parsing.tools.tagged import TaggedCalls


class Longcat(TaggedCalls):
    starts = ("<longcat_tool_call>",)
    close = "</longcat_tool_call>"
    key = ("<longcat_arg_key>", "</longcat_arg_key>")
    value = ("<longcat_arg_value>", "</longcat_arg_value>")
