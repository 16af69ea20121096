"""Listening addresses: `:3002`, `127.0.0.1:3002`, `[::1]:3002`."""

from __future__ import annotations

from typing import NamedTuple

_PORT_MAX = 65535


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
        if not (colon and is_port) or (":" in host and not is_bracketed):
            raise ValueError("an address like :3002, 127.0.0.1:3002 or [::1]:3002")
        return cls(host[1:-1] if is_bracketed else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connectable(self) -> str:
        """`host:port` that a client on this machine can use."""
        is_any = self.host in {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        return str(self._replace(host="127.0.0.1" if is_any else self.host))
