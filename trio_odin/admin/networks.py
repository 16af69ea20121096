"""Whether an address is in a network, for thousands of addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from socket import AF_INET, AF_INET6, inet_pton


def network_check(network: str) -> Callable[[str | None], bool]:
    """Return a function that returns whether an address, maybe with a zone, is in `network`.

    To make an address of `ipaddress` of each one takes longer than all the rest of a long list.

    Args:
        network: an address or a network.

    Raises:
        ValueError: it is neither.
    """
    parsed = ipaddress.ip_network(network, strict=False)
    family = AF_INET if isinstance(parsed, ipaddress.IPv4Network) else AF_INET6
    host_bits = parsed.max_prefixlen - parsed.prefixlen
    wanted = int(parsed.network_address) >> host_bits

    def is_in_network(address: str | None) -> bool:
        if address is None:
            return False
        try:
            packed = inet_pton(family, address.partition("%")[0])
        except (OSError, ValueError):
            return False
        return int.from_bytes(packed, "big") >> host_bits == wanted

    return is_in_network
