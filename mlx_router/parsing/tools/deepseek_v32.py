"""DeepSeek V3.2: MiniMax's calls with other tags, and whether a value is a string in its tag."""

from __future__ import annotations

from mlx_router.parsing.tools.tagged import TaggedCalls


class DeepseekV32(TaggedCalls):
    starts = ("<｜DSML｜function_calls>",)  # noqa: RUF001 - as they write it
    close = "</｜DSML｜function_calls>"  # noqa: RUF001
    call = ("<｜DSML｜invoke", "</｜DSML｜invoke>")  # noqa: RUF001
    key = ("<｜DSML｜parameter", "")  # noqa: RUF001
    value = ("", "</｜DSML｜parameter>")  # noqa: RUF001
