"""Client addresses: as trusted proxies report them, and as connections are counted by them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# A household or a host may use any number of IPv6 addresses in one network of this size.
_COUNTED_PREFIX = 64


def client_address(peer: str, forwarded_for: bytes, trusted: Sequence[Network]) -> IpAddress | None:
    """Return the address of the client that connects through `peer`; None if `peer` is no address.

    Args:
        peer: the address of the connected socket.
        forwarded_for: the X-Forwarded-For header as received, repeated ones joined by commas.
        trusted: the networks of trusted proxies. Each proxy appends the address that connected to
            it, so the rightmost address that is not a trusted proxy counts. Anybody may have
            written what is to the left of it.
    """
    address = _parse(peer)
    for entry in _from_the_right(forwarded_for):
        if address is None or not _is_one_of(address, trusted):
            break
        # The proxy wrote no address but, for example, "unknown": then the proxy itself counts.
        before, address = address, _parse(entry)
        if address is None:
            return before
    return address


def counted_as(address: IpAddress) -> str:
    """Return what connections are counted by: an IPv4 address, or the /64 of an IPv6 one."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), _COUNTED_PREFIX), strict=False))


def _from_the_right(forwarded_for: bytes) -> Iterable[str]:
    entries = forwarded_for.decode("latin-1").split(",")
    return (entry.strip() for entry in reversed(entries) if entry.strip())


def _is_one_of(address: IpAddress, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse(text: str) -> IpAddress | None:
    """Parse an address, to which some proxies add a port or brackets; unwrap IPv4 in IPv6."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
