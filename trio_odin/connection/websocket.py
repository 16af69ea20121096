"""trio-websocket after the handshake, without the parts that a server does not need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection
from trio_websocket._impl import CloseReason  # not exported, but the type of a public property
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason as FrameCloseReason
from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode, RsvBits

from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.wire.inflate import Inflate, InflateError

__all__ = ["ServerWebSocket"]

# A message may come in far more pieces than frames: each read of a part of a frame is one.
_PIECES_MAX = 64
_TOO_BIG = 1009
# RFC 6455, 7.4.1: the end of the stream without a closing handshake.
_GONE = CloseReason(1006, None)


class _Inflating(Extension):
    """permessage-deflate for what the client sends. Control frames and our own pass unchanged."""

    name = "permessage-deflate"

    def __init__(self, inflate: Inflate) -> None:
        self._inflate = inflate
        self._is_compressed = False

    def enabled(self) -> bool:
        """Whether it was negotiated: it exists only then."""
        return True

    def offer(self) -> bool:
        """What a client would offer."""
        return False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> RsvBits | FrameCloseReason:
        """Allow RSV1 on the first frame of a message (RFC 7692, 6)."""
        is_first = opcode in {Opcode.TEXT, Opcode.BINARY}
        if is_first:
            self._is_compressed = rsv.rsv1
        return RsvBits(is_first, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | FrameCloseReason:
        """Take a part of a frame: the message is inflated at its end."""
        if not self._is_compressed or _is_control(proto):
            return data
        self._inflate.feed(data)
        return b""

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | FrameCloseReason | None:
        """Inflate a message that is complete."""
        if not fin or not self._is_compressed or _is_control(proto):
            return None
        try:
            return self._inflate.end()
        except InflateError:
            return FrameCloseReason.INVALID_FRAME_PAYLOAD_DATA


def _is_control(proto: FrameDecoder | FrameProtocol) -> bool:
    header = proto.header if isinstance(proto, FrameDecoder) else None
    return header is not None and header.opcode.iscontrol()


class _Protocol:
    """wsproto's frames and closing handshake, after the opening one.

    wsproto's parser takes 3 KiB, and most clients send a few commands in hours: so it exists only
    while a message is incomplete or the connection closes. What inflates outlives it, as a message
    may refer to earlier ones.
    """

    __slots__ = ("_connection", "_inflate")
    client = False

    def __init__(self, inflate: Inflate | None = None) -> None:
        self._connection: Connection | None = None
        self._inflate = inflate

    @property
    def state(self) -> ConnectionState:
        """Which side has begun to close."""
        return ConnectionState.OPEN if self._connection is None else self._connection.state

    @property
    def is_excessive(self) -> bool:
        """Whether the peer has deflated a message that is too large."""
        return self._inflate is not None and self._inflate.is_excessive

    def send(self, event: Event) -> bytes:
        """The frame of `event`."""
        return self._awake().send(event)

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent; see `events`."""
        self._awake().receive_data(data)

    def events(self) -> Iterator[Event]:
        """What the peer has done by what was received."""
        if self._connection is not None:
            yield from self._connection.events()
            self._rest()

    def _awake(self) -> Connection:
        if self._connection is None:
            extensions: list[Extension] = []
            if self._inflate is not None:
                extensions.append(_Inflating(self._inflate))
            self._connection = Connection(ConnectionType.SERVER, extensions)
        return self._connection

    def _rest(self) -> None:
        """Drop the parser, if it is between two messages."""
        if self._connection is None or self.state is not ConnectionState.OPEN:
            return
        protocol = self._connection._proto  # noqa: SLF001
        frames = protocol._frame_decoder  # noqa: SLF001
        is_within_message = protocol._message_decoder.opcode is not None  # noqa: SLF001
        if not (frames.header or len(frames.buffer) or is_within_message):
            self.let_go()

    def let_go(self) -> None:
        """Drop the parser. It is a generator that refers to its owner: a reference cycle."""
        if self._connection is not None:
            self._connection._proto._parse_more.close()  # noqa: SLF001
            self._connection = None

    def end(self) -> None:
        """Drop everything: the connection has ended."""
        self.let_go()
        if self._inflate is not None:
            self._inflate.let_go()


