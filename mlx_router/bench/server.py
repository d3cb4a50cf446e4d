"""Models measured at a running MLX Router, over HTTP in OpenAI's protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpcore

from mlx_router.bench.target import PATIENCE_SECONDS, Answer, Stopwatch, Subject
from mlx_router.errors import InvalidRequest, RouterError

_CONNECT_SECONDS = 10.0
_TIMEOUTS = {"connect": _CONNECT_SECONDS, "read": PATIENCE_SECONDS, "write": PATIENCE_SECONDS}


class ServerFailed(RouterError):
    """The server cannot be reached, said no, or is none of ours; the message says which."""


class ServerTarget:
    """A :class:`~mlx_router.bench.target.Target` at ``base``, such as http://127.0.0.1:8800. Use it
    in an ``async with`` block. Methods raise ServerFailed, and :meth:`find` InvalidRequest too."""

    def __init__(self, base: str, api_key: str | None = None) -> None:
        self._base = base
        self._headers = [("content-type", "application/json")]
        if api_key:
            self._headers.append(("authorization", f"Bearer {api_key}"))
        # No proxy, whatever the environment says: those are for the network.
        self._pool = httpcore.AsyncConnectionPool(max_connections=None)

    async def __aenter__(self) -> ServerTarget:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def find(self, name: str) -> Subject:
        return _subject(await self._json("GET", f"/v1/models/{quote(name)}"))

    async def subjects(self) -> list[Subject]:
        listed = (await self._json("GET", "/v1/models"))["data"]
        return [subject for subject in map(_subject, listed) if subject.writes_text]

    async def default(self) -> str | None:
        return None

    async def tokenize(self, model: str, text: str) -> list[int]:
        found = await self._json("POST", "/v1/tokenize", {"model": model, "prompt": text})
        tokens: list[int] = found["tokens"]
        return tokens

    async def is_ready(self, model: str) -> bool:
        found = await self._json("GET", f"/v1/models/{quote(model)}")
        return bool(found["state"] == "ready")

    async def unload(self, model: str) -> None:
        """The server's models are for all its clients: they stay."""

    async def load(self, model: str) -> None:
        await self.ask(model, await self.tokenize(model, "Hello"), 1)

    async def ask(self, model: str, prompt: Sequence[int], max_tokens: int) -> Answer:
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "timeout": PATIENCE_SECONDS,
            "stream": True,
            "streaming_format": "sse",
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        watch = Stopwatch()
        usage: dict[str, Any] | None = None
        async with self._response("POST", "/v1/completions", body) as response:
            async for event in _events(response):
                if "error" in event:
                    raise ServerFailed(_message(event, response.status))
                for choice in event["choices"]:
                    if choice.get("token_ids"):
                        watch.piece(len(choice["token_ids"]))
                usage = event.get("usage") or usage
        if usage is None:
            raise ServerFailed(f"{self._base} ended an answer without saying so. See its log.")
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return watch.answer(usage["prompt_tokens"], usage["completion_tokens"], cached)

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._response(method, path, body) as response:
            return _parsed(await response.aread())

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpcore.Response]:
        """A response with status 200. Whatever goes wrong with it is a ServerFailed, and what the
        server says of a model an InvalidRequest."""
        content = None if body is None else json.dumps(body).encode()
        extensions = {"timeout": _TIMEOUTS}
        url, headers = self._base + path, self._headers
        try:
            async with self._pool.stream(
                method, url, headers=headers, content=content, extensions=extensions
            ) as response:
                if response.status == 200:
                    yield response
                    return
                message = _message(_parsed(await response.aread()), response.status)
                kind = InvalidRequest if response.status in (400, 404) else ServerFailed
                raise kind(message)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise ServerFailed(
                f"no MLX Router answers at {self._base} ({error or type(error).__name__}); is it "
                "running there? Name another one with --url."
            ) from None
        except (LookupError, TypeError, ValueError):
            raise ServerFailed(
                f"what answers at {self._base} is not MLX Router, or is another version of it. "
                "Name another one with --url."
            ) from None


async def _events(response: httpcore.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of the events of an SSE stream."""
    rest = b""
    async for piece in response.aiter_stream():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def _parsed(content: bytes) -> Any:
    """Raises ValueError for what is no JSON object."""
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _message(body: Mapping[str, Any], status: int) -> str:
    """What the server says. Raises LookupError or TypeError if it is not in OpenAI's shape."""
    return str(body["error"]["message"] or f"status {status}")


def _subject(model: Mapping[str, Any]) -> Subject:
    memory = model["memory_requirements"]
    return Subject(
        id=model["id"],
        context_length=model["context_window"],
        writes_text=model["capabilities"]["chat"],
        refusal=None if memory["can_load_now"] else memory["load_status_reason"],
        quantization=model["quantization"],
        size_bytes=model["size_bytes"],
    )
