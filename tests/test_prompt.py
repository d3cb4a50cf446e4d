"""Chat templates: rendered as transformers does, from messages of any shape."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mlx_router.domain import ChatPrompt, ImagePart, Message, Picture, TextPart, ToolCall
from mlx_router.errors import InvalidRequest
from mlx_router.prompt.builtin import TEMPLATE_NAMES, named_template
from mlx_router.prompt.messages import template_messages
from mlx_router.prompt.template import ChatTemplate
from tests.models import CHAT_TEMPLATE
from tests.prompt_support import CALLS, CHATS, PLAIN, SYSTEM, TOKENS, TOOLS

# What published templates do, each in its own way.
IDIOMS = {
    "namespace": """{% set ns = namespace(found=false, last=0) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}
{% set ns.last = loop.index %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.last }}""",
    "slices": "{% for m in messages[1:] + messages[:1] %}{{ m['content'][::-1] }}{% endfor %}",
    "reverse": "{% for m in messages[::-1] %}{{ loop.revindex }}{{ m.role }}{% endfor %}",
    "join": "{{ messages | map(attribute='role') | join(', ') }}{{ '-'.join(['a', 'b']) }}",
    "select": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "macro": """{%- macro turn(role, text='none') -%}
<{{ role }}>{{ text | trim }}{{ caller() if caller else '' }}
{%- endmacro -%}
{% for m in messages %}{{ turn(m.role, m.content) }}{{ turn('x') }}{% endfor %}
{% call turn('y') %} inner {% endcall %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}""",
    "loop controls": """{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}
{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}""",
    "tojson": "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ messages | tojson(indent=4) }}"
    "{{ {'b': 1, 'a': 'é<'} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "concat": "{{ bos_token ~ messages[0].role ~ 1 ~ none ~ [1, 'a'] ~ eos_token }}",
    "methods": "{{ messages[0].content.split(' ')[0].strip('x').upper() }}"
    "{{ messages[-1].content.startswith('A') }}{{ messages[0].get('name', 'nobody') }}"
    "{{ 'a-b'.replace('-', '+') }}{{ '{} {x!r}'.format(1, x='y') }}{{ '%s|%5d' % ('a', 7) }}",
    "undefined": "{{ not_there }}{{ not_there is defined }}{{ not_there or 'else' }}"
    "{{ messages[0].nothing | default('d') }}{{ custom_flag }}",
    "types": "{% for m in messages %}{{ m.content is string }}{{ m.content is mapping }}"
    "{{ m.tool_calls is defined and m.tool_calls is iterable }}{% endfor %}"
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 1 == 1.0 }}{{ -3 | abs }}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
    "{% for k, v in messages[0] | dictsort %}{{ k }}{% endfor %}{{ dict(a=1) }}",
    "set block": "{% set text %}a {{ messages | length }}{% endset %}{{ text | trim | title }}"
    "{% filter upper %}x{% endfilter %}{{ 'x\n y' | indent(2, true) }}{{ 'ab' | center(6) }}|",
    "recursion": """{% for key in [[1, [2]], [3]] recursive %}
{{ key if key is number else loop(key) }}{{ loop.depth }}{% endfor %}""",
    "inline if": "{% for m in messages if m.role != 'tool' %}{{ '*' if loop.last }}"
    "{{ loop.length }}{{ loop.previtem.role if loop.previtem }}{{ loop.cycle('a', 'b') }}"
    "{% endfor %}",
    "whitespace": "  {% if true %}  \n a \n  {%- endif %}\n\n  {{- 'b' }}  \n{# c #}\n d\n",
    "numbers": "{{ range(3) | list }}{{ 1.50 | round(1) }}{{ [3, 1] | sort | first }}"
    "{{ [1, 2, 3] | sum }}{{ [1, 2, 3] | batch(2) | list }}{{ ['a', 'a'] | unique | list }}",
    "lists": "{% set ns = namespace(l=[]) %}{% for m in messages %}"
    "{% set ns.l = ns.l + [m.role, {'n': loop.index}] %}{% endfor %}{{ ns.l }}{{ ns.l | last }}",
    "empty": "",
    "trailing newline": "a\n",
}


def theirs(source: str, messages: Sequence[Mapping[str, Any]], tools: object, **kwargs: Any) -> str:
    """What transformers makes of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [[dict(message) for message in messages]], tools=tools, chat_template=source, **kwargs
    )
    text: str = rendered[0]
    return text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("idiom", IDIOMS)
