"""A connection leaves nothing behind: the collector does not visit frozen objects."""

from __future__ import annotations

import gc
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.server_rig import UPGRADE, Rig
from trio_odin.connection.connection import Connection
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.ledger.reasons import CloseReason

COUNT = 60
SUBSCRIBE = masked_frame(0x81, b'{"type":"subscribe","channels":["BTC.trade"]}')


class Peer:
    """The client's end of a connection, and the server's."""

    def __init__(self, rig: Rig, stream: trio.SocketStream, connection: Connection) -> None:
        self.rig = rig
        self.stream = stream
        self.connection = connection

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_to_the_end(self) -> None:
        """Read to the end; the server's close frame is answered, as by a browser."""
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some():
                if data[:1] == b"\x88":
                    await self.send(masked_frame(0x88, bytes(data[2:4])))
                    await self.stream.send_eof()


async def _full_handshake(peer: Peer) -> None:
    await peer.send(masked_frame(0x88, b"\x03\xe8"))
    await peer.read_to_the_end()


async def _end_of_stream(peer: Peer) -> None:
    await peer.stream.send_eof()
    await peer.read_to_the_end()


async def _closed_without_a_word(peer: Peer) -> None:
    await peer.stream.aclose()


async def _reset(peer: Peer) -> None:
    linger = struct.pack("ii", 1, 0)
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    peer.stream.socket.close()


async def _within_a_frame(peer: Peer) -> None:
    await peer.send(SUBSCRIBE[:20])
    await trio.testing.wait_all_tasks_blocked(0.001)
    await peer.stream.aclose()


async def _within_a_message(peer: Peer) -> None:
    await peer.send(masked_frame(0x01, b'{"type":'))
    await trio.testing.wait_all_tasks_blocked(0.001)
    await peer.stream.aclose()


async def _frames_that_break_the_protocol(peer: Peer) -> None:
    await peer.send(masked_frame(0x8F, b""))
    await peer.read_to_the_end()


async def _text_that_is_not_utf8(peer: Peer) -> None:
    await peer.send(masked_frame(0x81, b"\xff"))
    await peer.read_to_the_end()


async def _too_big(peer: Peer) -> None:
    await peer.send(masked_frame(0x81, b"x" * 20_000))
    await peer.read_to_the_end()


async def _expired(peer: Peer) -> None:
    peer.connection.evict(CloseReason.TOKEN_EXPIRED)
    await peer.read_to_the_end()


async def _evicted_with_a_full_outbox(peer: Peer) -> None:
    for _ in range(50):
        peer.rig.publish("BTC.trade", b'"%b"' % (b"x" * 50_000))
    await trio.testing.wait_all_tasks_blocked(0.001)
    assert peer.connection.close_reason is CloseReason.OUTBOX_FULL
    await peer.stream.aclose()


async def _gone_while_a_reply_waits(peer: Peer) -> None:
    for _ in range(6):
        peer.rig.publish("BTC.trade", b'"%b"' % (b"x" * 50_000))
    await peer.send(masked_frame(0x81, b'{"type":"replay","data":{"since":0}}'))
    await trio.testing.wait_all_tasks_blocked(0.001)
    await peer.stream.aclose()


async def _sent_away(peer: Peer) -> None:
    peer.connection.leave()
    await peer.read_to_the_end()


WAYS = [
    _full_handshake,
    _end_of_stream,
    _closed_without_a_word,
    _reset,
    _within_a_frame,
    _within_a_message,
    _frames_that_break_the_protocol,
    _text_that_is_not_utf8,
    _too_big,
    _expired,
    _evicted_with_a_full_outbox,
    _gone_while_a_reply_waits,
    _sent_away,
]


async def _connect(rig: Rig, nursery: trio.Nursery) -> Peer:
    left, right = trio.socket.socketpair()
    stream = trio.SocketStream(left)
    nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
    await stream.send_all(UPGRADE)
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
    await stream.send_all(SUBSCRIBE)
    assert await stream.receive_some()
    (connection,) = rig.hub.members
    return Peer(rig, stream, connection)


async def _connect_and_end(
    rig: Rig, nursery: trio.Nursery, end: Callable[[Peer], Awaitable[None]]
) -> None:
    peer = await _connect(rig, nursery)
    await end(peer)
    await rig.listener.wait_empty()
    await peer.stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.001)


@asynccontextmanager
async def nothing_stays() -> AsyncIterator[None]:
    """Check that `COUNT` repetitions leave no object each, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = kinds_alive()
        yield
        after = kinds_alive()
    finally:
        gc.enable()
    assert {kind: number for kind, number in (after - before).items() if number >= COUNT} == {}


def kinds_alive() -> Counter[str]:
    return Counter(type(thing).__qualname__ for thing in gc.get_objects())


@pytest.mark.parametrize("end", WAYS, ids=lambda end: end.__name__.strip("_"))
async def test_a_connection_leaves_nothing_behind_however_it_ends(
    end: Callable[[Peer], Awaitable[None]], nursery: trio.Nursery
) -> None:
    rig = Rig(nursery)
    for _ in range(3):  # objects that are made once
        await _connect_and_end(rig, nursery, end)
    async with nothing_stays():
        for _ in range(COUNT):
            await _connect_and_end(rig, nursery, end)
    assert rig.ledger.traffic.accepted == COUNT + 3
    rig.check_balance()


@pytest.mark.parametrize(
    "request_bytes",
    [b"", UPGRADE[:40], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n",
     UPGRADE.replace(b"13", b"12"), b"GET /ws HTTP/1.1\r\nHost: " + b"x" * 70_000],
    ids=["nothing", "half a head", "a page", "no HTTP", "another version", "too large"],
)  # fmt: skip
async def test_a_refused_request_leaves_nothing_behind(
    request_bytes: bytes, nursery: trio.Nursery
) -> None:
    rig = Rig(nursery)

    async def ask() -> None:
        left, right = trio.socket.socketpair()
        async with trio.SocketStream(left) as stream:
            nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
            with suppress(trio.BrokenResourceError):
                await stream.send_all(request_bytes)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        await trio.testing.wait_all_tasks_blocked(0.001)

    for _ in range(3):
        await ask()
    async with nothing_stays():
        for _ in range(COUNT):
            await ask()
    assert not rig.listener.stats().pending_handshakes
