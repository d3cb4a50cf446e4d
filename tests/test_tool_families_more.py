"""The families whose calls are tags, special tokens or channels, as their makers document them."""

# ruff: noqa: RUF001 - DeepSeek writes its tokens so

from __future__ import annotations

import pytest

from mlx_router.parsing import OutputParser
from tests.parsing_support import Answer, calls, parse
from tests.test_tool_families import TOOLS

KIMI = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
KIMI_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SECTION = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEP = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
Calls = list[tuple[str, object]]
NOW: Calls = [("ns.now", {})]


def kimi(name: str, arguments: str) -> str:
    return f"{KIMI_CALL[0]}{name}{KIMI_CALL[1]}{arguments}{KIMI_CALL[2]}"


def deepseek(name: str, arguments: str) -> str:
    return f"{DEEP[0]}function{DEEP[1]}{name}\n```json\n{arguments}\n```{DEEP[2]}"


def dsml(text: str) -> str:
    return text.replace("</", "</｜DSML｜").replace("<i", "<｜DSML｜i").replace("<p", "<｜DSML｜p")


GOOD: list[tuple[str, str, Calls]] = [
    (
        "glm47",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>New\nYork</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        [("get_weather", {"city": "New\nYork", "days": 3})],
    ),
    (
        "glm47",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value> 3\n</arg_value>"
        '<arg_key>where</arg_key><arg_value>{"a": [1]}</arg_value><arg_key>untyped</arg_key>'
        "<arg_value>7</arg_value></tool_call>\n<tool_call>ns.now</tool_call>",
        [("get_weather", {"city": " 3\n", "where": {"a": [1]}, "untyped": "7"}), *NOW],
    ),
    ("glm47", "<tool_call>\nns.now\n</tool_call>\n", NOW),
    (
        "glm47",
        '<tool_call>f\n<arg_key>a</arg_key>\n<arg_value></b> "\\</arg_value>\n<tool_call>ns.now\n'
        "</tool_call>",
        [("f", {"a": '</b> "\\'}), *NOW],
    ),
    ("laguna", "<tool_call>ns.now</tool_call>", NOW),
    (
        "longcat",
        "<longcat_tool_call>get_weather\n<longcat_arg_key>days</longcat_arg_key>\n"
        "<longcat_arg_value>3</longcat_arg_value>\n</longcat_tool_call>",
        [("get_weather", {"days": 3})],
    ),
    (
        "kimi_k2",
        KIMI[0]
        + kimi("functions.get_weather:0", '{"city": "Oslo"}')
        + kimi("functions.ns.now:1", "{}")
        + KIMI[1],
        [("get_weather", {"city": "Oslo"}), *NOW],
    ),
    (
        "kimi_k2",
        kimi(" get_weather:12 ", ' {"a": "}<|tool_call_end|>"} ') + "\n" + KIMI[1],
        [("get_weather", {"a": "}<|tool_call_end|>"})],
    ),
    ("kimi_k2", f"{KIMI[0]}\n{KIMI_CALL[0]}ns.now:0{KIMI_CALL[1]}{{}}{KIMI[1]}", NOW),
    (
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>'
        '\n<parameter name="tags">["a", "b"]</parameter>\n<parameter name="exact">true</parameter>'
        '\n</invoke>\n<invoke name="ns.now">\n</invoke>\n</minimax:tool_call>',
        [("get_weather", {"city": "Oslo", "tags": ["a", "b"], "exact": True}), *NOW],
    ),
    (
        "minimax_m2",
        "<minimax:tool_call><invoke name='get_weather'><parameter name=city>\na\n\n</parameter>"
        "<parameter name='note'>null</parameter></minimax:tool_call>",
        [("get_weather", {"city": "a\n", "note": None})],
    ),
    (
        "muse_spark",
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n'
        '<atem:parameter name="factor">1.5</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls>",
        [("get_weather", {"factor": 1.5})],
    ),
    (
        "deepseek_v32",
        "<｜DSML｜function_calls>\n"
        + dsml(
            '<invoke name="get_weather">\n<parameter name="untyped" string="true">[1]</parameter>\n'
            '<parameter name="city" string="false">5</parameter>\n'
            '<parameter name="days">5</parameter>\n</invoke>\n</function_calls>'
        ),
        [("get_weather", {"untyped": "[1]", "city": 5, "days": 5})],
    ),
    (
        "function_gemma",
        "<start_function_call>call:get_weather{city:<escape>New York, {US}<escape>,days:3}"
        "<end_function_call><start_function_call>call:ns.now{}<end_function_call>",
        [("get_weather", {"city": "New York, {US}", "days": 3}), *NOW],
    ),
    (
        "gemma4",
        '<|tool_call>call:get_weather{city:<|"|>Os"lo\n<|"|>,where:{a:[1,-2.5,<|"|>x<|"|>],b:{}},'
        "exact:true,note:null,tags:[]}<tool_call|>",
        [
            (
                "get_weather",
                {
                    "city": 'Os"lo\n',
                    "where": {"a": [1, -2.5, "x"], "b": {}},
                    "exact": True,
                    "note": None,
                    "tags": [],
                },
            )
        ],
    ),
    (
        "gemma4",
        '<|tool_call>call:f{ a : "b\\"c" , <|"|>d e<|"|>: Oslo N , "g":True,}call:ns.now{}'
        "<tool_call|>",
        [("f", {"a": 'b"c', "d e": "Oslo N", "g": True}), *NOW],
    ),
    ("gemma4", "<|tool_call>call:get_weather{city:5}", [("get_weather", {"city": "5"})]),
    (
        "gemma4",
        "<|tool_call>call:get_weather{days:3, city:[1, 2,true], where:{a:1,b:x},}",
        [("get_weather", {"days": 3, "city": [1, 2, True], "where": {"a": 1, "b": "x"}})],
    ),
    (
        "gemma",
        '```tool_code\nprint(get_weather("Oslo", days=3))\nns.now()\n```',
        [("get_weather", {"city": "Oslo", "days": 3}), *NOW],
    ),
    ("gemma", "```tool_code\n[f(a=[true, None]), ns.now()]", [("f", {"a": [True, None]}), *NOW]),
    (
        "deepseek",
        SECTION[0]
        + deepseek("get_weather", '{"city": "Oslo"}')
        + "\n"
        + deepseek("ns.now", "{}")
        + SECTION[1],
        [("get_weather", {"city": "Oslo"}), *NOW],
    ),
    (
        "deepseek",
        f'{SECTION[0]}{DEEP[0]}get_weather{DEEP[1]}{{"a": "```"}}{DEEP[2]}'
        f"{DEEP[0]}ns.now{DEEP[1]}{{}}{DEEP[2]}{SECTION[1]}",
        [("get_weather", {"a": "```"}), *NOW],
    ),
    (
        "harmony",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Oslo"}<|call|>',
        [("get_weather", {"city": "Oslo"})],
    ),
    (
        "harmony",
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        '\n{"a": "<|call|>"}\n<|call|><|start|>assistant<|channel|>commentary to=ns.now'
        "<|message|>{}",
        [("get_weather", {"a": "<|call|>"}), *NOW],
    ),
    (
        "granite",
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "ns.now", "arguments": {}}]',
        [("f", {"a": 1}), *NOW],
    ),
    ("granite", '<tool_call>[{"arguments": {}, "name": "ns.now"}]</tool_call>', NOW),
    (
        "phi4",
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>',
        [("f", {"a": 1})],
    ),
    ("phi4", 'functools[{"name": "ns.now", "arguments": {}}]', NOW),
]


