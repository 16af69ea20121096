"""What a client deflates, as `ServerWebSocket` reads it; frames are made by wsproto or by hand."""

from __future__ import annotations

import os
import zlib
from typing import Any

import pytest
import trio
import trio.testing
from wsproto import ConnectionType
from wsproto.connection import Connection as Protocol
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.connection.test_websocket import Taken
from trio_odin.connection.websocket import ServerWebSocket
from trio_odin.lab.fleet.dialects import masked_frame
from trio_odin.overload.byte_budget import ByteBudget

FIN, RSV1, RSV2 = 0x80, 0x40, 0x20
TEXT, CONTINUATION, PING = 1, 0, 9


def deflated(text: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Client:
    """wsproto as a client with permessage-deflate; `takes_over`: it refers to earlier messages."""

    def __init__(self, stream: trio.abc.Stream, *, takes_over: bool) -> None:
        self.stream = stream
        extension = PerMessageDeflate()
        answer = "permessage-deflate" + "; client_no_context_takeover" * (not takes_over)
        extension.finalize(answer)
        self.protocol = Protocol(ConnectionType.CLIENT, extensions=[extension])

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def receive(self) -> Event:
        with trio.fail_after(5):
            while True:
                data = bytes(await self.stream.receive_some())
                self.protocol.receive_data(data or None)
                for event in self.protocol.events():
                    return event


class Rig:
    def __init__(self, nursery: trio.Nursery, *, takes_over: bool = False, **limits: Any) -> None:
        near, far = trio.testing.memory_stream_pair()
        self.taken: Taken = []
        self.client = Client(far, takes_over=takes_over)
        self.websocket = ServerWebSocket(
            near,
            take=self._take,
            may_answer_ping=lambda: True,
            client_window_bits=15,
            **{"max_message_bytes": 10_000, "max_fragments": 64} | limits,
        )
        nursery.start_soon(self.websocket.read)

    async def _take(self, message: str | bytes) -> None:
        self.taken.append(message)

    async def feed(self, *frames: bytes) -> None:
        """Send `frames`, byte by byte, and wait until the server has read them."""
        for octet in b"".join(frames):
            try:
                await self.client.stream.send_all(bytes((octet,)))
            except trio.BrokenResourceError:
                break
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("takes_over", [False, True])
async def test_a_client_library_is_understood(nursery: trio.Nursery, takes_over: bool) -> None:
    rig = Rig(nursery, takes_over=takes_over)
    sent: Taken = []
    for number in range(20):
        text = f'{{"type":"subscribe","channels":["T{number}.trade"]}}'
        data = text.encode() + os.urandom(200)
        sent += [text, data]
        await rig.client.send(TextMessage(text[:10], message_finished=False))
        await rig.client.send(TextMessage(text[10:]))
        await rig.client.send(BytesMessage(data))
        await rig.client.send(Ping(b"x"))
        assert await rig.client.receive() == Pong(b"x")
    assert rig.taken == sent


async def test_parts_of_a_message_come_around_a_ping(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    text = b'{"type":"heartbeat"}' * 20
    data = deflated(text)
    await rig.feed(
        masked_frame(RSV1 | TEXT, data[:5]),
        masked_frame(FIN | PING, b"p"),
        masked_frame(CONTINUATION, b""),
        masked_frame(FIN | CONTINUATION, data[5:]),
        masked_frame(FIN | TEXT, b"plain"),
        masked_frame(FIN | RSV1 | TEXT, b"\0"),
    )
    assert rig.taken == [text.decode(), "plain", ""]
    assert await rig.client.receive() == Pong(b"p")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        # RSV1 is for the first frame of a message (RFC 7692, 6); no other bit has a meaning.
        ([masked_frame(RSV1 | TEXT, b"\0"), masked_frame(FIN | RSV1 | CONTINUATION, b"\0")], 1002),
        ([masked_frame(TEXT, b"a"), masked_frame(FIN | RSV1 | CONTINUATION, b"b")], 1002),
        ([masked_frame(FIN | RSV1 | PING, deflated(b"x"))], 1002),
        ([masked_frame(FIN | RSV1 | 8, b"")], 1002),
        ([masked_frame(FIN | RSV2 | TEXT, b"x")], 1002),
        ([masked_frame(FIN | RSV1 | RSV2 | TEXT, deflated(b"x"))], 1002),
        # What is not deflated, and what is no text when it is inflated (RFC 6455, 7.4.1).
        ([masked_frame(FIN | RSV1 | TEXT, b"\xff\xff\xff\xff")], 1007),
        ([masked_frame(RSV1 | TEXT, deflated(b"a")), masked_frame(FIN, b"\x07")], 1007),
        ([masked_frame(FIN | RSV1 | TEXT, deflated(b"\xff\xfe"))], 1007),
    ],
)
async def test_a_broken_rule_ends_the_connection(
    nursery: trio.Nursery, frames: list[bytes], code: int
) -> None:
    rig = Rig(nursery)
    await rig.feed(*frames)
    assert rig.taken == []
    assert rig.websocket.refused_with == code


