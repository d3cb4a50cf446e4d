"""How the older messages of a chat are summarised, step by step, with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from mlx_router import GenerationRequest, MLXModelManager, Settings, Started
from mlx_router.api.app import create_app
from mlx_router.domain import ModelCard, TextPrompt
from mlx_router.engine.base import Job
from mlx_router.engine.scripted import (
    ScriptedEngine,
    ScriptedFactory,
    ScriptedOptions,
    scripted_cards,
)
from mlx_router.engine.scripted_text import decode
from mlx_router.errors import ContextLengthExceeded, InvalidRequest, RequestTimeout
from mlx_router.runtime.chat import collect, make_request
from mlx_router.runtime.summarize import MAX_PASSES
from tests.api_support import Exchange, FakeManager, plays, post, sse, started
from tests.context_support import CONTEXT, DEMO, OLDER, ROUNDS, chat
from tests.media_support import encoded, gradient


class Recorder(ScriptedEngine):
    def __init__(self, options: ScriptedOptions | None, jobs: list[Job]) -> None:
        super().__init__(options)
        self._jobs = jobs

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        super().add(job)


class RecordingFactory(ScriptedFactory):
    """``jobs`` are all that its engines were given."""

    def __init__(self, options: ScriptedOptions | None = None) -> None:
        super().__init__(options)
        self._script = options
        self.jobs: list[Job] = []

    def engine(self, card: ModelCard) -> ScriptedEngine:
        self.engines.append(Recorder(self._script, self.jobs))
        return self.engines[-1]

    def prompts(self) -> list[dict[str, Any]]:
        """The chats behind the jobs."""
        return [json.loads(decode(job.prompt)) for job in self.jobs]

    def asked(self) -> list[str]:
        """What the passes of a summary were asked; the last job is the answer."""
        return [chat["messages"][0]["content"] for chat in self.prompts()[:-1]]


@asynccontextmanager
async def scripted(
    options: ScriptedOptions | None = None,
    *,
    context_length: int = CONTEXT,
    overflow: str | None = None,
    default: str = "error",
    **server: Any,
) -> AsyncIterator[tuple[MLXModelManager, RecordingFactory]]:
    """A manager with one model, whose engine follows the script."""
    model = {"path": str(DEMO), "context_length": context_length, "context_overflow": overflow}
    settings = Settings.model_validate(
        {
            "models": {"small": model},
            "defaults": {"model": "small", "context_overflow": default},
            "server": server,
        }
    )
    factory = RecordingFactory(options)
    async with MLXModelManager(settings, factory=factory) as manager:
        yield manager, factory


@pytest.mark.parametrize(
    ("request_says", "model_says", "default_says", "summarised"),
    [
        (None, None, "error", False),
        (None, None, "summarize", True),
        (None, "error", "summarize", False),
        (None, "summarize", "error", True),
        ("error", "summarize", "summarize", False),
        ("summarize", "error", "error", True),
    ],
)
async def test_request_comes_before_model_before_defaults(
    request_says: Any, model_says: Any, default_says: str, summarised: bool
) -> None:
    options = ScriptedOptions(text="They count.")
    async with scripted(options, overflow=model_says, default=default_says) as (manager, _):
        said = {} if request_says is None else {"context_overflow": request_says}
        asking = manager.achat(chat(ROUNDS), **said)
        if summarised:
            assert (await asking).summarized_messages == OLDER
        else:
            with pytest.raises(ContextLengthExceeded):
                await asking


async def test_a_text_longer_than_the_context_is_folded() -> None:
    messages, context = chat(30), 1000
    options = ScriptedOptions(text="They count.")
    how: dict[str, Any] = {"context_length": context, "overflow": "summarize"}
    async with scripted(options, **how) as (manager, factory):
        answer = await manager.achat(messages, max_tokens=20, thinking=True)
    tasks = factory.asked()
    assert len(tasks) > 2
    pieces = []
    for number, task in enumerate(tasks):
        earlier, piece = re.findall(
            r"(?:<earlier>\n(.*)\n</earlier>\n\n)?<conversation>\n(.*)"
            r"\n</conversation>$",
            task,
            re.DOTALL,
        )[0]
        assert earlier == ("They count." if number else "")
        pieces.append(piece)
    told = "\n".join(f"{m['role']}: {m['content']}" for m in messages[1:-6])
    assert "".join(pieces) == told
    for job, prompt in list(zip(factory.jobs, factory.prompts(), strict=True))[:-1]:
        assert len(job.prompt) + job.max_tokens <= context
        assert job.max_tokens == context // 8
        assert job.sampling.temperature == 0
        assert "thinking" not in prompt
    final = factory.prompts()[-1]
    assert final["thinking"]
    first = "Summary of the 55 earlier messages of this conversation:\nThey count."
    contents = [message["content"] for message in final["messages"]]
    assert contents[0] == "Answer briefly."
    assert contents[1] == first
    assert contents[2:] == [message["content"] for message in messages[-6:]]
    assert answer.summarized_messages == 55
    assert answer.usage.prompt_tokens == len(factory.jobs[-1].prompt)


async def test_tools_are_for_the_answer_only() -> None:
    look = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    async with scripted(overflow="summarize") as (manager, factory):
        answer = await manager.achat(chat(ROUNDS, "Use look."), tools=[look])
    assert [call.name for call in answer.tool_calls] == ["look"]
    assert ["tools" in prompt for prompt in factory.prompts()] == [
        *[False] * (len(factory.jobs) - 1),
        True,
    ]


async def test_too_much_text_is_refused_before_any_work() -> None:
    async with scripted(overflow="summarize") as (manager, factory):
        with pytest.raises(ContextLengthExceeded) as caught:
            await manager.achat(chat(40 * MAX_PASSES))
        whole = len(await manager.atokenize(None, TextPrompt(str(chat(40 * MAX_PASSES)))))
    assert factory.jobs == []
    tokens = int(caught.value.message.split("resulted in ")[1].split()[0])
    assert tokens > whole / 2


async def test_kept_messages_that_are_too_long_are_refused_before_any_work() -> None:
    async with scripted(overflow="summarize") as (manager, factory):
        with pytest.raises(ContextLengthExceeded, match="your messages resulted in"):
            await manager.achat(chat(ROUNDS, "word " * 700))
    assert factory.jobs == []


async def test_a_model_that_says_nothing_makes_no_summary() -> None:
    async with scripted(ScriptedOptions(text=""), overflow="summarize") as (manager, factory):
        with pytest.raises(ContextLengthExceeded):
            await manager.achat(chat(ROUNDS))
    assert factory.jobs


async def test_a_model_that_cannot_but_think_leaves_its_notes() -> None:
    options = ScriptedOptions(text="<think>\nThey count.\n</think>\n\n")
    async with scripted(options, overflow="summarize") as (manager, factory):
        await manager.achat(chat(ROUNDS))
    assert factory.prompts()[-1]["messages"][1]["content"].endswith(":\nThey count.")


async def test_little_room_for_the_answer_is_a_reason_to_summarise() -> None:
    options = ScriptedOptions(text="They count.")
    messages = chat(ROUNDS)
    async with scripted(options, context_length=100_000) as (manager, _):
        size = (await manager.achat(messages, max_tokens=1)).usage.prompt_tokens
    for room, asked, summarised in (
        (20, 40, OLDER),
        (20, 20, 0),
        (300, None, 0),
        (200, None, OLDER),
    ):
        async with scripted(options, context_length=size + room) as (manager, _):
            said: dict[str, Any] = {} if asked is None else {"max_tokens": asked}
            answer = await manager.achat(messages, context_overflow="summarize", **said)
            assert answer.summarized_messages == summarised, (room, asked)


async def test_a_chat_that_cannot_be_shorter_is_answered_in_what_room_there_is() -> None:
    messages = chat(2)
    async with scripted(context_length=100_000) as (manager, _):
        size = (await manager.achat(messages, max_tokens=1)).usage.prompt_tokens
    async with scripted(context_length=size + 5, overflow="summarize") as (manager, _):
        answer = await manager.achat(messages)
    assert answer.summarized_messages == 0
    assert answer.usage.completion_tokens == 5


async def test_the_time_for_the_summary_counts() -> None:
    gate = threading.Event()
    async with scripted(ScriptedOptions(step_gate=gate), overflow="summarize") as (manager, _):
        await manager.aload("small")
        with pytest.raises(RequestTimeout, match="could not be summarised within"):
            await manager.achat(chat(ROUNDS), timeout=0.2)
        gate.set()
        assert (await manager.achat("Hello")).content
        assert manager.status().loaded[0].active == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_summary(stream: bool) -> None:
    gate, stepping = threading.Event(), threading.Event()
    options = ScriptedOptions(step_gate=gate, stepping=stepping)
    async with scripted(options, overflow="summarize") as (manager, factory):
        await manager.aload("small")
        app = create_app(manager, manager.settings)
        body = {"messages": chat(ROUNDS), "stream": stream}
        exchange = Exchange(app, json.dumps(body).encode())
        assert await asyncio.to_thread(stepping.wait, 30)
        exchange.disconnect()
        await exchange.end()
        assert manager.status().loaded[0].active == 0
        gate.set()
        assert (await manager.achat("Hello")).content
        assert len(factory.jobs) == 2  # the first step of the summary, and the new question
        assert not factory.engines[0].busy


async def test_a_program_that_gives_up_ends_the_summary() -> None:
    gate, stepping = threading.Event(), threading.Event()
    options = ScriptedOptions(step_gate=gate, stepping=stepping)
    async with scripted(options, overflow="summarize") as (manager, factory):
        await manager.aload("small")
        asking = asyncio.create_task(manager.achat(chat(ROUNDS)))
        assert await asyncio.to_thread(stepping.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert manager.status().loaded[0].active == 0
        gate.set()
        assert (await manager.achat("Hello")).content
        assert len(factory.jobs) == 2


async def test_a_stream_is_kept_alive_meanwhile() -> None:
    gate = threading.Event()
    options = ScriptedOptions(text="They count.", step_gate=gate)
    async with scripted(options, overflow="summarize", keep_alive_seconds=0.05) as (manager, _):
        app = create_app(manager, manager.settings)
        exchange = Exchange(app, json.dumps({"messages": chat(ROUNDS), "stream": True}).encode())
        await exchange.text_with(": keep-alive")
        gate.set()
        chunks = sse(await exchange.end())
    assert chunks[0]["context"]["summarized_messages"] == OLDER
    assert "x-mlx-router-summarized" not in exchange.headers  # they had to be sent before


async def test_images_are_summarised_in_words_and_stay_in_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = replace(scripted_cards()[-1], context_length=CONTEXT)
    monkeypatch.setattr("mlx_router.engine.scripted.scripted_cards", lambda: [card])
    messages = chat(ROUNDS)
    for index, width in ((1, 31), (3, 32), (-1, 33)):
        image = {"type": "image", "image": encoded(gradient(width, 32))}
        text = {"type": "text", "text": messages[index]["content"]}
        messages[index]["content"] = [text, image]
    request = make_request(messages, None, context_overflow="summarize")
    factory = RecordingFactory(ScriptedOptions(text="They count."))
    async with MLXModelManager(Settings(), engine="scripted", factory=factory) as manager:
        answer = await collect(manager.generate(replace(request, cache_scope="ann")))
    assert answer.summarized_messages == OLDER
    *summaries, last = factory.prompts()
    assert "".join(factory.asked()).count("[image]") == 2
    assert not any("images" in prompt for prompt in summaries)
    assert last["images"] == ["33x32"]
    assert {job.cache_scope for job in factory.jobs} == {"ann"}


async def test_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    options = ScriptedOptions(text="They count.")
    async with scripted(options, overflow="summarize") as (manager, _):
        with caplog.at_level(logging.INFO, "mlx_router.runtime.summarize"):
            await manager.achat(chat(ROUNDS))
    assert any(r.getMessage().startswith("summarised 15 of 22") for r in caplog.records)


async def test_programs_get_the_same_checks() -> None:
    async with scripted() as (manager, _):
        with pytest.raises(InvalidRequest, match="is for chats"):
            await anext(
                manager.generate(
                    GenerationRequest(TextPrompt("Hello"), context_overflow="summarize")
                )
            )
        wrong: Any = "truncate"
        with pytest.raises(InvalidRequest, match="'error' or 'summarize', not 'truncate'"):
            await manager.achat("Hello", context_overflow=wrong)
        long = GenerationRequest(TextPrompt("word " * 700))
        with pytest.raises(ContextLengthExceeded, match="in your prompt; 1 for the completion"):
            await anext(manager.generate(long))


async def test_headers_and_body_show_it_only_if_it_happened() -> None:
    async def script(request: GenerationRequest) -> Any:
        async for event in plays()(request):
            if isinstance(event, Started):
                event = started(summarized_messages=8, summary_tokens=93)
            yield event

    plain, summarised = await post(FakeManager()), await post(FakeManager(script))
    assert "context" not in plain.json()
    assert "x-mlx-router-summarized" not in plain.headers
    assert summarised.json()["context"] == {"summarized_messages": 8, "summary_tokens": 93}
    assert summarised.headers["x-mlx-router-summarized"] == "8"
    streamed = await post(FakeManager(script), stream=True, return_token_ids=True)
    assert streamed.headers["x-mlx-router-summarized"] == "8"
    first = sse(streamed.text)[0]
    assert first["context"] == {"summarized_messages": 8, "summary_tokens": 93}
    assert first["prompt_token_ids"] == []