def results(text: str, tool_format: str, **options: object) -> list[Answer]:
    return [
        parse(pieces, tool_format=tool_format, tools=TOOLS, **options)  # type: ignore[arg-type]
        for pieces in ([text], list(text))
    ]


@pytest.mark.parametrize(("tool_format", "text", "expected"), GOOD)
def test_the_familys_calls_are_read(tool_format: str, text: str, expected: Calls) -> None:
    for answer in results(text, tool_format):
        assert calls(answer) == expected
        assert (answer.content, answer.reasoning) == ("", "")


ONE = {
    "glm47": "<tool_call>ns.now\n</tool_call>",
    "kimi_k2": KIMI[0] + kimi("functions.ns.now:0", "{}") + KIMI[1],
    "minimax_m2": '<minimax:tool_call>\n<invoke name="ns.now">\n</invoke>\n</minimax:tool_call>',
    "gemma4": "<|tool_call>call:ns.now{}<tool_call|>",
    "function_gemma": "<start_function_call>call:ns.now{}<end_function_call>",
    "gemma": "```tool_code\nns.now()\n```",
    "deepseek": SECTION[0] + deepseek("ns.now", "{}") + SECTION[1],
    "granite": '<tool_call>[{"name": "ns.now", "arguments": {}}]</tool_call>',
    "phi4": '<|tool_call|>[{"name": "ns.now", "arguments": {}}]<|/tool_call|>',
}


