"""Listening on an address."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from trio_odin.net.address import Address

__all__ = [
    "Address",
    "AddressUnavailable",
    "bind_shared",
    "bound_address",
    "inherited_sockets",
    "listen_on",
    "open_listeners",
    "reserved_address",
]

# The kernel limits this to net.core.somaxconn.
_BACKLOG = 65535


class AddressUnavailable(Exception):
    """The address cannot be bound. The message is one sentence for the person who chose it."""


async def open_listeners(address: Address, *, shared: bool = False) -> list[trio.SocketListener]:
    """Bind `address` and listen.

    With `shared`, several processes of this user can listen on one `reserved_address`. The kernel
    gives each new connection to one of them.

    Raises:
        AddressUnavailable: it is in use, not permitted, or not an address of this machine.
    """
    with _said_in_a_sentence(address):
        # trio's own function cannot share a port.
        async with _closed_on_error() as sockets:
            await _bind(address, sockets, is_shared=shared)
            return [listen_on(sock) for sock in sockets]


async def bind_shared(address: Address) -> list[trio.socket.SocketType]:
    """Bind one more socket to a `reserved_address`, for processes to inherit and to listen on.

    Once a process listens on it, the kernel gives the socket a share of the new connections, until
    all processes that have it have closed it. The connections wait in its queue, where any process
    that has inherited the socket can accept them.

    Raises:
        AddressUnavailable: it is not permitted, or not reserved.
    """
    with _said_in_a_sentence(address):
        async with _closed_on_error() as sockets:
            await _bind(address, sockets, is_shared=True)
            return sockets


def inherited_sockets(file_numbers: Iterable[int]) -> list[trio.socket.SocketType]:
    """Take over sockets of `bind_shared` that this process has inherited; see `listen_on`."""
    sockets = [socket.socket(fileno=number) for number in file_numbers]
    for sock in sockets:
        sock.set_inheritable(False)
    return [trio.socket.from_stdlib_socket(sock) for sock in sockets]


def listen_on(sock: trio.socket.SocketType) -> trio.SocketListener:
    """Listen on the port that `sock` is bound to. A socket that listens already is unchanged."""
    sock.listen(_BACKLOG)
    return trio.SocketListener(sock)


async def _bind(
    address: Address, sockets: list[trio.socket.SocketType], *, is_shared: bool
) -> None:
    """Add to `sockets` one for each family, bound but not listening yet."""
    for family, sockaddr in await _look_up(address):
        sockets.append(sock := _new_socket(family, address))
        if is_shared:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
        await sock.bind(sockaddr)


@asynccontextmanager
async def reserved_address(address: Address) -> AsyncIterator[Address]:
    """Hold `address` without listening, so that processes of this user can listen on it together.

    Until the context ends they can do so, with `bind_shared` or `open_listeners(shared=True)`, and
    nobody else can. Yields the address with the port that the kernel chose.

    Raises:
        AddressUnavailable: it is in use, not permitted, or not an address of this machine.
    """
    async with _closed_on_error() as sockets:
        port = address.port
        with _said_in_a_sentence(address):
            for family, sockaddr in await _look_up(address):
                sockets.append(sock := _new_socket(family, address))
                await sock.bind((sockaddr[0], port, *sockaddr[2:]))
                port = sock.getsockname()[1]
                # SO_REUSEPORT only now, so that the bind fails if others share the port already.
                # SO_REUSEADDR was needed to bind while old connections linger; if it stayed, it
                # would let others in.
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 0)
        yield Address(_host_of(address) or "", port)
        for sock in sockets:
            sock.close()


def _host_of(address: Address) -> str | None:
    if address.is_dual:
        return "::" if _is_known(socket.AF_INET6) else "0.0.0.0"  # noqa: S104
    # With port 0 each family would get another port, so only one family is opened.
    return "0.0.0.0" if address.port == 0 and not address.host else address.host or None  # noqa: S104


async def _look_up(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """Return family and socket address of each result for `address` that this machine supports."""
    found = await trio.socket.getaddrinfo(
        _host_of(address),
        address.port,
        type=trio.socket.SOCK_STREAM,
        flags=trio.socket.AI_PASSIVE,
    )
    ours: list[tuple[int, tuple[Any, ...]]] = [
        (family, sockaddr) for family, _, _, _, sockaddr in found if _is_known(family)
    ]
    if not ours:
        raise OSError(errno.EAFNOSUPPORT, "this machine has no such network")
    return ours


def _is_known(family: int) -> bool:
    """Whether the kernel supports this family: many containers have no IPv6."""
    try:
        trio.socket.socket(family, trio.socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _new_socket(family: int, address: Address) -> trio.socket.SocketType:
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
    if family == trio.socket.AF_INET6:
        # Do not depend on net.ipv6.bindv6only. Without a host each family has its own socket.
        is_v6_only = not address.is_dual
        sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, is_v6_only)
    return sock


@asynccontextmanager
async def _closed_on_error() -> AsyncIterator[list[trio.socket.SocketType]]:
    """Yield a list whose sockets are closed if the block raises."""
    sockets: list[trio.socket.SocketType] = []
    try:
        yield sockets
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


@contextmanager
def _said_in_a_sentence(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program is listening there",
            errno.EACCES: "this user may not bind it",
            errno.EADDRNOTAVAIL: "it is not an address of this machine",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise AddressUnavailable(f"cannot listen on {address}: {reason}") from error


def bound_address(bound: trio.SocketListener | trio.socket.SocketType) -> Address:
    """Return the address of a listener or of its socket, with the port that the kernel chose."""
    sock = bound.socket if isinstance(bound, trio.SocketListener) else bound
    host, port = sock.getsockname()[:2]
    return Address(host, port)
