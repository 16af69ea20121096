"""Frames that RFC 6455 forbids: each ends its connection, with its code and a label."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Event, Pong, TextMessage

from tests.server_rig import UPGRADE, Rig, receive_all
from trio_odin.lab.fleet.dialects import masked_frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80


def head(first: int, length: bytes) -> bytes:
    """The head of a masked frame, `length` as on the wire, with a mask that changes nothing."""
    return bytes((first, 0x80 | length[0])) + length[1:] + bytes(4)


def closing(code: int, reason: bytes = b"") -> bytes:
    return masked_frame(FIN | CLOSE, struct.pack("!H", code) + reason)


START = masked_frame(TEXT, b"a message ")

BROKEN = {
    "first reserved bit": (masked_frame(FIN | 0x40 | TEXT, b"x"), 1002),
    "second reserved bit": (masked_frame(FIN | 0x20 | TEXT, b"x"), 1002),
    "third reserved bit": (masked_frame(FIN | 0x10 | PING, b""), 1002),
    "reserved bit of a continuation": (START + masked_frame(FIN | 0x40, b"x"), 1002),
    **{
        f"reserved opcode {code:#x}": (masked_frame(FIN | code, b""), 1002)
        for code in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)
    },
    "not masked": (b"\x81\x01x", 1002),
    "ping not masked": (b"\x89\x00", 1002),
    "length in 16 bits for 7": (head(FIN | TEXT, b"\x7e\x00\x7d") + bytes(125), 1002),
    "length in 64 bits for 7": (head(FIN | TEXT, b"\x7f" + bytes(8)), 1002),
    "length in 64 bits for 16": (head(FIN | TEXT, b"\x7f" + struct.pack("!Q", 0xFFFF)), 1002),
    "length of 2^63": (head(FIN | TEXT, b"\x7f\x80" + bytes(7)), 1002),
    "length of 2^64-1": (head(FIN | TEXT, b"\x7f" + b"\xff" * 8), 1002),
    "ping of 126": (head(FIN | PING, b"\x7e\x00\x7e") + bytes(126), 1002),
    "ping of 2^63-1": (head(FIN | PING, b"\x7f\x7f" + b"\xff" * 7), 1002),
    "close of 126": (head(FIN | CLOSE, b"\x7e\x00\x7e") + bytes(126), 1002),
    "fragmented ping": (masked_frame(PING, b""), 1002),
    "fragmented close": (masked_frame(CLOSE, b""), 1002),
    "continuation of nothing": (masked_frame(FIN | CONTINUATION, b"x"), 1002),
    "continuation of nothing, unfinished": (masked_frame(CONTINUATION, b""), 1002),
    "continuation after the end": (
        START + masked_frame(FIN, b"") + masked_frame(FIN | CONTINUATION, b""),
        1002,
    ),
    "new text within a message": (START + masked_frame(FIN | TEXT, b"x"), 1002),
    "new binary within a message": (START + masked_frame(FIN | BINARY, b"x"), 1002),
    "close of one byte": (masked_frame(FIN | CLOSE, b"\x03"), 1002),
    **{
        f"close code {code}": (closing(code), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close with a reason that is not UTF-8": (closing(1000, b"\xff"), 1007),
    "close with a reason that is cut": (closing(1000, "\N{ELEPHANT}".encode()[:3]), 1007),
    "not UTF-8": (masked_frame(FIN | TEXT, b"caf\xe9"), 1007),
    "a surrogate": (masked_frame(FIN | TEXT, b"\xed\xa0\x80"), 1007),
    "beyond Unicode": (masked_frame(FIN | TEXT, b"\xf4\x90\x80\x80"), 1007),
    "overlong": (masked_frame(FIN | TEXT, b"\xc0\xaf"), 1007),
    "cut at the end": (masked_frame(FIN | TEXT, "\N{ELEPHANT}".encode()[:3]), 1007),
    "not UTF-8, over two frames": (
        masked_frame(TEXT, b"\xce") + masked_frame(FIN | CONTINUATION, b"\xff"),
        1007,
    ),
    "cut at the end of the last frame": (START + masked_frame(FIN, b"\xce"), 1007),
    # Closed at once, not when the message is complete.
    "not UTF-8 in a frame that never ends": (head(TEXT, b"\x7e\xff\xff") + b"x\xff", 1007),
    "not UTF-8 in a message that never ends": (masked_frame(TEXT, b"\xff"), 1007),
    "too long": (masked_frame(FIN | TEXT, b"x" * 16385), 1009),
    "too long in pieces": (masked_frame(TEXT, b"x" * 9000) + masked_frame(0, b"x" * 9000), 1009),
    "too long a binary message": (masked_frame(FIN | BINARY, b"x" * 16385), 1009),
    "length of 2^63-1": (head(FIN | BINARY, b"\x7f\x7f" + b"\xff" * 7) + b"x" * 20_000, 1009),
    "too many fragments": (START + masked_frame(0, b"x") * 64, 1009),
    "too many empty fragments": (masked_frame(TEXT, b"") + masked_frame(0, b"") * 64, 1009),
    "too many fragments with pings between": (
        masked_frame(BINARY, b"") + (masked_frame(FIN | PING, b"") + masked_frame(0, b"")) * 64,
        1009,
    ),
}
LABELS = {1002: "protocol_error", 1007: "protocol_error", 1009: "message_too_big"}


async def open_socket(nursery: trio.Nursery, rig: Rig) -> trio.SocketStream:
    """A client after its handshake, over a real socket, so that a reset loses bytes."""
    left, right = trio.socket.socketpair()
    nursery.start_soon(rig.listener.serve, trio.SocketStream(right))
    client = trio.SocketStream(left)
    await client.send_all(UPGRADE)
    assert (await client.receive_some()).startswith(b"HTTP/1.1 101")
    return client


def events_of(received: bytes) -> list[Event]:
    protocol = Protocol(ConnectionType.CLIENT)
    protocol.receive_data(received)
    return list(protocol.events())


@pytest.mark.parametrize(("frames", "code"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_rule_ends_the_connection_with_its_code(
    frames: bytes, code: int, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(nursery)
    async with await open_socket(nursery, rig) as client:
        with trio.fail_after(5):
            await client.send_all(frames)
            if code == 1009:
                await client.send_all(closing(code))
                await client.send_eof()
            received = await receive_all(client)
    await rig.listener.wait_empty()
    last = [event for event in events_of(received) if not isinstance(event, Pong)]
    assert [event.code for event in last if isinstance(event, CloseConnection)] == [code]
    assert rig.ledger.traffic.closed == {LABELS[code]: 1}
    assert not rig.hub.members
    assert not caplog.records


@pytest.mark.parametrize("step", [1, 2, 3, 7])
async def test_the_number_of_pieces_of_a_frame_makes_no_difference(
    step: int, nursery: trio.Nursery
) -> None:
    for name, (frames, code) in BROKEN.items():
        if len(frames) > 400:
            continue
        rig = Rig(nursery)
        stream = rig.open_stream()
        await stream.send_all(UPGRADE)
        await trio.testing.wait_all_tasks_blocked()
        with suppress(trio.BrokenResourceError):  # closed before the last piece
            for start in range(0, len(frames), step):
                await stream.send_all(frames[start : start + step])
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        label = LABELS[code]
        assert rig.ledger.traffic.closed == ({label: 1} if code != 1009 else {}), name
        await stream.aclose()
        await rig.listener.wait_empty()
        assert rig.ledger.traffic.closed == {label: 1}, name


async def test_a_client_that_still_sends_sees_the_code_and_not_a_reset(
    nursery: trio.Nursery,
) -> None:
    rig = Rig(nursery)
    async with await open_socket(nursery, rig) as client, trio.open_nursery() as both:
        both.start_soon(client.send_all, b"\xff" * 300_000)
        with trio.fail_after(5):
            received = await receive_all(client)
    (close,) = events_of(received)
    assert isinstance(close, CloseConnection)
    assert close.code == 1002


async def test_a_client_that_never_stops_sending_is_cut_off(nursery: trio.Nursery) -> None:
    rig = Rig(nursery)
    async with await open_socket(nursery, rig) as client:
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"\xff" * 100_000_000)
    await rig.listener.wait_empty()
    assert rig.ledger.traffic.closed == {"protocol_error": 1}


async def test_a_flood_of_pings_is_answered_within_the_message_rate(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig(nursery, WS_COMMAND_BURST="3", WS_COMMAND_RATE="1")
    client = await rig.connect()
    await client._stream.send_all(masked_frame(FIN | PING, b"flood") * 1000)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ledger.traffic.rate_limited == 997
    await client.send_message('{"type":"heartbeat"}')
    assert "RATE_LIMIT_EXCEEDED" in await client.get_message()
    await trio.sleep(1)
    await client.send_message('{"type":"heartbeat","id":7}')
    assert '"id":7' in await client.get_message()
    assert rig.ledger.traffic.closed == {}


async def test_a_flood_of_pongs_costs_nothing_and_is_not_a_message(nursery: trio.Nursery) -> None:
    rig = Rig(nursery, WS_COMMAND_BURST="1", WS_COMMAND_RATE="1")
    async with await open_socket(nursery, rig) as client:
        await client.send_all(masked_frame(FIN | PONG, b"") * 500)
        await client.send_all(masked_frame(FIN | PONG, os.urandom(100)) * 500)
        await client.send_all(masked_frame(FIN | TEXT, b'{"type":"heartbeat"}'))
        (event,) = events_of(await client.receive_some())
        assert isinstance(event, TextMessage)
        assert '"pong"' in event.data
    assert rig.ledger.traffic.rate_limited == 0
