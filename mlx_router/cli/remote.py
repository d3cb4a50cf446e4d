"""Talking to a running server from the command line."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from mlx_router.cli.address import base_url
from mlx_router.cli.parser import Parser
from mlx_router.errors import RouterError

TIMEOUT_SECONDS = 60.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  listened on, not asked


class ServerRefused(RouterError):
    """The server cannot be reached, or said no; the message says which, and what to do."""


def add_server(parser: Parser) -> None:
    """The options that say which server is meant."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        help="address of the server (default: from the config, which is 127.0.0.1 and port 8800)",
    )
    group.add_argument("-p", "--port", metavar="PORT", help="its port, on this machine")
    group.add_argument(
        "--api-key", metavar="KEY", help="default: $MLX_ROUTER_API_KEY, else the config's first key"
    )


class Remote:
    """A server at ``base``, such as http://127.0.0.1:8800. Raises ServerRefused for a text that is
    no address."""

    def __init__(self, base: str, api_key: str | None = None) -> None:
        if not _is_web_address(base):
            raise ServerRefused(
                f"{base!r} is not the address of a server; name it with --url, like "
                "http://127.0.0.1:8800"
            )
        self.base = base.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Remote:
        """The server that the options mean. Raises ConfigError for a config with faults, and
        ServerRefused."""
        from mlx_router.cli.parser import overrides
        from mlx_router.config.loading import load_settings

        server = load_settings(arguments.config, overrides(arguments)).server
        host = _ANY_ADDRESS.get(server.ip, server.ip)
        key = arguments.api_key or next(iter(server.api_keys.values()), None)
        return cls(arguments.url or base_url(host, server.port), key)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers. Raises ServerRefused."""
        request = urllib.request.Request(  # noqa: S310  the user names the address
            self.base + path,
            data=json.dumps(body or {}).encode(),
            headers={"content-type": "application/json", **self._headers},
            method="POST",
        )
        # A proxy is for the network, and this is the user's own server.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise ServerRefused(_message(error)) from None
        except TimeoutError:  # of the answer; one while connecting is a URLError
            raise ServerRefused(
                f"{self.base} did not answer within {TIMEOUT_SECONDS:g} seconds; it may be busy. "
                "Try again, or look at its log."
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerRefused(
                f"no MLX Router answers at {self.base} ({reason}); is it running there? "
                "Name another one with --url or -p."
            ) from None
        except HTTPException:
            raise self.stranger() from None
        try:
            return json.loads(answer)
        except ValueError:
            raise self.stranger() from None

    def stranger(self) -> ServerRefused:
        """The error for an answer that MLX Router does not give."""
        return ServerRefused(
            f"what answers at {self.base} is not MLX Router, or is another version of it. "
            "Name another one with --url or -p."
        )


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        if " " in text or not text.isprintable():
            return False
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        return False


def _message(error: urllib.error.HTTPError) -> str:
    try:
        message = json.load(error)["error"]["message"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        message = None
    if not isinstance(message, str):
        return f"the server answered with status {error.code}; is it MLX Router?"
    return message
