"""What every request passes before any route: its id, its host, its sender, its size.

Pure ASGI: a streamed token costs one extra function call here. The checks, in order: header size,
Host, sender's address (when no keys are set), CORS preflight, Origin, API key, body size. A
refusal is answered here; so is any exception that the app lets out, without its internals.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable
from secrets import token_hex
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_router.api.body import ClientGone
from mlx_router.api.errors import HeadersTooLarge, as_router_error, error_response
from mlx_router.api.hosts import (
    HostHeader,
    host_allowed,
    is_loopback,
    is_private,
    machine_names,
    origin_is_host,
    parse_host,
)
from mlx_router.api.stream import drop_connection
from mlx_router.config.settings import Settings
from mlx_router.errors import (
    AuthenticationFailed,
    InvalidRequest,
    PayloadTooLarge,
    PermissionDenied,
)
from mlx_router.telemetry.logging import bind_request_id

log = logging.getLogger(__name__)
access = logging.getLogger("mlx_router.access")

MAX_HEADER_BYTES = 32 * 1024
CLIENT_CLOSED = 499  # nginx's number for a client that left before the answer

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Answered without a key: no secret is in the pages, and a browser sends none with a link.
_OPEN_PATHS = frozenset({"/health", "/hub", "/hub/"})
_WATCHED = ("/hub", "/metrics", "/health", "/v1/health")
_OPEN_FOLDER = "/hub/assets/"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_EXPOSED = b"x-request-id, x-mlx-router-model, x-mlx-router-max-tokens, x-mlx-router-clamped, " + (
    b"x-mlx-router-memory-pressure, x-mlx-router-summarized, x-mlx-router-notice, "
    b"x-mlx-router-timed-out, x-mlx-router-ignored, x-mlx-router-warning, retry-after"
)
_NO_KEY_FROM_AFAR = (
    "Requests from a public address need an API key, and this server has none: set "
    "server.api_keys in its config."
)


class HasSettings(Protocol):
    @property
    def settings(self) -> Settings: ...


class _Policy:
    """The parts of the settings that the guard needs, prepared for comparing."""

    def __init__(self, settings: Settings) -> None:
        server = settings.server
        self.settings = settings
        self.keys = [(name, _digest(key.encode())) for name, key in server.api_keys.items()]
        self.hosts = [host.lower().removesuffix(".") for host in server.allowed_hosts]
        self.origins = frozenset(origin.lower().rstrip("/") for origin in server.cors_origins)
        self.max_body = int(server.max_body_mb * 1_000_000)

    def key_name(self, key: bytes) -> str | None:
        """The name of this key, None if there is none like it. Compares with all of them, so the
        time tells nothing."""
        given, found = _digest(key), None
        for name, digest in self.keys:
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def cors_origin(self, origin: str) -> bool:
        return "*" in self.origins or origin.lower() in self.origins


class Guard:
    """ASGI middleware; follows ``source.settings`` when they are replaced."""

    def __init__(self, app: ASGIApp, source: HasSettings) -> None:
        self.app = app
        self._source = source
        self._machine = machine_names()
        self._policy = _Policy(source.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with bind_request_id(_identify(scope)):
                await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        # There are no websockets: one is closed by returning without accepting it.

    @property
    def policy(self) -> _Policy:
        settings = self._source.settings
        if settings is not self._policy.settings:
            self._policy = _Policy(settings)
        return self._policy

    def check(self, scope: Scope, policy: _Policy) -> HostHeader:
        """Raises what is wrong with the request's headers or its sender."""
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"The headers are larger than {MAX_HEADER_BYTES} bytes.")
        host = self._check_host(scope, policy)
        client = scope.get("client")  # None on a unix socket
        near = client is None or is_loopback(client[0])
        near = near and _controls(scope, host, policy)
        scope["mlx_router.control"] = bool(policy.keys) or near  # a key is checked for later
        if client is not None and not policy.keys:
            if not is_private(client[0]):
                raise PermissionDenied(_NO_KEY_FROM_AFAR)
            if _is_control(scope) and not near:
                raise PermissionDenied(
                    "Without server.api_keys, this server is controlled from its own machine only, "
                    "and by pages of other origins only if server.cors_origins names them."
                )
        return host

    def _check_host(self, scope: Scope, policy: _Policy) -> HostHeader:
        values = [value for name, value in scope["headers"] if name == b"host"]
        host = parse_host(values[0].decode("latin-1")) if len(values) == 1 else None
        if host is None:
            raise InvalidRequest("The Host header is missing or malformed.", code="invalid_host")
        if not host_allowed(host.name, policy.hosts, self._machine):
            raise PermissionDenied(
                f"The host name {host.name!r} is not known to be this server's. If it is, add it "
                "to server.allowed_hosts in the config.",
                code="host_not_allowed",
            )
        return host