@pytest.mark.parametrize("tool_format", ONE)
def test_text_before_and_after_a_call_is_content(tool_format: str) -> None:
    text = f"Let me see. {ONE[tool_format]}\nDone, <think>I think</think>I am."
    for answer in results(text, tool_format):
        assert answer.content == "Let me see. \nDone, I am."
        assert answer.reasoning == "I think"
        assert calls(answer) == NOW


@pytest.mark.parametrize("tool_format", sorted(ONE.keys() - {"gemma"}))
def test_a_call_after_what_is_none_is_found(tool_format: str) -> None:
    call = ONE[tool_format]
    for length in (5, 12, len(call) // 2):
        for answer in results(f"{call[:length]}? {call}", tool_format):
            assert calls(answer)[-1:] == NOW, length


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("glm47", "<tool_call>"),
        ("glm47", "<tool_call>nothing here</tool_call>"),
        ("glm47", "<tool_call>ns.now"),
        ("glm47", "<tool_call>ns.now\n<arg_k"),
        ("glm47", "<tool_call>ns.now\nIndeed"),
        ("glm47", "<tool_call><arg_key>a</arg_key><arg_value>b</arg_value></tool_call>"),
        ("glm47", "<tool_call> \n a > b"),
        ("kimi_k2", KIMI[0] + KIMI[1]),
        ("kimi_k2", KIMI[0] + " nothing"),
        ("kimi_k2", KIMI_CALL[0] + "functions.f:0{}"),
        ("kimi_k2", KIMI_CALL[0] + KIMI_CALL[1] * 2 + "{}"),
        ("kimi_k2", kimi("f:0", "[1]")),
        ("kimi_k2", kimi("a b", "{}")),
        ("kimi_k2", KIMI_CALL[0] + "f" * 2000 + KIMI_CALL[1] + "{}"),
        ("kimi_k2", KIMI_CALL[0] + "f:0<|tool_call_arg"),
        ("minimax_m2", "<minimax:tool_call>\nnothing\n</minimax:tool_call>"),
        ("minimax_m2", "<minimax:tool_call>\n</minimax:tool_call>"),
        ("minimax_m2", "<minimax:tool_call><invoke></invoke>"),
        ("minimax_m2", '<minimax:tool_call><invoke name="a<b">'),
        ("minimax_m2", '<minimax:tool_call><invoke name="a'),
        ("gemma4", "<|tool_call>call:"),
        ("gemma4", "<|tool_call>call:f(a)<tool_call|>"),
        ("gemma4", "<|tool_call>call:{}<tool_call|>"),
        ("gemma4", "<|tool_call>{}<tool_call|>"),
        ("function_gemma", "<start_function_call>none<end_function_call>"),
        ("function_gemma", "<start_function_call>call:" + "f" * 2000 + "{}"),
        ("gemma", "```tool_code\nprint(1)\n```"),
        ("gemma", "```tool_code\n```"),
        ("gemma", "```tool_code\nf(1)\n```"),
        ("gemma", "```tool_code\nx = ns.now()\n```"),
        ("gemma", "```tool_code\nf(a=__import__('os').getcwd())\n```"),
        ("gemma", "```tool_code\nf(a=" + "-" * 9999 + "1)\n```"),
        ("gemma", "```python\nns.now()\n```"),
        ("deepseek", SECTION[0] + SECTION[1]),
        ("deepseek", DEEP[0] + "function" + DEEP[1] + "f\n```python\n{}```"),
        ("deepseek", DEEP[0] + "f{}" + DEEP[2]),
        ("deepseek", DEEP[0] + "f" + DEEP[1] * 9 + "{}"),
        ("harmony", "<|channel|>" + "a" * 2000 + "<|message|>"),
        ("harmony", "<|start|>user<|message|>Hi<|end|>"),
        ("harmony", "<|channel|>commentary to=functions.f<|message|>print(1)<|call|>"),
        ("harmony", "<|channel|>commentary to=functions.f<|message|> "),
        ("harmony", "<|message|>Hi<|end|>"),
        ("granite", "<|tool_call|>[1]"),
        ("phi4", "import functools\nfunctools.cache, functools[0]"),
    ],
)
def test_what_is_no_call_is_shown_as_it_is(tool_format: str, text: str) -> None:
    for answer in results(text, tool_format):
        assert (answer.content, answer.calls) == (text, [])


