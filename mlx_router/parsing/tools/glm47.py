"""GLM 4.5 and later, and Laguna: the name, then keys and values between tags of their own."""

from __future__ import annotations

from mlx_router.parsing.tools.tagged import TaggedCalls


class Glm47(TaggedCalls):
    starts = ("<tool_call>",)
    close = "</tool_call>"
    key = ("<arg_key>", "</arg_key>")
    value = ("<arg_value>", "</arg_value>")
