"""Llama 3.1 to 3.3: one JSON object as the whole answer, at times after ``<|python_tag|>``.

Several calls are separated by semicolons.
"""

from __future__ import annotations

from mlx_router.parsing.tools.json_calls import JsonCalls


class Llama3Json(JsonCalls):
    starts = ("<|python_tag|>",)
    openers = "{"
    known_tools_only = True
