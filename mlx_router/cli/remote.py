"""Talking to a running server from the command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote, urlsplit

from mlx_router.cli.address import asked_at, base_url
from mlx_router.cli.parser import EXIT_UNREACHABLE, Parser
from mlx_router.errors import ConfigError, RouterError

TIMEOUT_SECONDS = 60.0
PATIENCE_SECONDS = 3600.0  # for a model to be fetched and loaded, or for its answers to end
_STATUS_KEYS = {"memory", "memory_limits", "router_memory", "models", "loaded_models", "requests"}
_API_KEY = re.compile(r"[!-~]+")  # what the config allows as one


class ServerRefused(RouterError):
    """The server said no, or is no MLX Router; the message says which, and what to do. ``code`` is
    the one that the server gave, such as ``model_not_found``."""


class ServerUnreachable(ServerRefused):
    """Nothing answers at the address."""

    code = "server_unreachable"
    exit_code = EXIT_UNREACHABLE


def add_server(parser: Parser) -> None:
    """The options that say which server is meant."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        help="address of the server (default: from the config, which is 127.0.0.1 and port 8800)",
    )
    group.add_argument("-p", "--port", metavar="PORT", help="its port, on this machine")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="default: $MLX_ROUTER_API_KEY, else the config's first key (not with --url)",
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """MLX Router never sends its clients elsewhere, and nobody else is to see the API key."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """A server at ``base``, such as http://127.0.0.1:8800. Raises ServerRefused for a text that is
    no address.

    What talks to it raises ServerUnreachable, and ServerRefused for an error that it answers.
    ``timeout`` is in seconds, of silence; None: a minute.
    """

    def __init__(self, base: str, api_key: str | None = None) -> None:
        if not _is_web_address(base):
            raise ServerRefused(
                f"{base!r} is not the address of a server; name it with --url, like "
                "http://127.0.0.1:8800"
            )
        self.base = base.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # A proxy is for the network, and this is the user's own server.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Remote:
        """The server that the options mean. Raises ConfigError for wrong use and for a config with
        faults, and ServerRefused."""
        from mlx_router.cli.parser import overrides
        from mlx_router.config.loading import load_settings

        if arguments.url and arguments.port:
            raise ConfigError("--url and -p both say where the server is: use one of them")
        server = load_settings(arguments.config, overrides(arguments)).server
        key = given_key(arguments.api_key)
        if arguments.url:  # the config's keys are for its own server
            return cls(arguments.url, key)
        key = key or next(iter(server.api_keys.values()), None)
        return cls(base_url(asked_at(server.ip), server.port), key)

    def get(self, path: str, *, timeout: float | None = None) -> Any:
        """The JSON that the server answers."""
        with self._open("GET", path, None, timeout) as response:
            answer = response.read()
        return self._parsed(answer)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """The JSON that the server answers."""
        with self._open("POST", path, body or {}, timeout) as response:
            answer = response.read()
        return self._parsed(answer)

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[tuple[str, str], None, None]:
        """Server-sent events as they come: ``("data", text)``, and ``("comment", text)`` for what
        only keeps the connection open. Closing the generator closes the connection, which ends the
        answer."""
        with self._open("POST", path, body, None) as response:
            for line in self._lines(response):
                field, _, text = line.partition(":")
                if field in ("data", ""):
                    yield field or "comment", text.removeprefix(" ")

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """GET /hub/status: everything of this moment."""
        found = self.get("/hub/status", timeout=timeout)
        if not isinstance(found, dict) or not found.keys() >= _STATUS_KEYS:
            raise self.stranger()
        return found

    def model(self, name: str) -> dict[str, Any]:
        """A model as GET /v1/models/{name} has it, by id, alias or short name."""
        found = self.get(f"/v1/models/{quote(name, errors='replace')}")
        if not isinstance(found, dict) or found.get("object") != "model":
            raise self.stranger()
        return found

    def act(
        self, path: str, body: Mapping[str, Any], *, timeout: float | None = None
    ) -> dict[str, Any]:
        """POST to a route that answers with the model it acted on."""
        found = self.post(path, body, timeout=timeout)
        if not isinstance(found, dict) or found.get("object") != "model":
            raise self.stranger()
        return found

    def stranger(self) -> ServerRefused:
        """The error for an answer that MLX Router does not give."""
        return ServerRefused(
            f"what answers at {self.base} is not MLX Router, or is another version of it. "
            "Name another one with --url or -p."
        )

    def broken(self) -> ServerRefused:
        """The error for a stream that ends too soon."""
        return ServerRefused(
            f"the connection to {self.base} broke before the answer was complete; "
            "the server may have ended. Look at its log."
        )

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None
    ) -> Iterator[HTTPResponse]:
        """A response, and for what goes wrong until its end the error that says so."""
        seconds = TIMEOUT_SECONDS if timeout is None else timeout
        headers = dict(self._headers)
        data = None
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), "application/json"
        try:
            request = urllib.request.Request(  # noqa: S310  the user names the address
                self.base + path, data=data, headers=headers, method=method
            )
            with self._opener.open(request, timeout=seconds) as response:
                yield response
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                raise self.stranger() from None
            raise _refusal(error) from None
        except TimeoutError:  # of the answer; one while connecting is a URLError
            raise ServerRefused(
                f"{self.base} did not answer within {seconds:g} seconds; it may be busy. "
                "Try again, or look at its log.",
                code="timeout",
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerUnreachable(
                f"no MLX Router answers at {self.base} ({reason}); is it running there? "
                "Name another one with --url or -p."
            ) from None
        except HTTPException:
            raise self.stranger() from None

    def _lines(self, response: HTTPResponse) -> Iterator[str]:
        try:
            for line in response:
                yield line.decode(errors="replace").rstrip("\r\n")
        except TimeoutError:
            raise
        except (OSError, HTTPException):
            raise self.broken() from None

    def _parsed(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError:
            raise self.stranger() from None


def given_key(option: str | None) -> str | None:
    """The API key of the command line, else of the environment. Raises ConfigError, without the
    key, for one that no server can have."""
    key = option or os.environ.get("MLX_ROUTER_API_KEY")
    if key and not _API_KEY.fullmatch(key):
        name = "--api-key" if option else "MLX_ROUTER_API_KEY"
        raise ConfigError(
            f"{name}: this is no API key; use ASCII letters, digits and signs, without spaces"
        )
    return key or None


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        if " " in text or not text.isprintable():
            return False
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        return False


def _refusal(error: urllib.error.HTTPError) -> ServerRefused:
    try:
        return refusal(json.load(error))
    except (OSError, HTTPException, ValueError):
        return ServerRefused(f"the server answered with status {error.code}; is it MLX Router?")


def refusal(answer: Any) -> ServerRefused:
    """The error that a server's answer tells of. Raises ValueError if it tells of none."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(error, dict) or not isinstance(message, str):
        raise ValueError("no error in OpenAI's shape")
    # It goes to a terminal, and whoever answers may be a stranger.
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
    return ServerRefused(text, code=error.get("code"))