class ServerWebSocket(WebSocketConnection):
    """Reads frames, answers pings and does the closing handshake, after the opening handshake.

    A subclass, because trio-websocket's own way costs an h11 connection, a task and a queue per
    client: half of the memory of a connection (docs/decisions/0006-own-handshake.md). `__init__`
    sets only what belongs to one connection; all connections share the rest.

    Resource handling: the closing handshake closes `stream`, after any other end the caller does.
    After a protocol error it has to send the close frame first, and the peer may still be sending.

    Attributes:
        refused_with: the close code, if something that the peer sent ends the connection. The close
            frame was sent for 1009, but not for the other codes, which are for broken frames.
    """

    __slots__ = (
        "_bytes",
        "_fragments",
        "_max_bytes",
        "_max_fragments",
        "_may_answer_ping",
        "_pieces",
        "_take",
        "refused_with",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_message_bytes: int,
        max_fragments: int,
        take: Callable[[str | bytes], Awaitable[None]],
        may_answer_ping: Callable[[], bool],
        client_window_bits: int = 0,
        windows: ByteBudget | None = None,
    ) -> None:
        """Wrap `stream`; `take` is called with each message, one after the other.

        A message longer than `max_message_bytes`, or in more than `max_fragments` frames, ends the
        connection with 1009. A ping for which `may_answer_ping` returns False is ignored. Unless
        `client_window_bits` is 0, the client may deflate messages, see `Inflate`; the limit is for
        what they become, and a little higher for what they are. `windows` is what may be kept of
        earlier messages, of all clients.
        """
        # Not super().__init__(): what that sets is made once, below the class.
        self._stream = stream
        inflate = None
        if client_window_bits:
            inflate = Inflate(
                window_bits=client_window_bits,
                max_bytes=max_message_bytes,
                budget=windows or ByteBudget(),
            )
        self._wsproto: Any = _Protocol(inflate)
        self._take = take
        self.refused_with: int | None = None
        self._may_answer_ping = may_answer_ping
        self._max_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._bytes = self._fragments = 0
        self._pieces: list[Any] = []

    async def read(self) -> None:
        """Read until the connection has ended. Raises what `take` raises.

        While `take` waits, nothing more is read from the client. That is the back-pressure.

        It stands in for trio-websocket's reader, in which each waiting client keeps its last
        message and a table of handlers: 2 KiB of 12.
        """
        while self._reader_running:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._note_gone()
                break
            self._wsproto.receive_data(data)
            del data
            try:
                await self._handle_events()
            except ConnectionClosed:  # the peer has gone while it was answered
                break

    def _note_gone(self) -> None:
        """Note that the peer has gone, unless it has said so before.

        The base class's way makes a parser and an exception, and waits for its turn, which counts
        where ten thousand go at once.
        """
        if self._close_reason is None:
            self._close_reason = _GONE
        self._reader_running = False

    async def _handle_events(self) -> None:
        is_first = True
        for event in self._wsproto.events():
            match event:
                case BytesMessage() | TextMessage():
                    if not is_first:  # one read may bring a hundred commands
                        await trio.lowlevel.checkpoint()
                    is_first = False
                    await self._handle_message_event(event)
                case Ping():
                    await self._handle_ping_event(event)
                case CloseConnection():
                    await self._handle_close_connection_event(event)
                case _:
                    pass  # a pong: `Outbound` knows when anything was heard

    async def _handle_ping_event(self, event: Ping) -> None:
        # The base class answers in any state, which is an error after our close frame.
        if self._wsproto.state is ConnectionState.OPEN and self._may_answer_ping():
            await super()._handle_ping_event(event)

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        """Take one piece of a message: as much of a frame as one read returned."""
        if self._wsproto.state is not ConnectionState.OPEN:
            return  # what comes after our close frame is ignored
        data: Any = event.data
        self._bytes += len(data.encode()) if isinstance(data, str) else len(data)
        self._fragments += event.frame_finished
        if data:
            self._pieces.append(data)
        if self._bytes > self._max_bytes or self._wsproto.is_excessive:
            await self._refuse(f"Exceeded maximum message size: {self._max_bytes} bytes")
        elif self._fragments > self._max_fragments:
            await self._refuse(f"Exceeded maximum number of fragments: {self._max_fragments}")
        elif event.message_finished:
            message = self._joined(event)
            self._forget_message()
            await self._take(message)
        elif len(self._pieces) > _PIECES_MAX:
            self._pieces = [self._joined(event)]

    def _joined(self, event: BytesMessage | TextMessage) -> str | bytes:
        nothing: Any = type(event.data)()
        joined: str | bytes
        joined = self._pieces[0] if len(self._pieces) == 1 else nothing.join(self._pieces)
        return joined

    def _forget_message(self) -> None:
        self._bytes = self._fragments = 0
        self._pieces = []

    async def _refuse(self, why: str) -> None:
        self._forget_message()
        frame = self.start_closing(_TOO_BIG, why)
        self.refused_with = _TOO_BIG
        if frame is not None:  # `read` goes on until the peer answers it
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(frame)

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        # wsproto has the same event for a protocol error, and does not change its state then.
        if self._wsproto.state in {ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING}:
            self.refused_with = self.refused_with or event.code
            await self._abort_web_socket()  # without closing the stream
        else:
            await super()._handle_close_connection_event(event)

    def let_go(self) -> None:
        """Release what outlives a message, and break wsproto's reference cycle.

        The garbage collector would not find that for long.
        """
        self._wsproto.end()

    def start_closing(self, code: int, reason: str) -> bytes | None:
        """Begin the closing handshake, which `read` completes. The frame; None if it has begun."""
        if self._close_reason is not None or self._wsproto.state is not ConnectionState.OPEN:
            return None
        self._close_reason = CloseReason(code, reason)
        frame: bytes = self._wsproto.send(CloseConnection(code=code, reason=reason))
        return frame


# All that trio-websocket's constructor sets, as attributes of the class: connections of ours do not
# use its message queue, its pings, or the events of its handshakes.
_NO_STREAM: Any = None
_SERVER_SIDE: Any = Connection(ConnectionType.SERVER)
_MADE_ONCE = WebSocketConnection(_NO_STREAM, _SERVER_SIDE, message_queue_size=0)
for _name, _value in vars(_MADE_ONCE).items():
    setattr(ServerWebSocket, _name, _value)
# Only the reader sends through it, and `Outbound` keeps the order.
ServerWebSocket._stream_lock = nullcontext()  # type: ignore[assignment]  # noqa: SLF001
