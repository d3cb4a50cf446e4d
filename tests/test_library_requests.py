"""What a program may write for messages, tools and formats, and what it is told of a mistake."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mlx_router.domain import (
    ChatPrompt,
    ContentPart,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    Usage,
)
from mlx_router.errors import InvalidRequest
from mlx_router.runtime.chat import ChatResult, make_request
from mlx_router.runtime.limits import check_request

WEATHER = {"type": "function", "function": {"name": "get_weather", "strict": True}}


class Person(BaseModel):
    name: str


def prompt(**options: Any) -> ChatPrompt:
    made = make_request("Hello", None, **options).prompt
    assert isinstance(made, ChatPrompt)
    return made


def test_a_response_format_is_openais_or_a_pydantic_class() -> None:
    assert prompt().response_format == ResponseFormat()
    assert prompt(response_format={"type": "json_object"}).response_format.type == "json_object"
    found = prompt(response_format=Person).response_format
    assert found == ResponseFormat("json_schema", "Person", Person.model_json_schema(), strict=True)
    written = {"name": "Person", "schema": Person.model_json_schema(), "strict": True}
    whole = {"type": "json_schema", "json_schema": written}
    assert prompt(response_format=whole).response_format == found
    assert prompt(response_format=found).response_format is found


@pytest.mark.parametrize(
    "wrong", [{"type": "xml"}, {"type": "json_schema"}, {}, dict, "json_object", 5]
)
def test_another_response_format_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="json_schema") as caught:
        prompt(response_format=wrong)
    assert caught.value.param == "response_format"


def test_tools_and_choices() -> None:
    made = prompt(tools=[WEATHER], tool_choice="get_weather", parallel_tool_calls=False)
    assert made.tools == (Tool("get_weather", strict=True),)
    assert made.tool_choice == NamedTool("get_weather")
    assert not made.parallel_tool_calls
    assert made.restricts_answer


def test_an_answer_is_the_next_message_of_its_chat() -> None:
    calls = (ToolCall("call_1", "get_weather", "{}"),)
    answer = ChatResult("demo", "", "Hm.", calls, FinishReason.TOOL_CALLS, Usage(), ())
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    made = make_request([{"role": "user", "content": "Hi"}, answer.message, result], None).prompt
    assert isinstance(made, ChatPrompt)
    assert made.messages[1] == Message("assistant", None, tool_calls=calls, reasoning="Hm.")
    assert made.messages[2] == Message("tool", "sunny", tool_call_id="call_1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [WEATHER], "tool_choice": "get_wether"}, "get_wether"),
        ({"tool_choice": "required"}, "needs tools"),
    ],
)
def test_a_choice_without_its_tool_is_refused(options: dict[str, Any], words: str) -> None:
    request: GenerationRequest = make_request("Hello", None, **options)
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_request(request)
    assert caught.value.param == "tool_choice"


def parts(*written: Any) -> tuple[ContentPart, ...]:
    made = make_request([{"role": "user", "content": list(written)}], None).prompt
    assert isinstance(made, ChatPrompt)
    return made.parts


def test_images_and_pdfs_as_openai_writes_them() -> None:
    url = "https://example.com/a.png"
    assert parts(
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": url, "detail": "original", "pages": "2-4"}},
        {"type": "file", "file": {"file_data": "AAAA", "filename": "a\n.pdf", "pages": None}},
    ) == (
        TextPart("Look:"),
        ImagePart(url),
        ImagePart(url, "high", "2-4"),
        ImagePart("AAAA", name="a.pdf"),
    )


def test_a_program_may_give_a_file_or_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(b"\x89PNG and so on")
    from_file, from_bytes = parts(
        {"type": "image", "image": file, "detail": "low"},
        {"type": "image", "image": file.read_bytes(), "pages": "1"},
    )
    assert isinstance(from_file, ImagePart)
    assert isinstance(from_bytes, ImagePart)
    assert (from_file.detail, from_file.name) == ("low", "cat.png")
    assert (from_bytes.pages, from_bytes.name) == ("1", None)
    head, _, data = from_file.url.partition(",")
    assert head.startswith("data:")
    assert head.endswith(";base64")
    assert base64.b64decode(data) == file.read_bytes()
    assert from_bytes.url == from_file.url


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "video"}, "text, image_url, file or image, not 'video'"),
        ({"type": "image", "image": Path("/nowhere/a.png")}, "Cannot read.*/nowhere/a.png"),
        ({"type": "image", "image": Path("/")}, "Cannot read"),
        ({"type": "image", "image": "a.png"}, "Path or the bytes of a file, not str"),
        ({"type": "image"}, "lacks 'image'"),
        ({"type": "file", "file": {"file_id": "f"}}, "lacks 'file_data'"),
        ({"type": "file", "file": "AAAA"}, "is not of OpenAI's shape"),
        ({"type": "file", "file": {"file_data": b"AAAA"}}, "is a text, not bytes"),
        ({"type": "file", "file": {"file_data": "", "filename": 5}}, "is not of OpenAI's shape"),
        ({"type": "image_url", "image_url": {"url": None}}, "is a text, not NoneType"),
        ({"type": "image_url", "image_url": {"url": "", "detail": "huge"}}, "auto, low.*'huge'"),
        ({"type": "image_url", "image_url": {"url": "", "pages": 2}}, "'2-4,7', not 2"),
    ],
)
def test_what_is_not_an_image_is_named(part: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        parts(part)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([{"role": "user", "content": [{"type": "text"}]}], {}, r"messages\[0\] lacks 'text'"),
        (["Hello"], {}, r"messages\[0\] is not"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            {},
            r"messages\[0\] lacks 'function'",
        ),
        ("Hello", {"tools": [WEATHER, {"type": "function", "function": {}}]}, r"tools\[1\] lacks"),
    ],
)
def test_what_is_missing_is_named(messages: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_request(messages, None, **options)
