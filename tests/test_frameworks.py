"""Agent frameworks call a tool and use its result: the demo model's, behind a real server and in
this process."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import runpy
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient

from mlx_router import MLXModelManager, async_openai_client
from mlx_router.client import BASE_URL, AsyncTransport, Transport
from mlx_router.config.settings import Settings
from tests.documents import ROOT, examples
from tests.server import ServerProcess

if TYPE_CHECKING:  # each takes seconds to import
    import agents
    from langchain_core.messages import BaseMessage
    from langchain_openai import ChatOpenAI
    from pydantic_ai import Agent

QUESTION = "What is the weather in Paris?"
# Made up for this file: the model cannot say it unless it read the tool's result.
RESULT = "snowy, 21 degrees"
ANSWER = f"The weather in Paris is {RESULT}."


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LOGFIRE_SEND_TO_LOGFIRE"):
        monkeypatch.setenv(name, "false")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_API_KEY", "LOGFIRE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked() -> list[str]:
    """The cities that the tool was called with."""
    return []


@pytest.fixture(scope="module")
def manager() -> Iterator[MLXModelManager]:
    with MLXModelManager(demo=True) as manager:
        yield manager


@pytest.fixture(params=["server", "in process"])
def server(request: pytest.FixtureRequest) -> ServerProcess | None:
    """The server to ask; None: the manager."""
    if request.param == "in process":
        return None
    found: ServerProcess = request.getfixturevalue("demo_server")
    return found


# --- LangChain ------------------------------------------------------------------------------


@pytest.fixture
def langchain_model(server: ServerProcess | None, manager: MLXModelManager) -> Iterator[ChatOpenAI]:
    from langchain_openai import ChatOpenAI

    with DefaultHttpxClient(transport=None if server else Transport(manager)) as client:
        yield ChatOpenAI(
            model="demo",
            base_url=server.url if server else BASE_URL,
            api_key="none",  # type: ignore[arg-type]
            temperature=0,
            max_retries=0,
            stream_usage=True,
            http_client=client,
            http_async_client=None
            if server
            else DefaultAsyncHttpxClient(transport=AsyncTransport(manager)),
        )


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_langchain_calls_a_tool(
    langchain_model: ChatOpenAI, asked: list[str], streamed: bool
) -> None:
    from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        asked.append(city)
        return RESULT

    bound = langchain_model.bind_tools([get_weather])

    def answer(chat: list[BaseMessage]) -> BaseMessage:
        if not streamed:
            return bound.invoke(chat)
        first, *others = bound.stream(chat)
        assert others, "it came in pieces"
        assert isinstance(first, AIMessageChunk)
        return first.__add__(others)

    chat: list[BaseMessage] = [HumanMessage(QUESTION)]
    called = answer(chat)
    (call,) = called.tool_calls  # type: ignore[attr-defined]
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert called.response_metadata["finish_reason"] == "tool_calls"
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    last = answer([*chat, called, result])
    assert last.content == ANSWER
    assert asked == ["Paris"]
    assert last.usage_metadata["output_tokens"] > 0  # type: ignore[attr-defined]


# --- Pydantic AI ----------------------------------------------------------------------------


def weather_agent(client: AsyncOpenAI, asked: list[str]) -> Agent[None, str]:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("demo", provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, model_settings={"temperature": 0})

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        asked.append(city)
        return RESULT

    return agent


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """For what wants an event loop without saying so, and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def test_pydantic_ai_calls_a_tool(
    server: ServerProcess | None,
    manager: MLXModelManager,
    loop: asyncio.AbstractEventLoop,
    asked: list[str],
) -> None:
    from pydantic_ai.messages import ModelResponse

    client = openai_client(server, manager)
    result = weather_agent(client, asked).run_sync(QUESTION)
    loop.run_until_complete(client.close())
    assert result.output == ANSWER
    assert asked == ["Paris"]
    responses = [one for one in result.all_messages() if isinstance(one, ModelResponse)]
    assert [one.finish_reason for one in responses] == ["tool_call", "stop"]
    assert result.usage.output_tokens > 0


def openai_client(server: ServerProcess | None, manager: MLXModelManager) -> AsyncOpenAI:
    if server is None:
        return async_openai_client(manager)
    return AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture
