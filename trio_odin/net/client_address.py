"""Whose connection it is, by address: behind trusted proxies, and for counting."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# A household or a host has as many IPv6 addresses as it likes, of one network of this size.
_COUNTED_PREFIX = 64


def client_address(peer: str, forwarded_for: bytes, trusted: Sequence[Network]) -> IpAddress | None:
    """The address of the client behind the connection of `peer`; None if `peer` is no address.

    Args:
        peer: who is connected.
        forwarded_for: X-Forwarded-For as it came, repeated headers joined by commas.
        trusted: the proxies whose word counts. Each appends the address that it was asked from, so
            what counts is the rightmost one that is not such a proxy; left of it anybody may have
            written anything.
    """
    address = _parse(peer)
    for entry in _from_the_right(forwarded_for):
        if address is None or not _is_one_of(address, trusted):
            break
        # What a proxy says instead of an address ("unknown") is an answer of that proxy.
        before, address = address, _parse(entry)
        if address is None:
            return before
    return address


def counted_as(address: IpAddress) -> str:
    """What connections are counted by: an IPv4 address, or the /64 of an IPv6 one."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), _COUNTED_PREFIX), strict=False))


def _from_the_right(forwarded_for: bytes) -> Iterable[str]:
    entries = forwarded_for.decode("latin-1").split(",")
    return (entry.strip() for entry in reversed(entries) if entry.strip())


def _is_one_of(address: IpAddress, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> IpAddress | None:
    """An address, where some proxies add a port or brackets; an IPv4 one in IPv6 is that."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
