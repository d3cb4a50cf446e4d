"""Which messages of a chat that is too long are summarised, and how the rest is put together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlx_router.domain import ChatPrompt, Message, Picture, TextPart, Tool, ToolCall
from mlx_router.errors import InvalidRequest
from mlx_router.prompt.builtin import TEMPLATE_NAMES, named_template
from mlx_router.prompt.messages import template_messages, template_tools
from mlx_router.prompt.template import ChatTemplate
from mlx_router.runtime.overflow import (
    KEPT_MESSAGES,
    Split,
    reserve,
    split,
    summary_limit,
    task,
    transcript,
    with_summary,
)
from tests.models import CHAT_TEMPLATE
from tests.prompt_support import TOKENS

SYSTEM = ("system", "developer")
SUMMARY = "Alice asked for the weather."

# What published templates demand, each in its own words.
STRICT = {
    "alternating after one system message": """
{%- if messages[0].role == 'system' %}{{ '[SYS]' + messages[0].content + '[/SYS]' }}
{%- set messages = messages[1:] %}{% endif %}
{%- set ns = namespace(index=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {%- if (m.role == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the system message, roles must alternate') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- elif m.role == 'system' %}{{ raise_exception('Only the first may be of the system') }}
    {%- endif %}
    {{- '[' + m.role + ']' + m.content }}
{%- endfor %}""",
    "no system role": """
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {%- endif %}
    {{- '[' + m.role + ']' + m.content }}
{%- endfor %}""",
    "tools in the first message of the user": """
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}
{%- endif %}
{%- if not messages or messages[0].role != 'user' %}
    {{- raise_exception('Cannot put tools in the first user message when there is none') }}
{%- endif %}
{%- for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}""",
    "a question of the user": """
{%- set ns = namespace(found=false) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}
{{- '[' + m.role + ']' + m.content }}{% endfor %}
{%- if not ns.found %}{{ raise_exception('No user query found in messages.') }}{% endif %}""",
}


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    """Chats as clients send them: every text is there once, answers of tools follow their call."""
    numbers = itertools.count()
    messages: list[Message] = []
    kinds = st.sampled_from(["system", "developer", "user", "assistant", "call"])
    for kind in draw(st.lists(kinds, max_size=25)):
        if kind != "call":
            messages.append(Message(kind, f"text-{next(numbers)}."))  # type: ignore[arg-type]
            continue
        calls = [
            ToolCall(f"call-{next(numbers)}", "look", "{}")
            for _ in range(draw(st.integers(min_value=1, max_value=8)))
        ]
        messages.append(Message("assistant", f"text-{next(numbers)}.", tool_calls=tuple(calls)))
        messages += [Message("tool", f"text-{next(numbers)}.", tool_call_id=c.id) for c in calls]
    return messages


def turns(messages: list[Message] | tuple[Message, ...]) -> list[Message]:
    return [message for message in messages if message.role not in SYSTEM]


@hypothesis_settings(max_examples=300, deadline=None)
@given(chats())
def test_every_message_is_kept_or_summarised_and_none_is_both(messages: list[Message]) -> None:
    parts = split(messages)
    stays = [*parts.system, *parts.kept]
    assert sorted([*stays, *parts.older], key=str) == sorted(messages, key=str)
    assert not set(stays) & set(parts.older)
    assert stays == [message for message in messages if message in stays]  # in their order
    assert list(parts.older) == [message for message in messages if message in parts.older]
    assert all(message.role not in SYSTEM for message in parts.older)
    assert turns(parts.kept)[-KEPT_MESSAGES:] == turns(messages)[-KEPT_MESSAGES:]


@hypothesis_settings(max_examples=300, deadline=None)
@given(chats())
def test_a_call_and_its_answers_are_never_parted(messages: list[Message]) -> None:
    parts = split(messages)
    called = {call.id for message in parts.kept for call in message.tool_calls}
    answered = {message.tool_call_id for message in parts.kept if message.role == "tool"}
    assert called == answered
    if len(turns(parts.kept)) > KEPT_MESSAGES:  # no more than needed
        assert turns(parts.kept)[-KEPT_MESSAGES].role == "tool"
        assert parts.kept[0].tool_calls


@hypothesis_settings(max_examples=300, deadline=None)
@given(chats())
def test_a_summary_takes_the_place_of_the_older_messages(messages: list[Message]) -> None:
    parts = split(messages)
    if not parts.older:
        return
    shorter = with_summary(parts, SUMMARY)
    texts = [message.text for message in shorter]
    assert "\n".join(texts).count(SUMMARY) == 1
    assert all(sum(m.text in text for text in texts) == 1 for m in (*parts.system, *parts.kept))
    assert not any(m.text in text for m in parts.older for text in texts)
    # Neither two messages of the user in a row that were not there, nor one of a system.
    assert [m for m in shorter if m.role in SYSTEM] == [m for m in messages if m.role in SYSTEM]
    first = turns(shorter)[0]
    assert first.role == "user"
    assert SUMMARY in first.text


def alternating(turns: int, *, system: bool) -> list[Message]:
    """A chat whose last message is the user's."""
    roles = ["assistant" if (turns - i) % 2 == 0 else "user" for i in range(turns)]
    chat = [Message(role, f"text-{i}.") for i, role in enumerate(roles)]  # type: ignore[arg-type]
    return [Message("system", "Be brief."), *chat] if system else chat


def agent(rounds: int) -> list[Message]:
    """One question, and then nothing but calls of tools."""
    chat = [Message("user", "text-u.")]
    for i in range(rounds):
        call = ToolCall(f"c{i}", "look", '{"at": 1}')
        chat.append(Message("assistant", f"text-a{i}.", tool_calls=(call,)))
        chat.append(Message("tool", f"text-t{i}.", tool_call_id=f"c{i}"))
    return chat


def asked_last() -> list[Message]:
    """The last six messages begin with the user's."""
    first, second = ToolCall("c1", "look", "{}"), ToolCall("c2", "look", "{}")
    return [
        *alternating(3, system=False)[:2],
        Message("user", "text-u."),
        Message("assistant", "text-a.", tool_calls=(first, second)),
        Message("tool", "text-t1.", tool_call_id="c1"),
        Message("tool", "text-t2.", tool_call_id="c2"),
        Message("assistant", "text-b.", tool_calls=(replace(first, id="c3"),)),
        Message("tool", "text-t3.", tool_call_id="c3"),
    ]


@pytest.mark.parametrize("name", [*TEMPLATE_NAMES, "a model's own", *STRICT])
@pytest.mark.parametrize("system", [False, True])
def test_templates_take_what_is_left(name: str, system: bool) -> None:
    strict = name in STRICT
    source = STRICT[name] if strict else CHAT_TEMPLATE
    source = named_template(name) if name in TEMPLATE_NAMES else source
    template = ChatTemplate(source, special_tokens=TOKENS)
    chats = [alternating(turns, system=system) for turns in range(7, 24, 2)]
    if name != "no system role":
        chats += [asked_last(), *(agent(rounds) for rounds in range(4, 9))]
    for chat in chats:
        if name == "no system role" and system:
            chat = [message for message in chat if message.role != "system"]
        parts = split(chat)
        assert parts.older
        for tools in ((), (Tool("look"),)):
            prompt = ChatPrompt(with_summary(parts, SUMMARY), tools)
            text = template.render(template_messages(prompt), template_tools(tools) or None)
            assert text.count(SUMMARY) == 1
            kept = [text.index(m.text) for m in (*parts.system, *parts.kept) if m.text in text]
            assert kept == sorted(kept)
            assert parts.kept[-1].text in text


def test_strict_templates_refuse_what_others_take() -> None:
    """The templates of the test above are no walk-over."""
    refused = {
        "alternating after one system message": alternating(2, system=False),
        "no system role": alternating(3, system=True),
        "tools in the first message of the user": alternating(2, system=True),
        "a question of the user": [Message("assistant", "text")],
    }
    for name, chat in refused.items():
        template = ChatTemplate(STRICT[name], special_tokens=TOKENS)
        with pytest.raises(InvalidRequest, match="refuses this"):
            template.render(template_messages(ChatPrompt(tuple(chat))))


PICTURE = Picture(1, 1, bytes(3), "digest")


def test_images_and_calls_are_told_in_words() -> None:
    messages = [
        Message("user", (TextPart("What is this?"), PICTURE)),
        Message("assistant", None, tool_calls=(ToolCall("1", "zoom", '{"by": 2}'),)),
        Message("tool", "A cat.", tool_call_id="1"),
        Message("assistant", "It is a cat.", reasoning="Nothing but a cat looks so."),
    ]
    assert transcript(messages) == (
        "user: What is this? [image]\n"
        'assistant: [called zoom({"by": 2})]\n'
        "tool: A cat.\n"
        "assistant: It is a cat."
    )


def test_a_summary_goes_before_the_parts_of_a_message() -> None:
    kept = Message("user", (PICTURE, TextPart("And this?")))
    (message,) = with_summary(Split((), (Message("user", "old"),), (kept,)), SUMMARY)
    assert isinstance(message.content, tuple)
    first, *others = message.content
    assert isinstance(first, TextPart)
    assert SUMMARY in first.text
    assert others == [PICTURE, TextPart("And this?")]


def test_a_task_names_the_summary_so_far_only_if_there_is_one() -> None:
    assert "earlier" not in task("user: hello", "")
    assert "<earlier>\nThey met.\n</earlier>" in task("user: hello", "They met.")


@pytest.mark.parametrize(
    ("context_length", "asked", "expected"),
    [(8192, None, 256), (8192, 32_000, 256), (8192, 10, 10), (400, None, 100), (2, None, 1)],
)
def test_the_room_that_an_answer_is_to_have(
    context_length: int, asked: int | None, expected: int
) -> None:
    assert reserve(context_length, asked) == expected


@pytest.mark.parametrize(
    ("context_length", "room", "expected"),
    [(32_768, 9000, 512), (2048, 1000, 256), (2048, 100, 100), (2048, -5, 16), (64, 60, 16)],
)
def test_how_long_a_summary_may_be(context_length: int, room: int, expected: int) -> None:
    assert summary_limit(context_length, room) == expected
