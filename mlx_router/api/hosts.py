"""Who may talk to the server, from the headers alone: host names, origins, addresses. Pure.

A page of any web site can make a browser send requests to a name that resolves to this machine
(DNS rebinding). Such a request carries the site's name as Host: only names that cannot belong to
a stranger are served.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

# Reserved for private use, so that nobody can register a name under them: .local is multicast DNS,
# .internal holds Docker's host.docker.internal.
_PRIVATE_DOMAINS = (".local", ".localhost", ".internal", ".home.arpa")
_HOST = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HostHeader:
    """A Host header: the name in lower case, IPv6 without brackets; port None: the default."""

    name: str
    port: int | None = None


def parse_host(header: str) -> HostHeader | None:
    """The parts of a Host header; None if it is malformed."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    name = match["name"].lower()
    if name.startswith("["):
        name = name[1:-1]
        if not is_ip(name):
            return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > 65_535:
        return None
    return HostHeader(name.removesuffix("."), port)


def machine_names() -> frozenset[str]:
    """What this machine calls itself; asks no name server."""
    name = socket.gethostname().lower()
    return frozenset({name, name.split(".", 1)[0]}) - {""}


def host_allowed(name: str, allowed: Collection[str], machine: Collection[str]) -> bool:
    """Whether a host name can only mean this machine, or is in the ``allowed`` list (where
    ``*.example.com`` stands for all below it and ``*`` for every name)."""
    if is_ip(name) or name == "localhost" or name.endswith(_PRIVATE_DOMAINS) or name in machine:
        return True
    return any(
        entry in ("*", name) or (entry.startswith("*.") and name.endswith(entry[1:]))
        for entry in allowed
    )


def origin_is_host(origin: str, host: HostHeader) -> bool:
    """Whether a page of ``origin`` was served under the very name that it now calls."""
    try:
        url = urlsplit(origin)
        default = _DEFAULT_PORTS.get(url.scheme)
        port = url.port or default
    except ValueError:
        return False
    if default is None or url.hostname is None:
        return False
    return url.hostname == host.name and port == (host.port or default)


def is_ip(text: str) -> bool:
    return _ip(text) is not None


def is_private(address: str) -> bool:
    """Whether a client address is of this machine or its own network (VPNs included)."""
    ip = _ip(address)
    # 100.64.0.0/10, which mesh VPNs use, is neither private nor global to Python.
    return ip is not None and not ip.is_global and not ip.is_multicast


def is_loopback(address: str) -> bool:
    ip = _ip(address)
    return ip is not None and ip.is_loopback


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    """An address, as IPv4 where it is one in IPv6's clothes; None for any other text."""
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
