"""The fuzz targets: each takes any bytes and raises if the server misbehaves.

No exception escapes, memory is bounded, the output consists of valid frames, and a connection ends
with a code that is meant for the peer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import h11
import trio
import trio.testing
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Pong, TextMessage

from tests.connection.client import as_sent
from tests.server_rig import UPGRADE, Rig
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.connection.websocket import ServerWebSocket
from trio_odin.fanout.registry import Registry
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.ledger.counters import Traffic
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.upstream.status import NatsStatus
from trio_odin.wire import handshake
from trio_odin.wire.commands import parse_command
from trio_odin.wire.dictionary import built_in
from trio_odin.wire.handshake import Rejected, Upgrade
from trio_odin.wire.inflate import Inflate, InflateError
from trio_odin.wire.negotiation import Encodings

_MESSAGE_BYTES = 512
_FRAGMENTS = 8
# What deflated text may have in addition, and how many streams.
_BLOCK_HEADS_BYTES = 1024
_STREAMS = 64
_LONGEST_HEAD_BYTES = 14
_CODES = {1002, 1007, 1009}
# A reply repeats the bad channel names, each one cut.
_REPLY_BYTES = 16 * 1024
_HEAD = b"GET /ws HTTP/1.1\r\n"


def commands(data: bytes) -> None:
    """Feed lines of text as one client's messages."""
    registry: Registry[str] = Registry()
    limits = SessionLimits(max_channels=8, commands_per_second=0)
    resume_buffer = ResumeBuffer(max_age_seconds=30)
    for offset in range(3, 9):
        resume_buffer.add(NatsMessage("odin.token.A.b", b"1", offset, 0), "A.b")
    session = Session(
        "me",
        registry,
        replay_buffer=ReplayBuffer(4),
        resume_buffer=resume_buffer,
        limits=limits,
        traffic=Traffic(),
        nats_status=NatsStatus(),
        now=0,
    )
    for line in data.decode(errors="replace").split("\n"):
        parse_command(line)
        answers = session.receive(line, now=0, unix_ms=0)
        events = _events(b"".join(as_sent(answers, session.replay_buffer)))
        for event in events:
            assert isinstance(event, TextMessage)
            assert len(event.data) < max(_REPLY_BYTES, 4 * len(line))
            assert json.loads(event.data)["type"]
    assert len(registry.channels("me")) <= limits.max_channels


def head(data: bytes) -> None:
    """Feed lines after a request for a WebSocket."""
    for request in (data, _HEAD + data, _HEAD + data + b"\r\n\r\n"):
        if not handshake.is_websocket_request(request) or not request.endswith(b"\r\n\r\n"):
            continue
        answer = handshake.parse(request)
        if isinstance(answer, Rejected):
            assert answer.status in {400, 426}
        else:
            _check_upgrade(answer)


def _check_upgrade(answer: Upgrade) -> None:
    client = h11.Connection(h11.CLIENT)
    host = ("Host", "a")
    client.send(h11.Request(method="GET", target="/ws", headers=[host, ("Upgrade", "websocket")]))
    encodings = Encodings(built_in(), has_deflate=True)
    client.receive_data(answer.response(answer.agree(encodings)))
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert event.status_code == 101


def frames(data: bytes) -> None:
    """Feed bytes in pieces after a handshake; another parser must agree."""
    pieces = _pieces(data)
    trio.run(_read_frames, pieces)


def deflated(data: bytes) -> None:
    """The same with permessage-deflate, and as one message without frames."""
    trio.run(_read_deflated_frames, _pieces(data))
    _inflate(data)


def _inflate(data: bytes) -> None:
    """Feed one message, in two pieces; zlib must agree if it is asked byte by byte."""
    budget = ByteBudget(limit_bytes=_MESSAGE_BYTES)
    inflate = Inflate(window_bits=15, max_bytes=_MESSAGE_BYTES, budget=budget)
    half = len(data) // 2
    ours: bytes | None
    try:
        for piece in (data[:half], data[half:]):
            inflate.feed(piece)
        ours = inflate.end()
    except InflateError:
        ours = None
    if len(data) > _MESSAGE_BYTES + _BLOCK_HEADS_BYTES:
        assert inflate.is_excessive
    else:
        theirs = _inflated_by_bytes(data + b"\0\0\xff\xff")
        is_excessive = theirs is not None and len(theirs) > _MESSAGE_BYTES
        assert (b"" if is_excessive else theirs) == ours
        assert is_excessive == inflate.is_excessive
    inflate.let_go()
    assert not budget.used_bytes


