"""The scripted engine's words: its tokens, and what it answers to what.

The engine sees token ids only. So the codec writes a chat down as JSON, and :func:`answer` reads
it back from the ids.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlx_router.domain import (
    ChatPrompt,
    Message,
    NamedTool,
    Picture,
    SamplingOptions,
    TextPart,
)
from mlx_router.engine.base import Encoded, OutputMarkers
from mlx_router.engine.scripted_values import example
from mlx_router.errors import InvalidRequest

CANNED = (
    "This is a scripted answer, made without a model. It is always the same for the same "
    "question, and it comes one token at a time, so that programs can rely on it."
)
CONTINUATION = " and so it goes on, one word after the other, as it did before,"
THOUGHT = "The script says what to answer. There is nothing more to think about."

EOS = 256
CHAT = 257  # what a chat's ids begin with

_WORDS = re.findall(
    r"\w+",
    """
the be to of and a in that have it for not on with he as you do at this but his by from they we
say her she or an will my one all would there their what so up out if about who get which go me
when make can like time no just him know take people into year your good some could them see other
than then now look only come its over think also back after use two how our work first well way
even new want because any these give day most us is are was were has had been being more very much
many such where why here again between under above each both few own same too answer question tool
model text result value name number string true false null city weather user said You The It I
content role message type function arguments parameters description object properties required
""",
)
# What chats and calls are written with.
_FRAMES = ('": "', '", "', '": {"', '": [', '{"', '"}', '": ', "\n\n", ", ", ". ")
_MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def _pieces() -> list[bytes]:
    known = re.findall(r" ?[A-Za-z]+", CANNED + CONTINUATION + " " + THOUGHT)
    words = [form for word in _WORDS for form in (word, f" {word}")]
    texts = dict.fromkeys((*_MARKS, *_FRAMES, *known, *words))
    return [text.encode() for text in texts if len(text) > 1]


_BYTES = [bytes([value]) for value in range(256)] + [b"", b""] + _pieces()
VOCAB_SIZE = len(_BYTES)
_IDS = {_BYTES[token].decode(): token for token in range(CHAT + 1, VOCAB_SIZE)}
_SPLIT = re.compile("|".join([*map(re.escape, (*_MARKS, *_FRAMES)), r" ?[A-Za-z]+", r"[\s\S]"]))
# A token's text where it has one by itself: all but the bytes of longer characters.
_TEXTS = [data.decode() if data.isascii() else None for data in _BYTES]


def encode(text: str) -> list[int]:
    ids: list[int] = []
    for piece in _SPLIT.findall(text):
        token = _IDS.get(piece)
        if token is None:
            ids += piece.encode("utf-8", "replace")
        else:
            ids.append(token)
    return ids


def decode(token_ids: Iterable[int]) -> str:
    known = (_BYTES[token] for token in token_ids if 0 <= token < VOCAB_SIZE)
    return b"".join(known).decode("utf-8", "replace")


class ScriptedDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._pending = False

    def add(self, token: int) -> str:
        if not 0 <= token < VOCAB_SIZE:
            return ""
        text = _TEXTS[token]
        if text is None:
            self._pending = True
            return self._decoder.decode(_BYTES[token])
        if self._pending:
            self._pending = False
            return self._decoder.decode(_BYTES[token])
        return text

    def finish(self) -> str:
        return ""  # only half a character can be left, and that is dropped


class ScriptedCodec:
    """Implements :class:`mlx_router.engine.base.TextCodec`: bytes, and common English words.

    ``sees``: takes images. Of them, a chat's ids tell the sizes.
    """

    markers = OutputMarkers("<think>", "</think>", "hermes")
    eos_ids = frozenset((EOS,))
    sampling = SamplingOptions()

    def __init__(self, *, sees: bool = False) -> None:
        self._readable = (TextPart, Picture) if sees else (TextPart,)

    def encode_chat(self, prompt: ChatPrompt, *, scope: str | None = None) -> Encoded:
        if not all(isinstance(part, self._readable) for part in prompt.parts):
            raise InvalidRequest(
                "This model has no vision: it cannot take images.", param="messages"
            )
        return Encoded([CHAT, *encode(json.dumps(_written(prompt), ensure_ascii=False))])

    def constraint(self, prompt: ChatPrompt, prompt_ids: Sequence[int]) -> None:
        """None: what is scripted has the right form by itself."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode(token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return _BYTES[token_id] if 0 <= token_id < VOCAB_SIZE else b""

    def detokenizer(self) -> ScriptedDetokenizer:
        return ScriptedDetokenizer()

    def starts_in_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        return False


# --- questions and answers ------------------------------------------------------------------


def _written(prompt: ChatPrompt) -> dict[str, Any]:
    """All of a chat that an answer depends on."""
    choice = prompt.tool_choice
    effort = prompt.reasoning_effort
    thinking = prompt.template_kwargs.get("enable_thinking", effort not in (None, "none"))
    written: dict[str, Any] = {
        "messages": [{"role": m.role, "content": _content(m)} for m in prompt.messages],
    }
    if prompt.pictures:
        written["images"] = [f"{one.width}x{one.height}" for one in prompt.pictures]
    if prompt.tools and choice != "none":
        written["tools"] = {t.name: dict(t.parameters or {}) for t in prompt.tools}
        written["tool_choice"] = [choice.name] if isinstance(choice, NamedTool) else choice
        written["parallel"] = prompt.parallel_tool_calls
    if prompt.response_format.type != "text":
        written["schema"] = prompt.response_format.schema or {"type": "object"}
    if thinking:
        written["thinking"] = True
    return written


def _content(message: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
    return "\n".join(filter(None, (message.text, *calls)))


def answer(prompt_ids: Sequence[int]) -> str:
    """What the script says to a prompt. Never raises."""
    if not prompt_ids or prompt_ids[0] != CHAT:
        return CONTINUATION
    try:
        chat = json.loads(decode(prompt_ids))
        thought = f"<think>\n{THOUGHT}\n</think>\n\n" if chat.get("thinking") else ""
        return thought + _answer(chat)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return CANNED  # ids that only look like a chat


def _answer(chat: Mapping[str, Any]) -> str:
    last = chat["messages"][-1] if chat["messages"] else {"role": "user", "content": ""}
    if last["role"] != "tool" and (called := _called(chat, last["content"])):
        return "\n".join(_call(name, chat["tools"][name]) for name in called)
    if "schema" in chat:
        return json.dumps(example(chat["schema"]), ensure_ascii=False)
    if last["role"] == "tool":
        return f"The tool's result: {last['content']}"
    echo = " ".join(last["content"].split()[:12])
    said = f'You said: "{echo}". {CANNED}' if echo else CANNED
    return _sight(chat["images"]) + said if "images" in chat else said


def _sight(sizes: Sequence[str]) -> str:
    return f"I see {len(sizes)} image{'s' * (len(sizes) != 1)}: {', '.join(sizes)}. "


def _called(chat: Mapping[str, Any], question: str) -> list[str]:
    """The tools to call: the named one; those the question names; or, if one must be, the first."""
    tools = chat.get("tools", {})
    choice = chat.get("tool_choice")
    if isinstance(choice, list):
        return [name for name in choice if name in tools]
    words = set(re.findall(r"[\w.-]*\w", question))
    named = [name for name in tools if name in words]
    if not named and choice == "required":
        named = list(tools)[:1]
    return named if chat.get("parallel") else named[:1]


def _call(name: str, parameters: object) -> str:
    arguments = example(parameters)
    if not isinstance(arguments, dict):
        arguments = {}
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"