async def client(
    server: ServerProcess | None, manager: MLXModelManager
) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(server, manager) as client:
        yield client


async def test_pydantic_ai_calls_a_tool_in_a_stream(client: AsyncOpenAI, asked: list[str]) -> None:
    async with weather_agent(client, asked).run_stream(QUESTION) as result:
        pieces = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER
    assert asked == ["Paris"]
    assert result.usage.output_tokens > 0


# --- OpenAI Agents --------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_openai_agents_call_a_tool(
    client: AsyncOpenAI, asked: list[str], streamed: bool
) -> None:
    import agents

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        asked.append(city)
        return RESULT

    agent = agents.Agent(
        name="weather",
        tools=[get_weather],
        model=agents.OpenAIChatCompletionsModel("demo", client),
        model_settings=agents.ModelSettings(temperature=0, include_usage=True),
    )
    config = agents.RunConfig(tracing_disabled=True)
    pieces: list[str] = []
    result: agents.result.RunResultBase
    if streamed:
        result = streaming = agents.Runner.run_streamed(agent, QUESTION, run_config=config)
        async for event in streaming.stream_events():
            data = event.data if event.type == "raw_response_event" else None
            if data is not None and data.type == "response.output_text.delta":
                pieces.append(data.delta)
        assert len(pieces) > 1
        assert "".join(pieces) == ANSWER
    else:
        result = await agents.Runner.run(agent, QUESTION, run_config=config)
    assert result.final_output == ANSWER
    assert asked == ["Paris"]
    assert [type(item).__name__ for item in result.new_items] == [
        "ToolCallItem",
        "ToolCallOutputItem",
        "MessageOutputItem",
    ]
    assert result.context_wrapper.usage.output_tokens > 0


# --- docs/AGENTS_INTEGRATION.md -------------------------------------------------------------

DOCUMENT = "docs/AGENTS_INTEGRATION.md"
TEXT = (ROOT / DOCUMENT).read_text()
EXAMPLES = [one for one in examples(DOCUMENT) if "llama_index" not in one[1]]  # not installed


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


# Frameworks leave connections to be closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("where", "code"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_examples_for_frameworks_run(
    where: str,
    code: str,
    demo_server: ServerProcess,
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        code.replace("http://localhost:8800/v1", demo_server.url).replace('"coder"', '"demo"')
    )
    runpy.run_path(str(file), run_name="example")
    gc.collect()
    said = capsys.readouterr().out
    assert "sunny" in said or "Paris" in said or "MLX" in said or "Hello" in said


def test_settings_for_agents_are_those_of_their_formats() -> None:
    values: list[Any] = [json.loads(text) for text in snippets("json")]
    values += [yaml.safe_load(text) for text in snippets("yaml")]
    values += [tomllib.loads(text) for text in snippets("toml")]
    assert len(values) >= 8
    (ours,) = [value for value in values if "defaults" in value]
    settings = Settings.model_validate(ours)
    (model,) = settings.models.values()
    assert model.aliases == ["coder"]
    # The same numbers everywhere: what the agent is told is what the server does.
    for words in (
        '"context_limit": {}', '"context": {}', "contextLength: {}", "GOOSE_CONTEXT_LIMIT: {}",
        "model_context_window = {}", "context_window={}",
    ):  # fmt: skip
        assert words.format(model.context_length) in TEXT
    for words in ('"output": {}', "maxTokens: {}", "GOOSE_MAX_TOKENS: {}"):
        assert words.format(settings.defaults.max_tokens) in TEXT
    for code in examples(DOCUMENT):
        compile(code[1], code[0], "exec")
    shell = shutil.which("bash")
    assert shell
    for script in snippets("sh"):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_what_agents_are_told_of_the_server_is_so(demo_server: ServerProcess) -> None:
    for route in ("responses", "messages"):
        assert f"no `/v1/{route}` yet" in TEXT
        assert httpx.post(f"{demo_server.url}/{route}", json={}).status_code == 404
    defaults = Settings()
    assert f"({defaults.defaults.timeout:g} s)" in TEXT
    assert f"`server.max_queue` ({defaults.server.max_queue})" in TEXT
    assert f"every {defaults.server.keep_alive_seconds:g} seconds" in TEXT
