"""Files from URLs that clients name, without lending them the network of this machine.

A name is resolved here, all its addresses are checked, and the connection goes to one that was:
what the name resolves to a moment later does not matter.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from mlx_router.config.media import MediaSettings
from mlx_router.media.addresses import is_public
from mlx_router.media.refusal import Refused
from mlx_router.media.source import MAX_URL, MB, check_file_size
from mlx_router.version import __version__

log = logging.getLogger(__name__)

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_HEADERS = {
    "User-Agent": f"mlx-router/{__version__}",
    "Accept": "image/png, image/jpeg, image/webp, image/gif, image/bmp, application/pdf",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Fetcher:
    def __init__(self, settings: MediaSettings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None

    async def fetch(self, url: str) -> bytes:
        """What the server sends for it. Raises Refused."""
        seconds = self._settings.fetch_timeout
        try:
            async with asyncio.timeout(seconds):
                for _ in range(self._settings.max_redirects + 1):
                    content, url = await self._get(url)
                    if content is not None:
                        return content
        except Refused:
            raise
        except (TimeoutError, httpcore.TimeoutException):
            raise _failed(f"it did not come within {seconds:g} s") from None
        except Exception as error:  # whatever a strange server makes of the connection
            log.info("an image could not be fetched: %s", type(error).__name__)
            raise _failed("the connection failed") from None
        raise _failed(f"there are more than {self._settings.max_redirects} redirects")

    async def _get(self, url: str) -> tuple[bytes | None, str]:
        """The content, or None and where it is to be looked for instead."""
        where, host = _target(url)
        if where.scheme == b"https" and self._tls is None:  # reads all certificates
            self._tls = await asyncio.to_thread(httpcore.default_ssl_context)
        async with (
            aclosing(CheckedBackend(self._settings.allow_private_addresses)) as backend,
            httpcore.AsyncConnectionPool(self._tls, network_backend=backend) as pool,
            pool.stream("GET", where, headers=[("Host", host), *_HEADERS.items()]) as response,
        ):
            headers = {
                name.lower(): value.decode("latin-1").strip() for name, value in response.headers
            }
            if response.status in _REDIRECTS and b"location" in headers:
                return None, urljoin(url, headers[b"location"])
            if response.status != 200:
                raise _failed(f"the server answered with status {response.status}")
            if headers.get(b"content-encoding", "identity").lower() != "identity":
                raise _failed("the server sent it compressed, which was not asked for")
            return await self._body(response, headers.get(b"content-length", "")), url

    async def _body(self, response: httpcore.Response, length: str) -> bytes:
        most = self._settings.max_file_mb
        if length.isdecimal():
            check_file_size(int(length), most)
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > most * MB:
                raise Refused(
                    f"the file has more than {most:g} MB. Send a smaller one.", "image_too_large"
                )
        if not content:
            raise Refused("the file is empty.", "empty_image_file")
        return bytes(content)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connections to public addresses only, unless private ones are allowed. Close it: httpcore
    forgets a connection whose handshake is given up."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()
        self._streams: list[httpcore.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await resolve(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            raise _private()
        for address in addresses:
            try:
                stream = await self._backend.connect_tcp(address, port, timeout)
            except httpcore.ConnectError:
                continue
            self._streams.append(stream)
            # also by an address that is everybody's, what answers is this machine
            if not self._allow_private and is_own(stream):
                raise _private()
            return stream
        raise httpcore.ConnectError

    async def aclose(self) -> None:
        for stream in self._streams:
            await stream.aclose()


def is_own(stream: httpcore.AsyncNetworkStream) -> bool:
    """Whether it leads from this machine to itself."""
    here, there = (stream.get_extra_info(end) for end in ("client_addr", "server_addr"))
    return bool(here[0] == there[0])


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, at least one. Raises Refused."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise _failed("its host is not known")
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _target(url: str) -> tuple[httpcore.URL, str]:
    """The URL as httpcore takes it, and the Host header. Raises Refused."""
    if len(url) > MAX_URL:
        raise Refused(
            f"the URL is longer than {MAX_URL} characters. Send the file as a data URI.",
            "invalid_image_url",
        )
    if _NOT_IN_URLS.search(url):
        raise Refused(
            "the URL has spaces, backslashes or control characters. Write them as %20 and so on.",
            "invalid_image_url",
        )
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError:  # UnicodeError is one
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in _PORTS:
        raise Refused("only http and https URLs are fetched.", "invalid_image_url")
    if not host or port == 0:
        raise Refused("the URL names no host that could be asked.", "invalid_image_url")
    if parts.username is not None or parts.password is not None:
        raise Refused("the URL must not hold a user name or password.", "invalid_image_url")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    where = httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target)
    written = f"[{host}]" if ":" in host else host
    return where, written if port is None else f"{written}:{port}"


def _private() -> Refused:
    return Refused(
        "the URL's host is in a private network, and those are not fetched from. Send the file as "
        "a data URI.",
        "invalid_image_url",
    )


def _failed(why: str) -> Refused:
    return Refused(
        f"the URL could not be fetched: {why}. Check it, or send the file as a data URI.",
        "failed_to_download_image",
    )
