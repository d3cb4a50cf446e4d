"""The address to listen on: bound before anything slow, and said in words if it cannot be."""

from __future__ import annotations

import errno
import socket

from mlx_router.cli.parser import EXIT_ADDRESS
from mlx_router.errors import RouterError

BACKLOG = 2048
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  listened on: where it is asked


class AddressUnusable(RouterError):
    """The IP address or port cannot be listened on."""

    code = "address_unusable"
    exit_code = EXIT_ADDRESS


def bind(ip: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises AddressUnusable.

    It listens at once: a bound socket that does not listen yet would let a second server start.
    Clients that come before the server is ready wait for it.
    """
    try:
        found = socket.getaddrinfo(ip, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise AddressUnusable(
            f"{ip!r} is not an address; use --ip 127.0.0.1 (this machine) or 0.0.0.0 (all)"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and ip == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressUnusable(_said(error, ip, port)) from None
    listener.set_inheritable(False)
    return listener


def _said(error: OSError, ip: str, port: int) -> str:
    other = port + 1 if 1024 <= port < 65_535 else 8801
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use, perhaps by another mlx-router; choose another: -p {other}, "
            "or -p 0 for any free one"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be used without special rights; choose another: -p {other}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{ip} is not an address of this machine; use --ip 127.0.0.1 or --ip 0.0.0.0"
    return f"cannot listen on {ip} port {port}: {error.strerror}; try --ip 127.0.0.1 -p {other}"


def urls(listener: socket.socket) -> list[str]:
    """``http://host:port`` of the server: the one for this machine first."""
    host, port = listener.getsockname()[:2]
    every = ["127.0.0.1", *filter(None, [_address_in_the_network()])]
    hosts = every if host in _ANY else [host]
    return [base_url(name, port) for name in hosts]


def asked_at(ip: str) -> str:
    """Where this machine reaches a server that listens on ``ip``, which may be the word for all."""
    return _ANY.get(ip, ip)


def base_url(host: str, port: int) -> str:
    """``http://host:port``, with the brackets that an IPv6 address needs."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _address_in_the_network() -> str | None:
    """This machine's address as its neighbours see it; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation
        except OSError:
            return None
        name = str(probe.getsockname()[0])
    return None if name.startswith("127.") or name == "0.0.0.0" else name  # noqa: S104
