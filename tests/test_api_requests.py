"""Request fields: each is honoured, or refused by name; none is lost silently."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from mlx_router.api.translate import ChatCall, chat_call
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    ChatPrompt,
    ImagePart,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from mlx_router.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from tests.api_support import USER, FakeManager, client_for, post

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def call(**body: Any) -> ChatCall:
    return chat_call({"messages": USER, **body}, Settings())


def prompt(**body: Any) -> ChatPrompt:
    found = call(**body).request.prompt
    assert isinstance(found, ChatPrompt)
    return found


def refused(**body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(**body)
    return caught.value


# --- honoured -------------------------------------------------------------------------------


def test_every_number_arrives() -> None:
    request = call(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        max_tokens=10,
        n=2,
        seed=42,
        logit_bias={"7": -100, "8": 1.5},
        logprobs=True,
        top_logprobs=5,
        timeout=1.5,
        ignore_eos=True,
    ).request
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (
        0,
        0.5,
        3,
        0.1,
    )
    assert sampling.repetition_penalty == 1.1
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 2)
    assert (request.max_tokens, request.n, request.seed) == (10, 2, 42)
    assert request.logit_bias == {7: -100, 8: 1.5}
    assert (request.logprobs, request.timeout, request.ignore_eos) == (5, 1.5, True)


def test_what_is_not_said_stays_unsaid() -> None:
    request = call().request
    assert request.model is None
    assert request.max_tokens is None
    assert request.seed is None
    assert request.logprobs is None
    assert request.timeout is None
    assert request.sampling.temperature is None
    assert request.n == 1


def test_null_means_not_said() -> None:
    names = ["model", "max_tokens", "temperature", "stop", "n", "tools", "tool_choice", "stream"]
    names += ["logit_bias", "response_format", "seed", "stream_options", "audio", "functions"]
    assert call(**dict.fromkeys(names)) == call()


def test_max_completion_tokens_wins_and_any_size_is_accepted() -> None:
    assert call(max_tokens=5, max_completion_tokens=9).request.max_tokens == 9
    assert call(max_tokens=10**12).request.max_tokens == 10**9  # more than any context


def test_a_whole_number_may_be_written_with_a_point() -> None:
    request = call(max_tokens=5.0, n=2.0, seed=-1.0, top_k=3.0, logprobs=True, top_logprobs=4.0)
    assert request == call(max_tokens=5, n=2, seed=-1, top_k=3, logprobs=True, top_logprobs=4)
    assert refused(max_tokens=5.5).message == "max_tokens must be a whole number (got 5.5)."
    assert refused(n=9.0).message == "n must be at most 8 (got 9.0)."


def test_negative_seeds_are_seeds_of_their_own() -> None:
    seeds = {call(seed=seed).request.seed for seed in (-1, -2, 1, 2)}
    assert len(seeds) == 4
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("given", "wanted"), [("x", ("x",)), (["a", "b"], ("a", "b")), ([], ()), (None, ())]
)
def test_stop_is_a_text_or_a_list(given: Any, wanted: tuple[str, ...]) -> None:
    assert call(stop=given).request.stop == wanted


def test_logprobs_without_alternatives() -> None:
    assert call(logprobs=True).request.logprobs == 0
    assert call(logprobs=False).request.logprobs is None


def test_all_roles_and_contents() -> None:
    messages = prompt(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Please."}]},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        ]
    ).messages
    assert [m.role for m in messages] == ["system", "developer", "user", "assistant", "tool"]
    assert messages[1].content == (TextPart("Please."),)
    assert messages[2].name == "Ann"
    assert messages[3].content is None
    assert messages[3].reasoning == "hm"
    assert messages[3].tool_calls == (ToolCall("call_1", "f", "{}"),)
    assert messages[4].tool_call_id == "call_1"


def test_arguments_sent_as_an_object_become_json_text() -> None:
    past = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [*USER, {"role": "assistant", "tool_calls": [past]}]
    assert prompt(messages=messages).messages[1].tool_calls[0].arguments == '{"a":1}'


def test_images_and_pdfs_in_every_spelling() -> None:
    pdf = "data:application/pdf;base64,AAAA"
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "https://example.com/b.png"},
        {"type": "image_url", "image_url": {"url": pdf, "detail": None, "pages": "2-4,7"}},
        {"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": "AAAA", "filename": "", "pages": "2"}},
    ]
    assert prompt(messages=[{"role": "user", "content": parts}]).messages[0].content == (
        TextPart("Look:"),
        ImagePart("https://example.com/a.png", "low"),
        ImagePart("https://example.com/b.png", "auto"),
        ImagePart(pdf, "auto", "2-4,7"),
        ImagePart(pdf, name="a.pdf"),
        ImagePart("AAAA", pages="2"),
    )


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_an_image_may_be_in_a_message_of_any_role(role: str) -> None:
    parts = [{"type": "image_url", "image_url": "https://example.com/a.png"}]
    message = {"role": role, "content": parts, "tool_call_id": "c" if role == "tool" else None}
    found = prompt(messages=[message, *USER])
    assert found.parts == (ImagePart("https://example.com/a.png"),)
    assert found.messages[0].role == role


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("x" * 60 + "é" * 60, "x" * 60 + "é" * 4),
        ("a\r\nx: y\u202e\x1b[0m.pdf", "ax: y[0m.pdf"),
        ("\x00\n ", None),
        (None, None),
    ],
)
def test_of_a_filename_only_what_can_be_shown_is_kept(given: str | None, shown: str) -> None:
    part = {"type": "file", "file": {"file_data": "AAAA", "filename": given}}
    (file,) = prompt(messages=[{"role": "user", "content": [part]}]).parts
    assert isinstance(file, ImagePart)
    assert file.name == shown


def test_tools_and_choices() -> None:
    found = prompt(tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False)
    assert found.tools == (Tool("weather", parameters={"type": "object"}), Tool("clock"))
    assert found.tool_choice == "required"
    assert found.parallel_tool_calls is False
    named = {"type": "function", "function": {"name": "clock"}}
    assert prompt(tools=[WEATHER, CLOCK], tool_choice=named).tool_choice == NamedTool("clock")
    assert prompt(tools=[CLOCK]).tool_choice == "auto"
    assert prompt(tools=[CLOCK], tool_choice="none").tool_choice == "none"


def test_allowed_tools_leave_only_those() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}
    found = prompt(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [tool.name for tool in found.tools] == ["clock"]
    assert found.tool_choice == "required"


def test_unknown_tool_types_are_left_out_with_a_warning() -> None:
    found = call(tools=[{"type": "web_search"}, CLOCK, {"type": "namespace", "x": 1}])
    assert isinstance(found.request.prompt, ChatPrompt)
    assert [tool.name for tool in found.request.prompt.tools] == ["clock"]
    assert found.warnings == ("tools of unknown type left out: web_search, namespace",)


async def test_warnings_and_ignored_fields_are_in_headers() -> None:
    extras = {"chat_id": 1, "mirostat": 2, "bäd\r\nx: y": 1, "absent": None}
    for stream in (True, False):
        body = {"tools": [{"type": "web_search"}], "stream": stream, **extras}
        response = await post(FakeManager(), **body)
        assert response.status_code == 200
        assert response.headers["x-mlx-router-ignored"] == "chat_id,mirostat,b%C3%A4d%0D%0Ax: y"
        assert "web_search" in response.headers["x-mlx-router-warning"]


async def test_no_such_headers_for_a_plain_request() -> None:
    response = await post(FakeManager(), user="u", store=False, metadata={"a": "b"})
    assert "x-mlx-router-ignored" not in response.headers
    assert "x-mlx-router-warning" not in response.headers


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert prompt().response_format == ResponseFormat()
    assert prompt(response_format={"type": "text"}).response_format == ResponseFormat()
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert prompt(response_format=wanted).response_format == ResponseFormat(
        "json_schema", "n", schema, True
    )
    assert prompt(response_format={"type": "json_object"}).response_format.type == "json_object"
    beside = prompt(response_format={"type": "json_object", "schema": schema}).response_format
    assert (beside.type, beside.schema) == ("json_schema", schema)


def test_thinking_in_every_spelling() -> None:
    assert prompt(enable_thinking=False).template_kwargs == {"enable_thinking": False}
    found = prompt(chat_template_kwargs={"thinking": True, "level": 2, "name": "x"})
    assert found.template_kwargs == {"thinking": True, "level": 2, "name": "x"}
    assert prompt(reasoning_effort="none").template_kwargs == {"enable_thinking": False}
    assert prompt(reasoning_effort="high").reasoning_effort == "high"


def test_chunk_size_follows_the_config_for_streams() -> None:
    assert call(stream=True).request.chunk_tokens == 8
    assert (call().request.chunk_tokens or 0) > 100


# --- refused --------------------------------------------------------------------------------

NUMBERS = {
    "max_tokens": "1",
    "max_completion_tokens": "1",
    "temperature": "0",
    "top_p": "0",
    "top_k": "0",
    "min_p": "0",
    "repetition_penalty": "0",
    "presence_penalty": "-2",
    "frequency_penalty": "-2",
    "n": "1",
    "top_logprobs": "0",
    "timeout": "0",
    "seed": "",
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-(2**63) - 1, -3, 2**63, 10**30, 1e308, "1", True, [], {}])
def test_a_number_out_of_bounds_names_field_and_value(name: str, value: Any) -> None:
    if name == "seed" and value == -3:
        return  # a seed may be negative
    if isinstance(value, int) and abs(value) >= 2**63:
        value = orjson.loads(str(value))  # what really arrives
    error = refused(**{name: value})
    assert error.param == name
    assert error.message.startswith(f"{name} must be ")
    assert "(got " in error.message


@pytest.mark.parametrize("name", ["max_tokens", "repetition_penalty", "n", "timeout"])
def test_zero_is_refused_where_it_makes_no_sense(name: str) -> None:
    error = refused(**{name: 0})
    assert error.param == name
    assert error.message.endswith("(got 0).")


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "presence_penalty"])
def test_zero_is_taken_where_openai_takes_it(name: str) -> None:
    assert getattr(call(**{name: 0}).request.sampling, name) == 0


def test_messages_that_say_what_to_do() -> None:
    named = refused(tools=[{"type": "function", "function": {"name": "a b"}}]).message
    assert named == r'tools.0.function.name must match the pattern ^\S+$ (got "a b").'
    assert refused(temperature=3).message == "temperature must be at most 2 (got 3)."
    assert refused(top_p="a").message == 'top_p must be a number (got "a").'
    assert refused(stop=5).message == "stop must be a string or a list (got 5)."
    assert refused(messages=[]).message == "messages must have at least 1 item(s) (got [])."
    with pytest.raises(InvalidRequest, match=r"^messages is required\.$"):
        chat_call({}, Settings())
    assert refused(reasoning_effort="huge").param == "reasoning_effort"
    assert "'low'" in refused(reasoning_effort="huge").message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages.0.role"),
        ({"content": "x"}, "messages.0.role"),
        ({"role": "function", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": ["x"]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages.0.content.0.image_url.url",
        ),
        ({"role": "user", "content": [{"type": "video"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages.0.content.0"),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
            "messages.0.content.0.file.file_id",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf"}}]},
            "messages.0.content.0.file.file_data",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"pages": 2}}]},
            "messages.0.content.0.file.pages",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"pages": "1," * 600}}]},
            "messages.0.content.0.file.pages",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"filename": "x" * 5000}}]},
            "messages.0.content.0.file.filename",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
            "messages.0.tool_calls",
        ),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages.0.function_call"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages.0.tool_calls.0.function"),
        ("hello", "messages.0"),
    ],
)
def test_a_bad_message_is_named(message: Any, param: str) -> None:
    assert refused(messages=[message]).param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": ["a", 1]}, "stop.1"),
        ({"stop": "x" * 2000}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 9}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"streaming_format": "xml"}, "streaming_format"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any", "tools": [CLOCK]}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clok"}}, "tools": [CLOCK]},
            "tool_choice.function.name",
        ),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a"),
        ({"chat_template_kwargs": {f"k{i}": 1 for i in range(40)}}, "chat_template_kwargs"),
        ({"model": 5}, "model"),
        ({"messages": "hi"}, "messages"),
    ],
)
def test_a_bad_field_is_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body).param == param


def test_a_near_miss_is_pointed_out() -> None:
    choice = {"type": "function", "function": {"name": "clok"}}
    assert "Did you mean 'clock'?" in refused(tool_choice=choice, tools=[CLOCK]).message


@pytest.mark.parametrize(
    "body",
    [
        {"audio": {"voice": "x"}},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content"}},
        {"web_search_options": {"search_context_size": "low"}},
        {"web_search_options": {}},
        {"functions": [{"name": "f"}]},
        {"function_call": "auto"},
        {"moderation": {"model": "x"}},
    ],
)
def test_what_is_not_supported_is_refused_by_name(body: dict[str, Any]) -> None:
    error = refused(**body)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == next(iter(body))


def test_harmless_values_of_unsupported_fields_pass() -> None:
    body = {"modalities": ["text"], "functions": [], "audio": None, "context_overflow": "error"}
    assert call(**body).ignored == ()


@pytest.mark.parametrize("model", ["x" * 1_000_000, "x" * 513])
def test_an_endless_model_name_is_not_found(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        call(model=model)
    assert len(caught.value.message) < 200


def test_an_empty_model_name_means_the_default() -> None:
    assert call(model="").request.model is None


# --- bodies ---------------------------------------------------------------------------------


async def send(body: bytes) -> tuple[int, dict[str, Any], float]:
    manager = FakeManager()
    async with client_for(manager) as client:
        began = time.process_time()
        response = await client.post("/v1/chat/completions", content=body)
        spent = time.process_time() - began
    assert not manager.requests
    return response.status_code, response.json()["error"], spent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"messages": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"messages": "\xff"}',
        b'{"messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"a=1&b=2",
    ],
)
async def test_a_body_that_is_no_json_object_is_a_quick_400(body: bytes) -> None:
    status, error, spent = await send(body)
    assert status == 400
    assert error["code"] == "invalid_json"
    assert error["type"] == "invalid_request_error"
    assert spent < 0.5


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps({"messages": USER * 1_000_000}),
        b'{"messages":[' + b"[]," * 1_000_000 + b"[]]}",
        b'{"messages":[' + b"0," * 2_000_000 + b"0]}",
        orjson.dumps({"messages": USER * 10_001}),
    ],
)
async def test_a_million_items_are_refused_before_they_cost_time(body: bytes) -> None:
    status, _, spent = await send(body)
    assert status == 400
    assert spent < 1.0
