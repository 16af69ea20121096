"""Listening on an address."""

from __future__ import annotations

import errno

import trio

from trio_odin.core.address import Address

__all__ = ["Address", "AddressUnavailable", "bound_address", "open_listeners"]

# The kernel cuts this down to net.core.somaxconn.
_BACKLOG = 65535


class AddressUnavailable(Exception):
    """The address cannot be bound; the message is one sentence for the person who chose it."""


async def open_listeners(address: Address) -> list[trio.SocketListener]:
    """Bind `address` and listen.

    Raises:
        AddressUnavailable: in use, not permitted, or not an address of this machine.
    """
    # With port 0 every family would get a port of its own, so only one family is opened.
    host = "0.0.0.0" if address.port == 0 and not address.host else address.host or None  # noqa: S104
    try:
        return await trio.open_tcp_listeners(address.port, host=host, backlog=_BACKLOG)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program is listening there",
            errno.EACCES: "this user may not bind it",
            errno.EADDRNOTAVAIL: "it is not an address of this machine",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise AddressUnavailable(f"cannot listen on {address}: {reason}") from error


def bound_address(listener: trio.SocketListener) -> Address:
    """The address that `listener` really has, with the port the kernel chose."""
    host, port = listener.socket.getsockname()[:2]
    return Address(host, port)
