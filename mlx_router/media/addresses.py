"""Which addresses of the network are everybody's. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")  # IPv4 written as IPv6, as it once was
_NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # of which older Pythons know a part
    IPv4Network("168.63.129.16/32"),  # Azure's own services, from inside it
)


def is_public(address: str) -> bool:
    """Whether it is a host of the public internet. One that holds another address (IPv4 in IPv6,
    NAT64, 6to4) is as public as that; tunnels (Teredo), multicast and what is not an address are
    not."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if (inner := _inner(ip)) is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip.is_site_local or ip.scope_id is not None:
            return False
    elif any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _inner(ip: IPv6Address) -> IPv4Address | None:
    if ip in _NAT64 or ip in _COMPATIBLE:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