class _Exchange:
    """One request and its response."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard = guard
        self.policy = guard.policy
        self.scope = scope
        self._receive = receive
        self._send = send
        self._status = 0
        self._body_bytes = 0
        self._extra: list[tuple[bytes, bytes]] = [
            (b"x-request-id", scope["mlx_router.request_id"].encode())
        ]

    async def run(self) -> None:
        began = time.perf_counter()
        try:
            await self._answer()
        except ClientGone:
            self.scope["mlx_router.client_left"] = True
        except Exception as error:
            found = as_router_error(error)
            if self._status:  # too late for a status: cutting the connection says it
                drop_connection(self.scope)
            else:
                await error_response(found)(self.scope, self.receive, self.send)
        finally:
            self._log(time.perf_counter() - began)

    async def _answer(self) -> None:
        scope, policy = self.scope, self.policy
        host = self.guard.check(scope, policy)
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and policy.cors_origin(origin):
            allowed = b"*" if "*" in policy.origins else origin.encode("latin-1")
            self._extra += [
                (b"access-control-allow-origin", allowed),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"Origin"),
            ]
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await self._preflight(headers)
                return
        elif origin and scope["method"] not in _SAFE_METHODS and not origin_is_host(origin, host):
            raise PermissionDenied(
                f"Pages of {origin[:200]!r} may not use this server. To allow them, add the "
                "origin to server.cors_origins in the config.",
                code="origin_not_allowed",
            )
        self._check_key(headers)
        self._check_length(headers)
        await self.guard.app(scope, self.receive, self.send)

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        scope, policy = self.scope, self.policy
        scope["mlx_router.trusted"] = True
        if not policy.keys or scope.get("mlx_router.in_process"):  # no header can say the latter
            return
        scheme, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        name = policy.key_name(given) if given else None
        scope["mlx_router.key_name"] = name
        if name is not None:
            return
        scope["mlx_router.trusted"] = False
        path: str = scope["path"]
        if path not in _OPEN_PATHS and not path.startswith(_OPEN_FOLDER):
            raise AuthenticationFailed(
                "Incorrect API key provided: send one of server.api_keys of the server's config."
                if given
                else "You didn't provide an API key: send it as 'Authorization: Bearer KEY'."
            )

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self.policy.max_body:
            raise self._too_large()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is larger than {self.policy.max_body / 1e6:g} MB "
            "(server.max_body_mb)."
        )

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            if self._body_bytes > self.policy.max_body:
                raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._extra]}
        await self._send(message)

    async def _preflight(self, headers: dict[bytes, bytes]) -> None:
        asked = headers.get(b"access-control-request-headers", b"authorization, content-type")
        allow = [
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"600"),
        ]
        if b"access-control-request-private-network" in headers:
            allow.append((b"access-control-allow-private-network", b"true"))
        await self.send({"type": "http.response.start", "status": 204, "headers": allow})
        await self.send({"type": "http.response.body", "body": b""})

    def _log(self, seconds: float) -> None:
        left = self.scope.get("mlx_router.client_left")
        key = self.scope.get("mlx_router.key_name")
        # A page or a monitor that looks every second would leave nothing else to see.
        watches = self._status == 200 and self.scope["path"].startswith(_WATCHED)
        access.log(
            logging.DEBUG if watches else logging.INFO,
            "%s %s %d %.1f ms%s%s",
            self.scope["method"][:16],
            self.scope["path"][:200],
            self._status or CLIENT_CLOSED,
            seconds * 1e3,
            " (client left)" if left else "",
            f" key={key}" if key else "",
        )


def _identify(scope: Scope) -> str:
    """The client's request id if it is a sane one, else a new one; kept in the scope."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    sane = _REQUEST_ID.fullmatch(given)
    request_id = given.decode() if sane else f"req_{token_hex(12)}"
    scope["mlx_router.request_id"] = request_id
    return request_id


def _is_control(scope: Scope) -> bool:
    """Whether the request would change the server itself, or read its log, and not just ask."""
    path: str = scope["path"]
    return path.startswith(("/admin", "/hub/logs")) or (
        path.startswith("/hub") and scope["method"] not in _SAFE_METHODS
    )


def _controls(scope: Scope, host: HostHeader, policy: _Policy) -> bool:
    """Whether what sent the request is no web page, or one that was let in by name: a user who
    opens the API to all pages has not handed them the server as well."""
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    return all(
        origin.lower() in policy.origins or origin_is_host(origin, host) for origin in origins
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
