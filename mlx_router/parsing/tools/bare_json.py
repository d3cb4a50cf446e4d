"""A JSON object as the whole answer: the name of a tool, and arguments.

Without a marker it may as well be the answer, so the name must be that of a tool, and arguments
must be there.
"""

from __future__ import annotations

from mlx_router.parsing.tools.json_calls import JsonCalls


class BareJson(JsonCalls):
    openers = "{["
    known_tools_only = True
