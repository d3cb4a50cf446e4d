"""What real clients and agents send works; and the scripted engine, which stands in for a model
when client programs are tested, does as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from mlx_router.config.settings import Settings
from mlx_router.engine.scripted import ScriptedOptions
from mlx_router.engine.scripted_text import CANNED
from tests.api_support import FakeManager, app_for, sse
from tests.server import ServerProcess
from tests.test_api_scripted import router

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 6},
        "days": {"type": "integer", "minimum": 3, "maximum": 5},
        "unit": {"enum": ["celsius", "kelvin"]},
        "when": {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "days", "unit", "when", "place"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number", "exclusiveMaximum": -10}},
            "required": ["lat"],
        }
    },
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def client(scripted_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=scripted_server.base, timeout=30) as client:
        yield client


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(CHAT, json={"model": "scripted", "messages": USER, **fields})


# --- no model -------------------------------------------------------------------------------


async def test_without_a_model_the_configured_one_answers() -> None:
    async with router(defaults={"model": "scripted-2"}) as one:
        for model in ({}, {"model": None}, {"model": ""}):
            response = await one.client.post(CHAT, json={"messages": USER, **model})
            assert response.json()["model"] == "scripted-2"
        await one.post(model="scripted")
        assert (await one.post(model=None)).json()["model"] == "scripted-2"


async def test_without_a_model_the_one_used_last_answers() -> None:
    async with router() as one:
        refused = await one.client.post(CHAT, json={"messages": USER})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "model"
        for used in ("scripted-2", "scripted"):
            await one.post(model=used)
            for path, body in (
                (CHAT, {"messages": USER}),
                ("/v1/completions", {"prompt": "x"}),
            ):
                assert (await one.client.post(path, json=body)).json()["model"] == used


def test_without_a_model_the_only_one_answers(demo_server: ServerProcess) -> None:
    body = httpx.post(f"{demo_server.base}{CHAT}", json={"messages": USER}, timeout=60).json()
    assert body["model"] == "demo"


# --- no prefix ------------------------------------------------------------------------------

BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"model": "scripted", "messages": USER},
    "/v1/completions": {"model": "scripted", "prompt": "x"},
    "/v1/tokenize": {"model": "scripted", "prompt": "x"},
    "/v1/detokenize": {"model": "scripted", "tokens": [72]},
    "/v1/embeddings": {"model": "scripted", "input": "x"},
}
ROUTES = [
    (path, method)
    for path, methods in app_for(FakeManager()).openapi()["paths"].items()
    for method in methods
    if path.startswith("/v1/")
]


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_every_route_answers_without_the_prefix(
    path: str, method: str, client: httpx.Client
) -> None:
    def ask(path: str, body: Any) -> tuple[int, set[str]]:
        sent = {"json": body} if method == "post" else {}
        response = client.request(method, path.format(model="scripted"), **sent)
        return response.status_code, set(response.json())

    body = BODIES[path] if method == "post" else None
    status, keys = ask(path, body)
    assert status == 200 or path == "/v1/embeddings"  # no scripted model embeds
    short, short_keys = ask(path.removeprefix("/v1"), body)
    assert short == status
    # There are two healths: /health is the light one, and has a part of the other.
    assert short_keys == keys or (path == "/v1/health" and short_keys < keys)
    if method == "post":
        assert ask(path, {"model": 5})[0] == ask(path.removeprefix("/v1"), {"model": 5})[0] == 400


# --- more tokens than there is room for -----------------------------------------------------


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("asked", [32_000, 10**12, 2**63 - 1])
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_tokens_are_clamped_not_refused(
    field: str, asked: int, stream: bool, client: httpx.Client
) -> None:
    response = chat(client, stream=stream, **{field: asked})
    assert response.status_code == 200
    limit = int(response.headers["x-mlx-router-max-tokens"])
    assert 0 < limit < asked
    assert response.headers["x-mlx-router-clamped"]


def test_a_limit_that_fits_is_not_mentioned(client: httpx.Client) -> None:
    assert "x-mlx-router-clamped" not in chat(client, max_tokens=20).headers


# --- tools that nobody here knows -----------------------------------------------------------

UNKNOWN: list[dict[str, Any]] = [
    {"type": "web_search"},
    {"type": "web_search_preview", "search_context_size": "medium"},
    {"type": "namespace", "name": "x", "tools": []},
    {"type": "custom", "custom": {"name": "code"}},
    {"type": "mcp", "server_label": "x", "server_url": "https://example.com"},
    {"type": "local_shell"},
]


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_tools_are_left_out_with_a_warning(stream: bool, client: httpx.Client) -> None:
    for tool in UNKNOWN:
        response = chat(client, tools=[tool, CLOCK], stream=stream)
        assert response.status_code == 200
        assert tool["type"] in response.headers["x-mlx-router-warning"]
    response = chat(client, tools=UNKNOWN, tool_choice="auto", stream=stream)
    assert response.status_code == 200
    assert all(tool["type"] in response.headers["x-mlx-router-warning"] for tool in UNKNOWN)


def test_known_tools_beside_unknown_ones_are_called(client: httpx.Client) -> None:
    body = chat(client, tools=[*UNKNOWN, CLOCK], tool_choice="required").json()
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "clock"


# --- silence --------------------------------------------------------------------------------


def test_keep_alives_come_every_15_seconds() -> None:
    assert Settings().server.keep_alive_seconds == 15


async def test_keep_alives_come_while_a_tool_call_is_withheld() -> None:
    """The engine is at work, token by token, but the call cannot be told before its name."""
    words = " ".join(f"word{number}" for number in range(40))
    text = f'<tool_call>\n{{"arguments": {{"text": "{words}"}}, "name": "clock"}}\n</tool_call>'
    options = ScriptedOptions(text=text, step_delay=0.01)
    async with router(options, keep_alive_seconds=0.05) as one:
        exchange = one.exchange(stream=True, tools=[CLOCK])
        told = await exchange.end()
    before, _, after = told.partition('"tool_calls":[')
    assert before.count(": keep-alive\n\n") >= 2
    assert '"content":"' not in before.replace('"content":""', "")
    assert after
    chunks = sse(told)
    deltas = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    assert json.loads(arguments) == {"text": words}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


# --- the scripted engine --------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "get_weather"}}, None]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_or_named_tool_is_called_with_arguments_of_its_schema(
    choice: Any, stream: bool, client: httpx.Client
) -> None:
    question = [{"role": "user", "content": "Hi!" if choice else "Please use get_weather now."}]
    asked = {"messages": question, "tools": [CLOCK, WEATHER], "tool_choice": choice}
    response = chat(client, stream=stream, **asked)
    if stream:
        deltas = [
            call
            for chunk in sse(response.text)
            for call in chunk["choices"][0]["delta"].get("tool_calls", [])
        ]
        name = deltas[0]["function"]["name"]
        arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    else:
        (call,) = response.json()["choices"][0]["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
    assert name == "get_weather"
    Draft202012Validator(SCHEMA).validate(json.loads(arguments))


def test_a_required_tool_is_called(client: httpx.Client) -> None:
    body = chat(client, tools=[WEATHER], tool_choice="required").json()
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert chat(client, tools=[WEATHER]).json()["choices"][0]["finish_reason"] == "stop"


def test_a_response_format_gets_an_instance_of_its_schema(client: httpx.Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    text = chat(client, response_format=wanted).json()["choices"][0]["message"]["content"]
    Draft202012Validator(SCHEMA).validate(json.loads(text))
    shown = chat(client, response_format={"type": "json_object"}).json()
    assert isinstance(json.loads(shown["choices"][0]["message"]["content"]), dict)


def test_anything_else_gets_a_canned_text_token_by_token(client: httpx.Client) -> None:
    answers = [chat(client).json()["choices"][0]["message"]["content"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] == f'You said: "Hello there". {CANNED}'
    streamed = sse(chat(client, stream=True, return_token_ids=True).text)
    deltas = [chunk["choices"][0] for chunk in streamed[1:-1]]
    assert len(deltas) > 5
    ids = chat(client, return_token_ids=True).json()["choices"][0]["token_ids"]
    assert [token for delta in deltas for token in delta["token_ids"]] == ids
    assert len(ids) > 30


def test_it_needs_no_weights(scripted_server: ServerProcess, client: httpx.Client) -> None:
    assert not list(scripted_server.folder.rglob("*.safetensors"))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
        "scripted",
        "scripted-2",
        "scripted-vision",
    ]
