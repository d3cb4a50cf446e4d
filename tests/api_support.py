"""A manager without models, and a client that sees an answer while it is being written."""

from __future__ import annotations

import asyncio
import json
import socket
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI

from mlx_router.api.app import create_app
from mlx_router.config.changes import Change
from mlx_router.config.settings import Settings
from mlx_router.domain import (
    Completed,
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    ModelCard,
    ModelKind,
    ModelState,
    Pressure,
    Prompt,
    Started,
    TextPrompt,
    Timings,
    Usage,
)
from mlx_router.errors import ModelNotFound
from mlx_router.memory.policy import MemoryPolicy, TokenLimits
from mlx_router.memory.probe import MemorySnapshot
from mlx_router.runtime.embedding import EmbeddingRequest, Embeddings
from mlx_router.runtime.status import LoadedInfo, ModelInfo, RouterStatus
from mlx_router.telemetry.activity import Activity

GB = 2**30
MODEL = "org/tiny-model"
USER = [{"role": "user", "content": "Hello?"}]

Events = AsyncGenerator[GenerationEvent, None]
Script = Callable[[GenerationRequest], Events]


def started(**changes: Any) -> Started:
    return Started(**{"model": MODEL, "prompt_tokens": 7, "max_tokens": 100, **changes})


def completed(tokens: int = 3) -> Completed:
    usage = Usage(7, tokens, cached_tokens=4, reasoning_tokens=1)
    return Completed(usage, Timings(queued=0.001, prefill=0.01, decode=0.1))


def says(*texts: str) -> Script:
    """Each text is one Delta of choice 0; then the answer is complete."""
    return plays(*[Delta(0, content=text) for text in texts])


def plays(*deltas: Delta, reason: FinishReason = FinishReason.STOP) -> Script:
    """Started, these deltas, one Finished for every choice, Completed."""

    async def script(request: GenerationRequest) -> Events:
        yield started()
        for delta in deltas:
            yield delta
        for index in range(request.n):
            yield Finished(index, reason)
        yield completed(len(deltas))

    return script


def fails(error: Exception, *before: GenerationEvent) -> Script:
    """Some events, then an error."""

    async def script(request: GenerationRequest) -> Events:
        for event in before:
            yield event
        raise error

    return script


class Held:
    """A script that waits: ``go`` lets it continue, ``closed`` says that it was given up."""

    def __init__(self, *before: GenerationEvent) -> None:
        self.before = before
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, request: GenerationRequest) -> Events:
        try:
            for event in self.before:
                yield event
            self.waiting.set()
            await self.go.wait()
            if not any(isinstance(event, Started) for event in self.before):
                yield started()
            yield Delta(0, content="late")
            yield Finished(0, FinishReason.STOP)
            yield completed()
        finally:
            self.closed.set()