@pytest.mark.parametrize(
    ("tool_format", "text", "arguments", "content"),
    [
        ("glm47", "<tool_call>f<arg_key>a</arg_key>b", "{}", "<arg_key>a</arg_key>b"),
        ("glm47", "<tool_call>f<arg_key>a\n>", "{}", "<arg_key>a\n>"),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="f"><parameter name="a">b</parameter><oops>',
            '{"a": "b"}',
            "<oops>",
        ),
        ("gemma4", "<|tool_call>call:f{a:1,b}", '{"a": 1}', ",b}"),
        ("gemma4", "<|tool_call>call:f{a:[1,{b:}", '{"a": [1, {}]}', "b:}"),
        ("gemma4", "<|tool_call>call:f{a:<|x", "{}", "a:<|x"),
        ("gemma4", "<|tool_call>call:f{a:1,b:[2,3}", '{"a": 1, "b": [2, 3]}', "}"),
        ("kimi_k2", KIMI_CALL[0] + "f:0" + KIMI_CALL[1] + "{} and", "{}", " and"),
        ("harmony", "<|channel|>x to=f<|message|>{} and<|end|>", "{}", "and"),
    ],
)
def test_a_call_that_goes_wrong_ends_there(
    tool_format: str, text: str, arguments: str, content: str
) -> None:
    for answer in results(text, tool_format):
        assert [call[1:] for call in answer.calls] == [("f", arguments)]
        assert answer.content == content


@pytest.mark.parametrize(
    ("tool_format", "text", "arguments"),
    [
        (
            "glm47",
            "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Os</arg_",
            '{"city": "Os</arg_',
        ),
        ("glm47", "<tool_call>get_weather<arg_key>days</arg_key><arg_value>3</arg_value></to", "3"),
        ("glm47", "<tool_call>get_weather<arg_key>days</arg_key><arg_value>3", '{"days": 3'),
        ("glm47", "<tool_call>get_weather<arg_key>days</arg_key>\n<arg_v", '{"days'),
        ("glm47", "<tool_call>get_weather\n<arg_key>da", '{"da'),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="get_weather"><parameter name="days">3\n</para',
            '{"days": 3\n</para',
        ),
        ("gemma4", "<|tool_call>call:get_weather{city:Os", '{"city": Os'),
        ("gemma4", "<|tool_call>call:get_weather{days:3,ci", '{"days": 3, "ci'),
        ("kimi_k2", KIMI_CALL[0] + "get_weather:0" + KIMI_CALL[1] + '{"city": "O', '{"city": "O'),
        ("gemma4", '<|tool_call>call:get_weather{city:<|"|>Os<|"', '{"city": "Os<|\\"'),
        ("harmony", '<|channel|>c to=get_weather<|message|>{"a', '{"a'),
    ],
)
def test_a_call_that_is_cut_off_keeps_what_was_said(
    tool_format: str, text: str, arguments: str
) -> None:
    for answer in results(text, tool_format):
        ((_, name, given),) = answer.calls
        assert name == "get_weather"
        assert given in (arguments, f'{{"days": {arguments}}}')
        assert answer.content == ""


@pytest.mark.parametrize(
    ("tool_format", "head", "first", "more"),
    [
        (
            "glm47",
            "<tool_call>get_weather\n<arg_key>",
            "city</arg_key>\n<arg_value>Os",
            '{"city": "Os',
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="get_weather">',
            '<parameter name="city">Os',
            '{"city": "Os',
        ),
        ("kimi_k2", f"{KIMI[0]}{KIMI_CALL[0]}get_weather:0{KIMI_CALL[1]}{{", '"ci', '"ci'),
        ("deepseek", f"{DEEP[0]}function{DEEP[1]}get_weather\n```json\n{{", '"ci', '"ci'),
        ("gemma4", "<|tool_call>call:get_weather{", 'city:<|"|>Os', '{"city": "Os'),
        ("harmony", "<|channel|>commentary to=functions.get_weather<|message|>{", '"ci', '"ci'),
    ],
)
def test_the_name_comes_first_and_arguments_stream(
    tool_format: str, head: str, first: str, more: str
) -> None:
    parser = OutputParser(None, None, tool_format, tools=TOOLS)
    deltas = parser.feed(head).tool_calls
    assert [delta.name for delta in deltas if delta.name] == ["get_weather"]
    assert "".join(delta.arguments for delta in (*deltas, *parser.feed(first).tool_calls)) in (
        more,
        "{" + more,
    )
