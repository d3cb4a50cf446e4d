"""A chat too long for its model: which messages stay, and how the others are put into words.

Pure; :mod:`.summarize` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_router.domain import ContentPart, Message, TextPart

KEPT_MESSAGES = 6
_MAX_RESERVE = 256  # tokens
_MAX_SUMMARY = 512  # tokens
_MIN_SUMMARY = 16  # tokens; less says nothing

_TASK = (
    "Summarize the conversation between the tags, so that somebody can go on with it who knows "
    "only the summary. Keep names, facts, numbers, decisions, results of tools and open questions. "
    "Write nothing but the summary, in the language of the conversation."
)
_TASK_EARLIER = " What came before is between the tags 'earlier': keep what still matters of it."


@dataclass(frozen=True, slots=True)
class Split:
    """``older`` messages may be summarised. ``system`` messages stood among or before them and
    stay, as do the ``kept`` ones, the first of which is not of the system."""

    system: tuple[Message, ...]
    older: tuple[Message, ...]
    kept: tuple[Message, ...]


def split(messages: Sequence[Message]) -> Split:
    """System and developer messages and the last six others stay. The kept part never begins with
    a tool's answer: it reaches back to the message with the call, for no template takes one
    without the other."""
    turns = [i for i, message in enumerate(messages) if not _is_system(message)]
    cut = max(0, len(turns) - KEPT_MESSAGES)
    while cut and messages[turns[cut]].role == "tool":
        cut -= 1
    begin = turns[cut] if turns else 0
    before = messages[:begin]
    return Split(
        system=tuple(message for message in before if _is_system(message)),
        older=tuple(message for message in before if not _is_system(message)),
        kept=tuple(messages[begin:]),
    )


def with_summary(parts: Split, summary: str) -> tuple[Message, ...]:
    """The messages with ``summary`` in place of the older ones.

    The summary is the user's, since some templates have no system role, and since it repeats what
    users and tools said, which must not gain a system message's authority. Many templates want
    user and assistant to alternate and the user to begin, and some need one message of the user:
    so it is a message of its own only where the kept ones do not begin with the user's, and else
    the first part of that one.
    """
    text = f"Summary of the {len(parts.older)} earlier messages of this conversation:\n{summary}"
    first, *others = parts.kept
    if first.role != "user":
        return (*parts.system, Message("user", text), *parts.kept)
    content: str | tuple[ContentPart, ...]
    text += "\n\n(End of the summary; the conversation goes on.)\n\n"
    if isinstance(first.content, tuple):
        content = (TextPart(text), *first.content)
    else:
        content = text + (first.content or "")
    return (*parts.system, replace(first, content=content), *others)


def transcript(messages: Sequence[Message]) -> str:
    """The messages as a text to be summarised: images and calls of tools in words, without the
    reasoning."""
    return "\n".join(f"{message.role}: {_in_words(message)}" for message in messages)


def reserve(context_length: int, asked: int | None) -> int:
    """The least room in tokens that an answer is to have before messages are summarised."""
    return max(1, min(asked or _MAX_RESERVE, _MAX_RESERVE, context_length // 4))


def summary_limit(context_length: int, room: int) -> int:
    """How long a summary may be, in tokens, where ``room`` is left for it."""
    return max(_MIN_SUMMARY, min(_MAX_SUMMARY, context_length // 8, room))


def task(conversation: str, earlier: str) -> str:
    """What the model is asked; ``earlier`` is the summary so far."""
    if not earlier:
        return f"{_TASK}\n\n<conversation>\n{conversation}\n</conversation>"
    return (
        f"{_TASK}{_TASK_EARLIER}\n\n<earlier>\n{earlier}\n</earlier>\n\n"
        f"<conversation>\n{conversation}\n</conversation>"
    )


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _in_words(message: Message) -> str:
    if isinstance(message.content, tuple):
        parts = [p.text if isinstance(p, TextPart) else "[image]" for p in message.content]
    else:
        parts = [message.content or ""]
    parts += [f"[called {call.name}({call.arguments})]" for call in message.tool_calls]
    return " ".join(part for part in parts if part)