def test_every_idiom_renders_as_in_transformers(idiom: str, chat: str) -> None:
    source, messages = IDIOMS[idiom], CHATS[chat]
    template = ChatTemplate(source, special_tokens=TOKENS)
    for tools in (None, TOOLS):
        expected = theirs(
            source, messages, tools, add_generation_prompt=True, **TOKENS, custom_flag="on"
        )
        assert template.render(messages, tools, custom_flag="on") == expected


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", [*TEMPLATE_NAMES, "a model's own"])
def test_whole_templates_render_as_in_transformers(name: str, chat: str) -> None:
    source = named_template(name) if name in TEMPLATE_NAMES else CHAT_TEMPLATE
    template = ChatTemplate(source, special_tokens=TOKENS)
    for tools in (None, TOOLS):
        for generate in (True, False):
            for kwargs in ({}, {"enable_thinking": False}, {"reasoning_effort": "high"}):
                expected = theirs(
                    source, CHATS[chat], tools, add_generation_prompt=generate, **TOKENS, **kwargs
                )
                rendered = template.render(
                    CHATS[chat], tools, add_generation_prompt=generate, **kwargs
                )
                assert rendered == expected


def test_kwargs_cannot_take_the_place_of_the_messages() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ tools }}{{ self_ }}", special_tokens={})
    options: dict[str, Any] = {"messages": [], "tools": [1], "self": 1, "self_": "x"}
    assert template.render(PLAIN, None, **options) == PLAIN[0]["content"] + "Nonex"


def test_the_switch_of_thinking_has_two_names() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ thinking }}", special_tokens={})
    assert template.render(PLAIN, enable_thinking=True) == "True True"
    assert template.render(PLAIN, enable_thinking=True, thinking=False) == "True False"
    assert template.render(PLAIN) == " "


def test_strftime_now_is_there() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", special_tokens={})
    assert template.render(PLAIN) == time.strftime("%Y")


# --- messages -------------------------------------------------------------------------------


def chat(*messages: Message) -> list[dict[str, Any]]:
    return template_messages(ChatPrompt(messages))


