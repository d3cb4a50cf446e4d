"""Chats for the tests of prompts."""

from __future__ import annotations

from typing import Any

from mlx_router.domain import Tool
from mlx_router.prompt.messages import template_tools

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = template_tools(
    [
        Tool(
            "search",
            "Finds <b>things</b> & more",
            {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what to find"},
                    "limit": {"type": "integer", "default": 10},
                    "order": {"enum": ["new", "old"]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "where": {"type": "object", "properties": {"city": {"type": "string"}}},
                    "page": {"type": ["integer", "null"]},
                    "any": {"anyOf": [{"type": "string"}, {"type": "number"}]},
                },
                "required": ["query"],
            },
        ),
        Tool("ping"),
    ]
)

PLAIN: list[dict[str, Any]] = [{"role": "user", "content": "Hi, <you> & 'me' é 🙂"}]
SYSTEM = [{"role": "system", "content": "Be brief. "}, *PLAIN]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!  "},
    {"role": "user", "content": "And?\n"},
]
CALLS = [
    *PLAIN,
    {
        "thinking": "I must look.",  # first, where transformers puts it
        "role": "assistant",
        "content": "",
        "reasoning_content": "I must look.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "search", "arguments": {"query": "ü", "limit": 2}},
            },
            {"id": "call_2", "type": "function", "function": {"name": "ping", "arguments": "{"}},
        ],
    },
    {"role": "tool", "name": "search", "tool_call_id": "call_1", "content": "nothing"},
    {"role": "tool", "name": "ping", "tool_call_id": "call_2", "content": "pong"},
]
CHATS = {"plain": PLAIN, "system": SYSTEM, "turns": TURNS, "calls": CALLS}
