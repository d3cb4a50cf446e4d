"""What every generator makes: an exchange, that is one question with all that answers it."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass
class Exchange:
    """User message(s), tool calls and results, and the final answer; and the tools it needs.

    Assistant messages carry ``reasoning_content``; the composer drops it when not thinking.
    """

    category: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


def said(category: str, user: str, answer: str, thought: str) -> Exchange:
    """The plain kind: a question and its answer."""
    return Exchange(category, [{"role": "user", "content": user}, assistant(answer, thought)])


def assistant(answer: str, thought: str) -> Message:
    """An assistant message with its reasoning."""
    return {"role": "assistant", "content": answer, "reasoning_content": thought}