def test_content_is_always_a_string() -> None:
    parts = (TextPart("a"), TextPart("b"))
    assert chat(Message("user", "x"), Message("user", parts), Message("assistant")) == [
        {"role": "user", "content": "x"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
    ]


PICTURE = Picture(2, 1, bytes(6), "digest")


def test_images_stand_where_they_stood_for_models_that_see() -> None:
    parts = (TextPart("this"), PICTURE, TextPart("or"), TextPart("that?"), PICTURE)
    prompt = ChatPrompt((Message("user", parts), Message("tool", (PICTURE,), tool_call_id="c")))
    user, tool = template_messages(prompt, keep_parts=True)
    assert user["content"] == [
        {"type": "text", "text": "this"},
        {"type": "image"},
        {"type": "text", "text": "or"},
        {"type": "text", "text": "that?"},
        {"type": "image"},
    ]
    assert tool["content"] == [{"type": "image"}]


def test_a_turn_without_images_is_a_string_for_models_that_see_too() -> None:
    parts = (TextPart("a"), TextPart("b"))
    turns = (Message("system", parts), Message("user", (PICTURE,)), Message("user", parts))
    contents = [one["content"] for one in template_messages(ChatPrompt(turns), keep_parts=True)]
    assert contents == ["ab", [{"type": "image"}], "ab"]
    text_only = ChatPrompt((Message("system", parts), Message("user", parts)))
    assert template_messages(text_only, keep_parts=True) == template_messages(text_only)


def test_system_messages_with_images_are_one_system_message() -> None:
    turns = (Message("system", "a"), Message("developer", (PICTURE,)), Message("system", "b"))
    (system,) = template_messages(ChatPrompt(turns), keep_parts=True)
    texts = [part.get("text", part["type"]) for part in system["content"]]
    assert texts == ["a", "\n\n", "image", "\n\n", "b"]
    assert system["role"] == "system"


@pytest.mark.parametrize("part", [ImagePart("data:,"), PICTURE])
def test_an_image_for_a_model_without_vision_is_a_clear_400(part: ImagePart | Picture) -> None:
    with pytest.raises(InvalidRequest, match="no vision") as caught:
        chat(Message("user", (TextPart("what?"), part)))
    assert caught.value.param == "messages"


def test_a_developer_speaks_as_the_system() -> None:
    assert chat(Message("developer", "d"), Message("user", "u"))[0] == {
        "role": "system",
        "content": "d",
    }
    merged = chat(Message("system", "a"), Message("developer", "b"), Message("system", "c"))
    assert merged == [{"role": "system", "content": "a\n\nb\n\nc"}]
    later = chat(Message("user", "u"), Message("system", "a"), Message("system", "b"))
    assert [message["content"] for message in later] == ["u", "a", "b"]


def test_tool_calls_and_results() -> None:
    call = ToolCall("call_1", "f", '{"a": 1}')
    broken = ToolCall("call_2", "g", "{oops")
    messages = chat(
        Message("assistant", tool_calls=(call, broken), reasoning="so"),
        Message("tool", "42", tool_call_id="call_1"),
        Message("tool", "43", tool_call_id="call_9"),
        Message("tool", "44", tool_call_id="call_2", name="mine"),
    )
    assert messages[0]["reasoning_content"] == "so"
    assert messages[0]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{oops"}},
    ]
    assert messages[1] == {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"}
    assert "name" not in messages[2]
    assert messages[3]["name"] == "mine"


@pytest.mark.parametrize("arguments", ["", "[1]", "1", "[" * 100_000, '"x"'])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    (message,) = chat(Message("assistant", tool_calls=(ToolCall("c", "f", arguments),)))
    expected: object = arguments or {}
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def test_tools_have_openais_shape() -> None:
    assert TOOLS[1] == {
        "type": "function",
        "function": {
            "name": "ping",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    }


# --- built-in templates ---------------------------------------------------------------------


def test_builtin_templates_have_their_formats_markers() -> None:
    prompts = {
        name: ChatTemplate(named_template(name), special_tokens={}).render(SYSTEM)
        for name in TEMPLATE_NAMES
    }
    assert prompts["chatml"] == (
        "<|im_start|>system\nBe brief. <|im_end|>\n"
        "<|im_start|>user\nHi, <you> & 'me' é 🙂<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts["qwen"] == prompts["chatml"]
    assert prompts["llama3"].startswith("<|begin_of_text|><|start_header_id|>system")
    assert prompts["llama3"].endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert prompts["deepseek"].endswith("<｜User｜>Hi, <you> & 'me' é 🙂<｜Assistant｜>")  # noqa: RUF001
    assert prompts["phi4"].endswith("<|im_end|><|im_start|>assistant<|im_sep|>")
    assert prompts["gpt-oss"].endswith("<|end|><|start|>assistant")
    assert prompts["generic"].endswith("\n\nAssistant:")


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_builtin_templates_show_tools_calls_and_results(name: str) -> None:
    rendered = ChatTemplate(named_template(name), special_tokens={}).render(CALLS, TOOLS)
    for shown in ("search", "what to find", "ping", '"query": "ü"', "nothing", "pong"):
        assert shown in rendered


def test_an_unknown_builtin_name_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(LookupError, match="chatml"):
        named_template("../secrets")
