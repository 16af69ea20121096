"""Listening addresses: `:3002`, `127.0.0.1:3002`, `[::1]:3002`."""

from __future__ import annotations

import re
from typing import NamedTuple

_PORT_MAX = 65535
# RFC 1123, 2.1, and the underscore, which resolvers accept.
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")


class Address(NamedTuple):
    """Where to listen. An empty `host` means every interface; port 0 lets the kernel choose.

    Not an attrs class: importing attrs takes longer than all the rest of a health check.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `[host]:port`.

        Raises:
            ValueError: `text` is not an address. The message says what is allowed.
        """
        host, colon, port = text.strip().rpartition(":")
        is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX
        is_bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if is_bracketed else host
        is_host = _is_ipv6(host) if is_bracketed else not host or _is_name(host)
        if not (colon and is_port and is_host):
            raise ValueError("an address like :3002, 127.0.0.1:3002 or [::1]:3002")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_any(self) -> bool:
        """Whether it means every interface: no host, or only zeros, in any notation."""
        return not self.host.strip("0.:")

    @property
    def is_dual(self) -> bool:
        """Whether it is the any address of IPv6 (`[::]`), which accepts IPv4 too."""
        return self.is_any and ":" in self.host

    @property
    def connectable(self) -> str:
        """The `host:port` that a client on this machine can connect to."""
        return str(self._replace(host="127.0.0.1" if self.is_any else self.host))


def _is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 address, perhaps with a zone (RFC 4007, 11)."""
    from ipaddress import AddressValueError, IPv6Address  # noqa: PLC0415 - slow to import

    try:
        zone = IPv6Address(host).scope_id
    except AddressValueError:
        return False
    return zone is None or _ZONE.fullmatch(zone) is not None


def _is_name(host: str) -> bool:
    """Whether `host` can be looked up. A name that is not ASCII is encoded first (RFC 3490)."""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return _NAME.fullmatch(name) is not None