EMPTY_BLOCK, LAST_BLOCK = b"\0\0\0\xff\xff", b"\3\0"
BOMBS = [
    deflated(b"\0" * 10_000_000),
    deflated("ä".encode() * 5_000_000),
    deflated("€".encode() * 1000),
    EMPTY_BLOCK * 500,
    LAST_BLOCK + b"x" * 5000,
]


@pytest.mark.parametrize("data", BOMBS)
async def test_a_bomb_is_refused_and_not_inflated(nursery: trio.Nursery, data: bytes) -> None:
    rig = Rig(nursery, max_message_bytes=1000)
    await rig.client.stream.send_all(masked_frame(FIN | RSV1 | TEXT, data))
    closing = await rig.client.receive()
    assert isinstance(closing, CloseConnection)
    assert (closing.code, closing.reason) == (1009, "Exceeded maximum message size: 1000 bytes")
    assert rig.websocket.refused_with == 1009
    assert rig.taken == []


@pytest.mark.parametrize("piece", [EMPTY_BLOCK, LAST_BLOCK])
async def test_a_frame_without_end_is_refused(nursery: trio.Nursery, piece: bytes) -> None:
    rig = Rig(nursery, max_message_bytes=1000)
    head = bytes([FIN | RSV1 | TEXT, 0xFF]) + (2**40).to_bytes(8, "big") + bytes(4)
    await rig.client.stream.send_all(head + piece * 100)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.websocket.refused_with is None
    for _ in range(10):
        await rig.client.stream.send_all(piece * 100)
    closing = await rig.client.receive()
    assert isinstance(closing, CloseConnection)
    assert closing.code == 1009


async def test_what_is_kept_of_earlier_messages_has_a_limit(nursery: trio.Nursery) -> None:
    windows = ByteBudget(limit_bytes=300)
    rigs = [Rig(nursery, takes_over=True, windows=windows) for _ in range(2)]
    for rig in rigs:
        await rig.client.send(TextMessage("x" + "1234567890" * 20))
        await trio.testing.wait_all_tasks_blocked()
    assert windows.used_bytes == 201
    for rig in rigs:
        await rig.client.send(TextMessage("y" + "1234567890" * 9))
        await trio.testing.wait_all_tasks_blocked()
    assert [(len(rig.taken), rig.websocket.refused_with) for rig in rigs] == [(2, None), (1, 1007)]
    for rig in rigs:
        rig.websocket.let_go()
    assert windows.used_bytes == 0


@pytest.mark.parametrize("size", [999, 1000, 1001])
async def test_the_limit_is_for_inflated_bytes(nursery: trio.Nursery, size: int) -> None:
    rig = Rig(nursery, max_message_bytes=1000)
    await rig.feed(masked_frame(FIN | RSV1 | TEXT, deflated(b"x" * size)))
    assert rig.taken == (["x" * size] if size <= 1000 else [])


async def test_without_the_extension_rsv1_is_an_error(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    near, far = trio.testing.memory_stream_pair()
    websocket = ServerWebSocket(
        near,
        take=rig._take,
        may_answer_ping=lambda: True,
        max_message_bytes=1000,
        max_fragments=9,
    )
    nursery.start_soon(websocket.read)
    await far.send_all(masked_frame(FIN | RSV1 | TEXT, deflated(b"x")))
    await trio.testing.wait_all_tasks_blocked()
    assert websocket.refused_with == 1002