def _inflated_by_bytes(data: bytes) -> bytes | None:
    """What zlib inflates, one byte after the other, up to the limit; None: it is not deflated.

    A byte is never after the end of a stream then: it begins another one (RFC 7692, 7.2.1).
    """
    text, streams = b"", 0
    stream = None
    for octet in data:
        if stream is None or stream.eof:
            stream = zlib.decompressobj(-15, zdict=text)
            streams += 1
        try:
            text += stream.decompress(bytes((octet,)), _MESSAGE_BYTES + 1 - len(text))
        except zlib.error:
            return None
        if len(text) > _MESSAGE_BYTES:
            break
    return text if streams <= _STREAMS else None


async def _read_deflated_frames(pieces: list[bytes]) -> None:
    await _read_frames(pieces, client_window_bits=15)


async def _read_frames(pieces: list[bytes], client_window_bits: int = 0) -> None:
    near, far = trio.testing.memory_stream_pair()
    taken: list[str | bytes] = []

    async def take(message: str | bytes) -> None:
        taken.append(message)

    websocket = ServerWebSocket(
        near,
        max_message_bytes=_MESSAGE_BYTES,
        max_fragments=_FRAGMENTS,
        take=take,
        may_answer_ping=lambda: True,
        client_window_bits=client_window_bits,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(websocket.read)
        for piece in pieces:
            try:
                await far.send_all(piece)
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
            assert len(websocket._message_parts) <= 65
        await trio.testing.wait_all_tasks_blocked()
        await far.send_stream.aclose()
    await near.aclose()
    sent = b""
    while chunk := await far.receive_some():
        sent += chunk
    closes = [event.code for event in _events(sent) if isinstance(event, CloseConnection)]
    refused = websocket.refused_with
    assert refused is None or refused in _CODES
    assert websocket.closed is not None
    assert all(len(message) <= _MESSAGE_BYTES for message in taken)
    assert len(closes) <= 1
    if not client_window_bits and (refused is None or refused == 1002):
        _compare(b"".join(pieces), taken, is_broken=refused == 1002)


def _compare(data: bytes, taken: list[str | bytes], *, is_broken: bool) -> None:
    """`websockets` must find the same messages, and no violation that we do not find.

    This leaves out invalid UTF-8, exceeded limits, and lengths in more bytes than necessary, which
    its parser does not check.
    """
    ours = [message.encode() if isinstance(message, str) else message for message in taken]
    theirs, _ = _parsed_by_websockets(data)
    assert ours == (theirs[: len(ours)] if is_broken else theirs)
    # wsproto judges a complete head, `websockets` each byte of it.
    _, error = _parsed_by_websockets(data[: 1 - _LONGEST_HEAD_BYTES])
    assert is_broken or error is None, error


def _parsed_by_websockets(data: bytes) -> tuple[list[bytes], ProtocolError | None]:
    """The messages, and the violation after them."""
    protocol = Protocol(SERVER, state=State.OPEN, max_size=None)
    protocol.receive_data(data)
    protocol.receive_eof()
    messages: list[bytes] = []
    parts: list[bytes] = []
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            parts.append(bytes(event.data))
            if event.fin:
                messages.append(b"".join(parts))
                parts = []
    error = protocol.parser_exc
    # RFC 6455, 5.4: a close may come between the fragments of a message, as any control frame.
    if not isinstance(error, ProtocolError) or "incomplete fragmented" in str(error):
        return messages, None
    return messages, error


def whole(data: bytes) -> None:
    """Feed a fresh socket: any bytes, and any bytes after a good request."""
    for start in ([], [UPGRADE]):
        trio.run(_serve, [*start, *_pieces(data)], bool(start))


async def _serve(pieces: list[bytes], is_websocket: bool) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, WS_MAX_MESSAGE_BYTES=str(_MESSAGE_BYTES), WS_MAX_FRAGMENTS="8")
        stream = rig.open_stream()
        for piece in pieces:
            try:
                await stream.send_all(piece)
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_stream.aclose()
        received = b""
        with trio.fail_after(5):
            while chunk := await stream.receive_some():
                received += chunk
            await rig.listener.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
    traffic = rig.ledger.traffic
    assert not traffic.closed["internal_error"]
    assert not rig.hub.members
    rig.check_balance()
    if is_websocket:
        answer, _, frames = received.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        for event in _events(frames):
            assert isinstance(event, (TextMessage, Pong, CloseConnection))
            if isinstance(event, TextMessage):
                json.loads(event.data)
    elif received:
        assert received.startswith(b"HTTP/1.1 ")


def _pieces(data: bytes) -> list[bytes]:
    """Split the data into pieces whose length is in the first byte."""
    size = data[0] + 1 if data else 1
    rest = data[1:]
    return [rest[start : start + size] for start in range(0, len(rest), size)]


def _events(sent: bytes) -> list[Event]:
    """Parse the events; fails if the server has sent something other than frames."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(sent)
    events = list(client.events())
    assert not any(
        isinstance(event, CloseConnection) and client.state.name == "OPEN" for event in events
    ), "the server has broken a rule"
    return events


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "commands": commands,
    "head": head,
    "frames": frames,
    "deflated": deflated,
    "whole": whole,
}
