"""The built-in templates write what the makers of the models document, to the letter.

Only the sentences that ask a model to use tools are our own.
"""

# ruff: noqa: RUF001 - DeepSeek writes its tokens so

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mlx_router.domain import ChatPrompt, Message, Tool, ToolCall
from mlx_router.prompt.builtin import TEMPLATE_NAMES, named_template
from mlx_router.prompt.messages import template_messages, template_tools
from mlx_router.prompt.template import ChatTemplate

LOOK = Tool(
    "look",
    "Looks around.",
    {
        "type": "object",
        "properties": {
            "at": {"type": "string", "description": "what to look at"},
            "depth": {"type": "integer", "default": 1},
            "mode": {"enum": ["near", "far"]},
        },
        "required": ["at"],
    },
)
PING = Tool("ping")
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Look."),
    Message(
        "assistant",
        tool_calls=(ToolCall("a", "look", '{"at": "é"}'), ToolCall("b", "ping", "{}")),
    ),
    Message("tool", "a tree", tool_call_id="a"),
    Message("tool", "pong", tool_call_id="b"),
)
DONE = (*MESSAGES, Message("assistant", "A tree."), Message("user", "Thanks."))

HARMONY_SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
HARMONY_TOOLS = (
    "# Tools\n\n## functions\n\nnamespace functions {\n\n// Looks around.\ntype look = (_: {\n"
    "// what to look at\nat: string,\ndepth?: number, // default: 1\n"
    'mode?: "near" | "far",\n}) => any;\n\ntype ping = () => any;\n\n} // namespace functions'
)

# A chat without tools: system, user, assistant, user.
PLAIN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nLook.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nLook.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "deepseek": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!"
    "<｜end▁of▁sentence｜><｜User｜>Look.<｜Assistant｜>",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>Look.<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
    "gpt-oss": HARMONY_SYSTEM + "<|end|><|start|>developer<|message|># Instructions\n\nBe brief."
    "<|end|><|start|>user<|message|>Hi<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello!<|end|>"
    "<|start|>user<|message|>Look.<|end|><|start|>assistant",
    "generic": "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Look.\n\nAssistant:",
}
PLAIN["qwen"] = PLAIN["chatml"]

# How a prompt with tools begins, and how it goes on after the system's message.
HERMES_CALLS = (
    '<tool_call>\n{{"name": "look", "arguments": {{"at": "é"}}}}\n</tool_call>{0}'
    '<tool_call>\n{{"name": "ping", "arguments": {{}}}}\n</tool_call>'
)
QWEN = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\n",
    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n"
    + HERMES_CALLS.format("\n")
    + "<|im_end|>\n<|im_start|>user\n<tool_response>\na tree\n</tool_response>\n"
    "<tool_response>\npong\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
)
CALLED = {
    "chatml": QWEN,
    "qwen": QWEN,
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nLook.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "look", "parameters": {"at": "é"}}<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "ping", "parameters": {}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\na tree<|eot_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\npong<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>Be brief.\n\n",
        "<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Look.<｜Assistant｜>"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n"
        '```json\n{"at": "é"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>a tree<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>pong<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be brief.\n\n",
        "<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello!"
        "<|im_end|><|im_start|>user<|im_sep|>Look.<|im_end|><|im_start|>assistant<|im_sep|>"
        + HERMES_CALLS.format("")
        + "<|im_end|><|im_start|>tool<|im_sep|>a tree<|im_end|><|im_start|>tool<|im_sep|>pong"
        "<|im_end|><|im_start|>assistant<|im_sep|>",
    ),
    "gpt-oss": (
        HARMONY_SYSTEM + "\nCalls to these tools must go to the commentary channel: 'functions'."
        "<|end|><|start|>developer<|message|># Instructions\n\nBe brief.\n\n" + HARMONY_TOOLS,
        "<|end|><|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello!<|end|>"
        "<|start|>user<|message|>Look.<|end|>"
        "<|start|>assistant to=functions.look<|channel|>commentary json<|message|>"
        '{"at": "é"}<|call|>'
        "<|start|>assistant to=functions.ping<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>functions.look to=assistant<|channel|>commentary<|message|>a tree<|end|>"
        "<|start|>functions.ping to=assistant<|channel|>commentary<|message|>pong<|end|>"
        "<|start|>assistant",
    ),
    "generic": (
        "System: ",
        "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Look.\n\nAssistant: "
        '{"name": "look", "arguments": {"at": "é"}}\n{"name": "ping", "arguments": {}}\n\n'
        "Result: a tree\n\nResult: pong\n\nAssistant:",
    ),
}


