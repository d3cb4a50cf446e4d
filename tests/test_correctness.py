"""The anchor: greedy output of the server is mlx-lm's own, token for token."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import ARCHITECTURES
from tests.server import ServerProcess

TOKENS = 40  # beyond the sliding window of gemma3_text, with any prompt

PROMPTS = [
    "Hello",
    "Write a function that adds two numbers.",
    "The river runs through the valley and then it turns to the north, past the old mill. " * 3,
    "one two three four",
    "a" * 90,
    "What is the weather like in the mountains today?",
    "def f(x): return x + 1",
    "The quick brown fox jumps over the lazy dog. " * 14,  # several slices of prefill
]


class OnOneThread:
    """mlx-lm's own models, kept on one thread: their arrays must not travel."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[[], Any]) -> Any:
        answer: queue.Queue[Any] = queue.Queue()
        self._calls.put((function, answer))
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        import mlx.core as mx

        while (call := self._calls.get()) is not None:
            try:
                call[1].put(call[0]())
            except Exception as error:
                call[1].put(error)
        mx.synchronize()
        mx.clear_streams()


class Reference:
    """mlx_lm.stream_generate on the same folder: text and token ids of a greedy answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Any] = {}

    def __call__(self, kind: str, prompt: str) -> tuple[str, list[int]]:
        import mlx_lm

        if kind not in self._loaded:
            self._loaded[kind] = mlx_lm.load(str(self._folder / "tiny" / kind))
        model, tokenizer = self._loaded[kind]
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            enable_thinking=False,
        )
        pieces = list(mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=TOKENS))
        return "".join(piece.text for piece in pieces), [piece.token for piece in pieces]


@pytest.fixture(scope="module")
def reference(tiny_models: Path) -> Any:
    thread = OnOneThread()
    references = Reference(tiny_models)
    known: dict[tuple[str, str], Any] = {}

    def look_up(kind: str, prompt: str) -> tuple[str, list[int]]:
        if (kind, prompt) not in known:
            known[kind, prompt] = thread(lambda: references(kind, prompt))
        answer: tuple[str, list[int]] = known[kind, prompt]
        return answer

    yield look_up
    references._loaded.clear()
    thread.close()


def body(kind: str, prompt: str) -> dict[str, Any]:
    return {
        "model": f"tiny/{kind}",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "chat_template_kwargs": {"enable_thinking": False},
        "return_token_ids": True,
    }


def answers(server: ServerProcess, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of the answers, all asked for at once."""

    async def all_at_once() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            responses = await asyncio.gather(
                *(client.post("/chat/completions", json=body) for body in bodies)
            )
        for response in responses:
            assert response.status_code == 200, response.text
        return [response.json()["choices"][0]["token_ids"] for response in responses]

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_alone(kind: str, tiny_server: ServerProcess, reference: Any) -> None:
    for prompt in (PROMPTS[0], PROMPTS[2], PROMPTS[7]):
        _, expected = reference(kind, prompt)
        assert len(expected) == TOKENS
        assert answers(tiny_server, [body(kind, prompt)]) == [expected]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_eight_different_requests_in_one_batch(
    kind: str, tiny_server: ServerProcess, reference: Any
) -> None:
    expected = [reference(kind, prompt)[1] for prompt in PROMPTS]
    got = answers(tiny_server, [body(kind, prompt) for prompt in PROMPTS])
    assert got == expected


def test_with_a_swap_in_between(tiny_server: ServerProcess, reference: Any) -> None:
    """cache_size is 2: going round three models unloads each before it is asked again."""
    for _ in range(2):
        for kind in ("llama", "qwen3_next", "quantized"):
            _, expected = reference(kind, PROMPTS[1])
            assert answers(tiny_server, [body(kind, PROMPTS[1])]) == [expected]
    assert "unloaded tiny/llama" in tiny_server.output()


def test_streamed_text_is_the_text_of_mlx_lm(tiny_server: ServerProcess, reference: Any) -> None:
    from openai import OpenAI

    text, _ = reference("llama", PROMPTS[3])
    client = OpenAI(base_url=tiny_server.url, api_key="none")
    stream = client.chat.completions.create(
        model="tiny/llama",
        messages=[{"role": "user", "content": PROMPTS[3]}],
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    # An answer cut in the middle of a character ends before it; mlx-lm shows U+FFFD.
    assert streamed.strip() == text.rstrip("\ufffd").strip()
