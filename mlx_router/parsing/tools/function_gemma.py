"""FunctionGemma."""

from __future__ import annotations

from mlx_router.parsing.tools.gemma_calls import GemmaCalls


class FunctionGemma(GemmaCalls):
    starts = ("<start_function_call>",)
    close = "<end_function_call>"
    quote = "<escape>"
