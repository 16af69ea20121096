from __future__ import annotations

import os
import re
import socket
from contextlib import suppress

import pytest
import trio

import trio_odin.net.listening as module
from trio_odin.net.listening import (
    Address,
    AddressUnavailable,
    bind_shared,
    bound_address,
    inherited_sockets,
    listen_on,
    open_listeners,
    reserved_address,
)

ANY_PORT = Address("127.0.0.1", 0)


async def test_a_reserved_port_is_shared_by_processes_that_ask_for_it() -> None:
    async with reserved_address(ANY_PORT) as address:
        (first,) = await open_listeners(address, shared=True)
        (second,) = await open_listeners(address, shared=True)
        async with first, second:
            assert bound_address(first) == bound_address(second) == address
            async with await trio.open_tcp_stream(address.host, address.port):
                pass


def inherit(sockets: list[trio.socket.SocketType]) -> list[trio.SocketListener]:
    """Listen as a process that has inherited `sockets`."""
    return [listen_on(sock) for sock in inherited_sockets([os.dup(s.fileno()) for s in sockets])]


async def test_an_inherited_socket_accepts_connections_once_it_listens() -> None:
    async with reserved_address(ANY_PORT) as address:
        sockets = await bind_shared(address)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(address.host, address.port)
        (listener,) = inherit(sockets)
        async with listener, await trio.open_tcp_stream(address.host, address.port):
            assert bound_address(listener) == address
            assert not os.get_inheritable(listener.socket.fileno())
        sockets[0].close()


async def test_connections_waiting_to_be_accepted_reach_a_successor() -> None:
    async with reserved_address(ANY_PORT) as address:
        sockets = await bind_shared(address)
        (first,) = inherit(sockets)
        async with await trio.open_tcp_stream(address.host, address.port) as client:
            await client.send_all(b"early")
            (second,) = inherit(sockets)
            await first.aclose()
            sockets[0].close()
            with trio.fail_after(5):
                async with second, await second.accept() as accepted:
                    assert await accepted.receive_some() == b"early"


async def test_a_queue_outlives_the_process_that_listened() -> None:
    async with reserved_address(ANY_PORT) as address:
        sockets = await bind_shared(address)
        (first,) = inherit(sockets)
        await first.aclose()
        async with await trio.open_tcp_stream(address.host, address.port) as client:
            await client.send_all(b"late")
            (second,) = inherit(sockets)
            with trio.fail_after(5):
                async with second, await second.accept() as accepted:
                    assert await accepted.receive_some() == b"late"
        sockets[0].close()


async def check_taken(address: Address) -> None:
    sentence = re.escape(f"cannot listen on {address}: another program is listening there")
    with pytest.raises(AddressUnavailable, match=sentence):
        await open_listeners(address)
    with pytest.raises(AddressUnavailable, match=sentence):
        async with reserved_address(address):
            pass


async def test_a_reserved_port_is_never_free_for_others() -> None:
    async with reserved_address(ANY_PORT) as address:
        await check_taken(address)
        (listener,) = await open_listeners(address, shared=True)
        async with listener:
            await check_taken(address)


async def test_a_port_in_use_cannot_be_reserved() -> None:
    (listener,) = await open_listeners(ANY_PORT)
    async with listener:
        taken = bound_address(listener)
        await check_taken(taken)


async def test_a_reservation_accepts_no_connection_and_can_be_released() -> None:
    async with reserved_address(ANY_PORT) as address:
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(address.host, address.port)
    (listener,) = await open_listeners(address)
    await listener.aclose()


async def test_a_port_can_be_reserved_again_beside_connections_that_linger() -> None:
    async with reserved_address(ANY_PORT) as address:
        (listener,) = await open_listeners(address, shared=True)
        client = await trio.open_tcp_stream(address.host, address.port)
        accepted = await listener.accept()
        await accepted.aclose()  # the end that closes first keeps the port in TIME_WAIT
        await client.aclose()
        await listener.aclose()
    async with reserved_address(address):
        (listener,) = await open_listeners(address, shared=True)
        await listener.aclose()


async def test_every_interface_is_both_families_on_one_port() -> None:
    async with reserved_address(ANY_PORT) as free:
        port = free.port
    async with reserved_address(Address("", port)) as address:
        listeners = await open_listeners(address, shared=True)
        families = {listener.socket.family for listener in listeners}
        assert socket.AF_INET in families
        assert {bound_address(listener).port for listener in listeners} == {port}
        for listener in listeners:
            await listener.aclose()


async def families_that_reach(address: Address) -> set[str]:
    """The families of loopback addresses that reach a listener at `address`."""
    reached = set()
    listeners = await open_listeners(address)
    port = bound_address(listeners[0]).port
    try:
        for host in ("127.0.0.1", "::1"):
            with suppress(OSError), trio.fail_after(5):
                await (await trio.open_tcp_stream(host, port)).aclose()
                reached.add(host)
    finally:
        for listener in listeners:
            await listener.aclose()
    return reached


needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0"])
async def test_the_any_address_of_ipv6_takes_both_families(host: str) -> None:
    assert await families_that_reach(Address(host, 0)) == {"127.0.0.1", "::1"}
    async with reserved_address(Address(host, 0)) as address:
        assert address.port
        (listener,) = await open_listeners(address, shared=True)
        async with listener, await trio.open_tcp_stream("127.0.0.1", address.port):
            pass


@needs_ipv6
async def test_any_other_address_is_of_one_family() -> None:
    assert await families_that_reach(Address("::1", 0)) == {"::1"}
    assert await families_that_reach(Address("127.0.0.1", 0)) == {"127.0.0.1"}
    assert await families_that_reach(Address("0.0.0.0", 0)) == {"127.0.0.1"}


@needs_ipv6
async def test_an_address_of_both_families_is_taken_if_one_of_them_is() -> None:
    (listener,) = await open_listeners(Address("0.0.0.0", 0))
    async with listener:
        await check_taken(Address("::", bound_address(listener).port))


async def test_without_ipv6_the_any_address_of_ipv6_is_that_of_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_is_known", lambda family: family != socket.AF_INET6)
    (listener,) = await open_listeners(Address("::", 0))
    async with listener, await trio.open_tcp_stream("127.0.0.1", bound_address(listener).port):
        assert bound_address(listener).host == "0.0.0.0"


@pytest.mark.parametrize("shared", [False, True])
async def test_an_address_of_another_machine_gives_a_sentence(shared: bool) -> None:
    with pytest.raises(AddressUnavailable, match="not an address of this machine"):
        await open_listeners(Address("192.0.2.1", 0), shared=shared)
