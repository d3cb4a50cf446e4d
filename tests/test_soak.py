"""Mixed traffic with many swaps, and many clients that leave: nothing goes wrong, nothing grows."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from statistics import median
from typing import Any

import httpx
import pytest

from tests.embedding_models import make_embedding_model
from tests.models import make_model
from tests.server import ServerProcess, Usage
from tests.soak import SCALE, times
from tests.test_lifecycle import active_requests, events
from tests.waiting import until_sync

SETTLING_SECONDS, SECONDS = 10.0, 12.0 * SCALE
CLIENTS = 8
DISCONNECTS = times(300)

TEXT_MODELS = ("llama", "qwen3")
PROMPTS = ("Hello", "What is the capital of Norway?", "Count from one to nine.")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Paris"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Three models, and room for two."""
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("soak")
    for kind in TEXT_MODELS:
        make_model(kind, models / kind)
    make_embedding_model("bert", models / "bert")
    config = {"defaults": {"cache_size": 2, "warmup_tokens": 1}, "server": {"max_queue": 6}}
    with ServerProcess(folder, config=config, models=models) as server:
        yield server


def chat(model: str, prompt: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **fields}


class Traffic:
    """Requests of all kinds, each answer checked; ``seen`` counts them by kind and status."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.seen: Counter[str] = Counter()
        self._client = client
        self._texts: dict[tuple[str, str], str] = {}
        self._vector: list[float] = []
        self._kinds: tuple[Callable[[random.Random], Awaitable[int]], ...] = (
            self.whole,
            self.stream,
            self.leave_a_stream,
            self.leave_early,
            self.call,
            self.structured,
            self.embed,
            self.mistake,
        )

    async def learn(self) -> None:
        """The right answers, one request at a time."""
        for model in TEXT_MODELS:
            for prompt in PROMPTS:
                response = await self._client.post("/chat/completions", json=chat(model, prompt))
                self._texts[model, prompt] = content(response)
        response = await self._client.post("/embeddings", json={"model": "bert", "input": "oslo"})
        self._vector = response.json()["data"][0]["embedding"]

    async def run(self, seed: int, until: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < until:
            kind = rng.choice(self._kinds)
            status = await kind(rng)
            self.seen[f"{kind.__name__} {status}"] += 1

    async def whole(self, rng: random.Random) -> int:
        model, prompt = rng.choice(list(self._texts))
        response = await self._client.post("/chat/completions", json=chat(model, prompt))
        if not shed(response):
            assert content(response) == self._texts[model, prompt]
        return response.status_code

    async def stream(self, rng: random.Random) -> int:
        model, prompt = rng.choice(list(self._texts))
        async with self._streamed(chat(model, prompt)) as response:
            if not shed(response):
                data = [each async for each in events(response)]
                assert data.pop() == "[DONE]"
                pieces = [
                    choice["delta"] for each in data for choice in json.loads(each)["choices"]
                ]
                text = "".join(piece.get("content") or "" for piece in pieces)
                assert text == self._texts[model, prompt]
        return response.status_code

    async def leave_a_stream(self, rng: random.Random) -> int:
        body = chat(rng.choice(TEXT_MODELS), rng.choice(PROMPTS), max_tokens=500)
        async with self._streamed(body) as response:
            if not shed(response):
                left = rng.randrange(6)
                async for _ in events(response):
                    left -= 1
                    if left < 0:
                        break
        return response.status_code

    async def leave_early(self, rng: random.Random) -> int:
        """Perhaps while the model loads, or before anything came."""
        body = chat(rng.choice(TEXT_MODELS), rng.choice(PROMPTS), max_tokens=500)
        try:
            async with asyncio.timeout(rng.uniform(0, 0.15)):
                response = await self._client.post("/chat/completions", json=body)
        except TimeoutError:
            return 0
        assert shed(response) or response.json()["usage"]["completion_tokens"] == 500
        return response.status_code

    async def call(self, rng: random.Random) -> int:
        body = chat("qwen3", rng.choice(PROMPTS), tools=[TOOL], tool_choice="required")
        body |= {"max_tokens": 200, "parallel_tool_calls": False}
        response = await self._client.post("/chat/completions", json=body)
        if not shed(response):
            (call,) = response.json()["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "get_weather"
            assert_fits(call["function"]["arguments"])
        return response.status_code

    async def structured(self, rng: random.Random) -> int:
        body = chat(rng.choice(TEXT_MODELS), rng.choice(PROMPTS), response_format=FORMAT)
        response = await self._client.post("/chat/completions", json={**body, "max_tokens": 200})
        if not shed(response):
            assert_fits(content(response))
        return response.status_code

    async def embed(self, rng: random.Random) -> int:
        words = ["oslo", *("lima rome paris" for _ in range(rng.randrange(3)))]
        response = await self._client.post("/embeddings", json={"model": "bert", "input": words})
        if not shed(response):
            vector = response.json()["data"][0]["embedding"]
            assert vector == pytest.approx(self._vector, abs=1e-3)
        return response.status_code

    async def mistake(self, rng: random.Random) -> int:
        body = chat("qwen3", "Hello") | rng.choice(({"n": -1}, {"model": "nobody"}, {"tools": 3}))
        response = await self._client.post("/chat/completions", json=body)
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["message"]
        return response.status_code

    def _streamed(self, body: dict[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        return self._client.stream("POST", "/chat/completions", json={**body, "stream": True})


def shed(response: httpx.Response) -> bool:
    """Whether the server was too busy, and said so as it should; any other error fails."""
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
        return True
    assert response.status_code == 200, response.text
    return False


def content(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def assert_fits(text: str) -> None:
    answer = json.loads(text)
    assert list(answer) == ["city", "warm"]
    assert answer["city"] in ("Oslo", "Paris")
    assert isinstance(answer["warm"], bool)


async def watch(server: ServerProcess, until: float) -> list[Usage]:
    """What the server holds, four times a second."""
    found = []
    while time.monotonic() < until:
        found.append(server.usage())
        await asyncio.sleep(0.25)
    return found


def assert_level(series: list[Usage]) -> None:
    """No slope between the first and the last third. The slack is for pools that are not full yet:
    what a swap or a client left behind would be more of."""
    third = len(series) // 3
    first, last = series[:third], series[-third:]
    story = "\n".join(map(str, series))
    for name, slack in (("memory", 0), ("threads", 4), ("descriptors", 2)):
        before = median(getattr(usage, name) for usage in first)
        after = median(getattr(usage, name) for usage in last)
        assert after <= 1.1 * before + slack, f"{name}: {before} to {after}\n{story}"


def assert_idle(server: ServerProcess) -> None:
    until_sync(lambda: active_requests(server) == 0)
    assert httpx.get(f"{server.base}/health", timeout=10).status_code == 200
    answer = httpx.post(f"{server.url}/chat/completions", json=chat("llama", "Hello"), timeout=30)
    assert answer.status_code == 200


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        yield client


@pytest.mark.slow
@pytest.mark.timeout(600 * SCALE)
async def test_mixed_traffic_with_many_swaps_is_answered_and_leaves_no_trace(
    server: ServerProcess, client: httpx.AsyncClient
) -> None:
    traffic = Traffic(client)
    await traffic.learn()
    # The first swaps fill pools and caches, which are bounded.
    settled = time.monotonic() + SETTLING_SECONDS
    await asyncio.gather(*(traffic.run(seed, settled) for seed in range(CLIENTS)))
    swaps = server.output().count("unloaded ")
    end = time.monotonic() + SECONDS
    watching = asyncio.create_task(watch(server, end))
    await asyncio.gather(*(traffic.run(CLIENTS + seed, end) for seed in range(CLIENTS)))
    series = await watching
    assert_idle(server)
    assert_level(series)
    assert server.output().count("unloaded ") - swaps >= 10
    for kind in ("whole", "stream", "leave_a_stream", "call", "structured", "embed"):
        assert traffic.seen[f"{kind} 200"] >= 5, traffic.seen
    assert traffic.seen["leave_early 0"] >= 5, traffic.seen
    assert "Traceback" not in server.output()


@pytest.mark.slow
@pytest.mark.timeout(600 * SCALE)
async def test_hundreds_of_random_disconnects_leave_nothing_behind(
    server: ServerProcess, client: httpx.AsyncClient
) -> None:
    traffic = Traffic(client)
    series: list[Usage] = []
    numbers = iter(range(DISCONNECTS))

    async def leave(seed: int) -> None:
        rng = random.Random(seed)
        for number in numbers:
            await rng.choice((traffic.leave_a_stream, traffic.leave_early))(rng)
            if number % 10 == 0 and number > DISCONNECTS // 5:
                series.append(server.usage())

    await asyncio.gather(*map(leave, range(CLIENTS)))
    assert_idle(server)
    assert_level(series)