class FakeManager:
    """Plays ``script`` for every request and remembers the requests."""

    def __init__(self, script: Script | None = None, settings: Settings | None = None) -> None:
        self.script = script or says("Hello", " world", "!")
        self.settings = settings or Settings()
        self.requests: list[GenerationRequest] = []
        self.embedded: list[EmbeddingRequest] = []
        self.infos = [info(MODEL), info("org/other", state=ModelState.READY)]
        self.pressure = Pressure.NORMAL
        self.activity = Activity()
        self.life: list[str] = []
        self.open = 0

    async def generate(self, request: GenerationRequest) -> Events:
        self.requests.append(request)
        events = self.script(request)
        self.open += 1
        try:
            async for event in events:
                yield event
        finally:
            self.open -= 1
            await events.aclose()

    async def embed_request(self, request: EmbeddingRequest) -> Embeddings:
        """Two numbers for each text: how long it is, and zero."""
        self.embedded.append(request)
        packed = tuple(array("f", [len(text), 0]).tobytes() for text in request.texts)
        return Embeddings(request.model or MODEL, packed, sum(map(len, request.texts)))

    async def atokenize(
        self, model: str | None, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> list[int]:
        """The words' lengths, after a 1 for the special token."""
        assert isinstance(prompt, TextPrompt)
        return [1] * add_special_tokens + [len(word) for word in (prompt.text or "").split()]

    async def adetokenize(self, model: str | None, ids: Sequence[int]) -> str:
        return "".join(await self.atoken_texts(model, ids))

    async def atoken_texts(self, model: str | None, ids: Sequence[int]) -> list[str]:
        return [f"<{token_id}>" for token_id in ids]

    async def afind(self, model: str | None = None) -> ModelCard:
        return self.model(model or MODEL).card

    def models(self) -> list[ModelInfo]:
        return self.infos

    def model(self, name: str) -> ModelInfo:
        for one in self.infos:
            if name in (one.card.id, one.card.short_name, *one.aliases):
                return one
        raise ModelNotFound(f"There is no model {name!r}.", param="model")

    def status(self) -> RouterStatus:
        return RouterStatus(
            version="1.2.3",
            pressure=self.pressure,
            policy=MemoryPolicy(threshold_bytes=10 * GB),
            uptime_seconds=12.5,
            request_count=len(self.requests),
            current_model="org/other",
            loaded=[LoadedInfo("org/other", ModelState.READY, 2 * GB, 1, 2, 0.0)],
            memory=snapshot(),
            recommended_model=MODEL,
            can_load_models=[MODEL],
        )

    async def aload(self, model: str) -> ModelInfo:
        self.life.append(f"load {model}")
        return self.model(model)

    async def aunload(self, model: str) -> None:
        self.life.append(f"unload {self.model(model).card.id}")

    async def apin(self, model: str, pinned: bool = True) -> ModelInfo:
        self.life.append(f"{'pin' if pinned else 'unpin'} {model}")
        return self.model(model)

    async def areload(self) -> list[Change]:
        return []

    async def astart(self) -> None:
        self.life.append("start")

    async def aclose(self) -> None:
        self.life.append("close")


def info(model: str, **changes: Any) -> ModelInfo:
    card = ModelCard(
        id=model,
        path=Path("unused"),
        kind=ModelKind.TEXT,
        architecture="llama",
        size_bytes=2 * GB,
        context_length=8192,
        required_bytes=3 * GB,
        supports_tools=True,
        created=1_700_000_000,
    )
    values: dict[str, Any] = {
        "card": card,
        "state": ModelState.UNLOADED,
        "max_tokens": 4096,
        "token_limits": TokenLimits.for_discovered(4096),
        "max_tokens_now": 4096,
        "chat_template": None,
        "can_load_now": True,
        "load_status_reason": "fits",
    }
    return ModelInfo(**{**values, **changes})


def snapshot() -> MemorySnapshot:
    return MemorySnapshot(
        total=16 * GB,
        available=8 * GB,
        used=8 * GB,
        free=4 * GB,
        buffers=GB // 2,
        cached=3 * GB,
        swap_total=4 * GB,
        swap_used=GB,
        kernel_pressure=Pressure.MODERATE,
        process=3 * GB,
        mlx_active=2 * GB,
        mlx_cache=GB // 4,
        mlx_peak=5 * GB // 2,
    )


def settings(**server: Any) -> Settings:
    return Settings.model_validate({"server": server})


def app_for(manager: FakeManager) -> FastAPI:
    """``manager`` is told to end as a server's process would be."""
    return create_app(manager, manager.settings, end=lambda: manager.life.append("end"))


def client_for(
    manager: FakeManager, *, host: str = "localhost", address: str = "127.0.0.1"
) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app_for(manager), client=(address, 50_000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


async def post(manager: FakeManager, **body: Any) -> httpx.Response:
    """POST /v1/chat/completions with a usable message unless the body has others."""
    async with client_for(manager) as client:
        return await client.post("/v1/chat/completions", json={"messages": USER, **body})


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the signals are pytest's


@asynccontextmanager
async def serving(app: Any, lifespan: Literal["on", "off"] = "on") -> AsyncIterator[str]:
    """The app behind a real socket, on this event loop; yields its base URL."""
    config = uvicorn.Config(
        app,
        port=0,
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        lifespan=lifespan,
    )
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def http_scope(
    headers: list[tuple[bytes, bytes]], path: str = "/v1/chat/completions"
) -> dict[str, Any]:
    """What a server tells an app of a request that posts with exactly these headers."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


class Exchange:
    """One request, answered message by message. Use :meth:`text_with` to wait for output."""

    def __init__(self, app: Any, body: bytes, path: str = "/v1/chat/completions") -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.complete = False
        self.readable = asyncio.Event()
        self.readable.set()
        self.aborted = False
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._body: list[bytes] = [body]
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        self.transport = self  # as uvicorn has it: send.__self__.transport.abort()
        self.task = asyncio.create_task(app(http_scope(headers, path), self.receive, self.send))

    @classmethod
    def post(cls, manager: FakeManager, **body: Any) -> Exchange:
        return cls(app_for(manager), json.dumps({"messages": USER, **body}).encode())

    async def receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        await self.readable.wait()
        assert not self.complete
        if message["type"] == "http.response.start":
            assert self.status == 0
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            assert self.status
            self.text += message["body"].decode()
            self.complete = not message["more_body"] if "more_body" in message else True
        self._news.set()

    def abort(self) -> None:
        self.aborted = True

    def disconnect(self) -> None:
        self._gone.set()

    async def text_with(self, part: str) -> str:
        """Wait until the answer holds ``part``; the text so far."""
        while part not in self.text:
            assert not self.task.done(), f"ended without {part!r}: {self.text!r}"
            self._news.clear()
            waiters = {asyncio.create_task(self._news.wait()), self.task}
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        return self.text

    async def end(self) -> str:
        """Wait for the end of the request; the whole text."""
        await asyncio.wait_for(self.task, 10)
        return self.text


def sse(text: str) -> list[Any]:
    """The JSON objects of an SSE body; it must end with [DONE]."""
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") for event in events), text
    assert events[-1] == "data: [DONE]", text
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