def rendered(name: str, messages: tuple[Message, ...], *tools: Tool, **kwargs: Any) -> str:
    template = ChatTemplate(named_template(name), special_tokens={})
    prompt = ChatPrompt(messages)
    return template.render(template_messages(prompt), template_tools(tools) or None, **kwargs)


def today(text: str) -> str:
    return text.replace("{date}", time.strftime("%Y-%m-%d"))


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_chat_is_written_as_published(name: str) -> None:
    assert rendered(name, MESSAGES[:4]) == today(PLAIN[name])


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_calls_and_results_are_written_as_published(name: str) -> None:
    begin, end = CALLED[name]
    text = rendered(name, MESSAGES, LOOK, PING)
    assert text.startswith(today(begin))
    assert text.endswith(end)
    assert text.index(end) >= len(today(begin))


@pytest.mark.parametrize("name", sorted(set(TEMPLATE_NAMES) - {"gpt-oss"}))
def test_the_tools_are_listed_as_json(name: str) -> None:
    text = rendered(name, MESSAGES, LOOK, PING)
    for tool in template_tools([LOOK, PING]):
        shapes = (
            json.dumps(tool),
            json.dumps(tool["function"]),
            json.dumps(tool, indent=4),
        )
        assert any(shape in text for shape in shapes)
    if name in ("qwen", "chatml"):
        listed = "\n".join(json.dumps(tool) for tool in template_tools([LOOK, PING]))
        assert f"<tools>\n{listed}\n</tools>" in text


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_an_answer_after_results_ends_their_turn(name: str) -> None:
    before = rendered(name, MESSAGES, LOOK, PING)
    after = rendered(name, DONE, LOOK, PING)
    answer = {
        "gpt-oss": "<|channel|>final<|message|>A tree.<|end|><|start|>user<|message|>Thanks.",
        "deepseek": "A tree.<｜end▁of▁sentence｜><｜User｜>Thanks.<｜Assistant｜>",
        "generic": " A tree.\n\nUser: Thanks.",
    }.get(name, "A tree.")
    assert after.startswith(before + answer)


def test_reasoning_of_qwen_is_kept_since_the_last_question_only() -> None:
    old = Message("assistant", "Hello!", reasoning="old thought")
    new = Message("assistant", tool_calls=(ToolCall("a", "ping", "{}"),), reasoning="new thought")
    chat = (MESSAGES[1], old, MESSAGES[3], new, Message("tool", "pong", tool_call_id="a"))
    text = rendered("qwen", chat, PING)
    assert "old thought" not in text
    assert "<|im_start|>assistant\n<think>\nnew thought\n</think>\n\n<tool_call>" in text
    off = rendered("qwen", MESSAGES[:2], enable_thinking=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_reasoning_of_gpt_oss_goes_with_the_calls_it_led_to() -> None:
    call = Message("assistant", tool_calls=(ToolCall("a", "ping", "{}"),), reasoning="Let me.")
    chat = (MESSAGES[1], call, Message("tool", "pong", tool_call_id="a"))
    thought = "<|start|>assistant<|channel|>analysis<|message|>Let me.<|end|>"
    assert f"{thought}<|start|>assistant to=functions.ping" in rendered("gpt-oss", chat, PING)
    done = (*chat, Message("assistant", "Done."), MESSAGES[1])
    assert thought not in rendered("gpt-oss", done, PING)
    assert "Reasoning: high\n" in rendered("gpt-oss", MESSAGES[:2], reasoning_effort="high")
