"""Listening addresses: `:3002`, `127.0.0.1:3002`, `[::1]:3002`."""

from __future__ import annotations

import re
from typing import NamedTuple

_PORT_MAX = 65535
# RFC 1123, 2.1, with the underscore that resolvers take; RFC 4291, 2.2, with a zone of RFC 4007.
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")
_IPV6 = re.compile(r"(?=[^:]*:)[0-9A-Fa-f:.]+(%[A-Za-z0-9._~-]+)?")


class Address(NamedTuple):
    """Where to listen. An empty `host` means every interface; port 0 lets the kernel choose.

    No attrs class: those take longer to import than a health check takes for all the rest.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `[host]:port`.

        Raises:
            ValueError: says what is allowed.
        """
        host, colon, port = text.strip().rpartition(":")
        is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX
        is_bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if is_bracketed else host
        is_host = _IPV6.fullmatch(host) if is_bracketed else not host or _is_name(host)
        if not (colon and is_port and is_host):
            raise ValueError("an address like :3002, 127.0.0.1:3002 or [::1]:3002")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connectable(self) -> str:
        """`host:port` that a client on this machine can use."""
        is_any = self.host in {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        return str(self._replace(host="127.0.0.1" if is_any else self.host))


def _is_name(host: str) -> bool:
    """Whether `host` can be looked up: what is not ASCII takes a form that is (RFC 3490)."""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return _NAME.fullmatch(name) is not None
