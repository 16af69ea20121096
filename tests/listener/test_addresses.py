"""Rules that depend on the socket: its peer's address, and its file number."""

from __future__ import annotations

import gc
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.listener.test_listener import UPGRADE, status_of
from tests.server_rig import Rig
from trio_odin.ledger.reasons import Rejection
from trio_odin.listener import listener
from trio_odin.listener.acceptor import files_for_clients, response_of
from trio_odin.overload.load import Load
from trio_odin.wire.handshake import reject


@contextmanager
def no_gaps() -> Iterator[int]:
    """The number of the next file: the one after it follows, and so on.

    Earlier tests leave gaps among the open files, and files they dropped are closed at any time, so
    the numbers would jump.
    """
    gc.collect()
    with ExitStack() as gaps:
        highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
        file = -1
        while file <= highest:
            file = gaps.enter_context(socket.socket()).fileno()
        yield file + 1


class Clients:
    """Clients at 127.0.0.1, closed at the end of the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.streams: list[trio.SocketStream] = []

    async def ask(self, rig: Rig, request: bytes) -> int:
        """Send a request as one more client; returns the status."""
        (waiting,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with waiting:
            client = await trio.open_tcp_stream(*waiting.socket.getsockname())
            self.streams.append(client)
            self.nursery.start_soon(rig.listener.serve, await waiting.accept())
        await client.send_all(request)
        with trio.fail_after(5):
            return status_of(bytes(await client.receive_some()))

    async def connect(self, rig: Rig, *headers: str) -> int:
        """Ask for a WebSocket."""
        lines = "".join(f"{header}\r\n" for header in headers)
        return await self.ask(rig, UPGRADE + lines.encode() + b"\r\n")


@pytest.fixture
async def clients(nursery: trio.Nursery) -> AsyncIterator[Clients]:
    clients = Clients(nursery)
    yield clients
    for stream in clients.streams:
        await stream.aclose()


async def test_an_address_has_a_limit_of_connections_and_may_return(
    nursery: trio.Nursery, clients: Clients
) -> None:
    rig = Rig(nursery, WS_MAX_CONNECTIONS_PER_IP="2")
    assert [await clients.connect(rig) for _ in range(2)] == [101, 101]
    assert await clients.connect(rig, "X-Forwarded-For: 203.0.113.7") == 429, "it is not trusted"
    assert rig.ledger.traffic.rejected == {"per_address": 1}
    await clients.streams[0].aclose()
    with trio.fail_after(5):
        while rig.listener.admitted > 1:
            await trio.sleep(0.01)
    assert await clients.connect(rig) == 101
    assert rig.listener._from_address == {"127.0.0.1": 2}
    for stream in clients.streams:
        await stream.aclose()
    with trio.fail_after(5):
        while rig.listener.admitted:
            await trio.sleep(0.01)
    assert not rig.listener._from_address, "who has gone is not kept in mind"


async def test_with_a_trusted_proxy_each_client_has_its_own_count(
    nursery: trio.Nursery, clients: Clients
) -> None:
    rig = Rig(nursery, WS_MAX_CONNECTIONS_PER_IP="1", WS_TRUSTED_PROXIES="127.0.0.0/8")
    statuses = [
        await clients.connect(rig, f"X-Forwarded-For: {forwarded}")
        for forwarded in (
            "203.0.113.7",
            "203.0.113.8",
            "1.2.3.4, 203.0.113.7",
            "2001:db8::1",
            "2001:db8::2",
        )
    ]
    assert statuses == [101, 101, 429, 101, 429]
    two_lines = ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 203.0.113.8")
    assert await clients.connect(rig, *two_lines) == 429, "repeated headers are one list"


async def test_a_429_has_a_time_to_come_back(nursery: trio.Nursery, clients: Clients) -> None:
    rig = Rig(nursery, WS_MAX_CONNECTIONS_PER_IP="1")
    answer = response_of(reject(Rejection.PER_ADDRESS))
    assert (answer.status, list(answer.headers)) == (429, [("Retry-After", "5")])
    rig.admission.observe(Load(cpu_percent=100))
    assert await clients.connect(rig) == 503, "whatever the address"


async def test_nothing_is_counted_without_a_limit(nursery: trio.Nursery, clients: Clients) -> None:
    rig = Rig(nursery)
    assert await clients.connect(rig) == 101
    assert not rig.listener._from_address


async def test_the_last_files_are_reserved_for_pages(
    nursery: trio.Nursery, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_gaps() as next_file:
        monkeypatch.setattr(listener, "files_for_clients", lambda: next_file + 4)
        rig = Rig(nursery)
        # Each takes two files, one for either end.
        statuses = [await clients.connect(rig) for _ in range(4)]
    assert statuses[0] == 101
    assert statuses[-1] == 503
    assert rig.ledger.traffic.rejected == {"files": statuses.count(503)}
    assert await clients.ask(rig, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") == 200


async def test_silent_sockets_get_at_most_half_of_the_last_files(
    nursery: trio.Nursery, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "files_for_clients", lambda: 0)
    rig = Rig(nursery)
    (waiting,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with waiting:
        for _ in range(20):
            clients.streams.append(await trio.open_tcp_stream(*waiting.socket.getsockname()))
            nursery.start_soon(rig.listener.serve, await waiting.accept())
    with trio.fail_after(5):
        for silent in clients.streams[:12]:
            assert await silent.receive_some() == b""
    assert rig.listener.stats().pending_handshakes == 8
    assert rig.ledger.traffic.rejected == {"half_open": 12}
    assert await clients.ask(rig, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") == 200
    for client in clients.streams:
        await client.aclose()
    with trio.fail_after(5):
        while rig.listener.stats().pending_handshakes:
            await trio.sleep(0.01)


async def test_a_server_knows_that_its_files_are_used_up(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_gaps() as next_file, ExitStack() as held:
        monkeypatch.setattr(listener, "files_for_clients", lambda: next_file + 3)
        rig = Rig(nursery)
        assert not rig.listener.is_out_of_files
        for _ in range(3):
            held.enter_context(socket.socket())
        assert rig.listener.is_out_of_files
        held.close()
        assert not rig.listener.is_out_of_files


@pytest.mark.parametrize(("limit", "kept"), [(64, 8), (128, 16), (1024, 16), (200_000, 16)])
def test_an_eighth_of_a_low_limit_is_reserved_and_sixteen_at_most(
    limit: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert files_for_clients() == limit - kept
