"""trio-websocket after the handshake, without the parts that a server does not need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio
from trio_websocket import WebSocketConnection
from trio_websocket._impl import CloseReason  # not exported, but the type of a public property
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

__all__ = ["ServerWebSocket"]

# A message may come in far more pieces than frames: each read of a part of a frame is one.
_PIECES_MAX = 64
_TOO_BIG = 1009


class _Handover:
    """Replaces trio-websocket's message queue and second task: hands each message over at once.

    While `take` waits, nothing more is read from the client. That is the back-pressure.
    """

    __slots__ = ("take",)

    def __init__(self, take: Callable[[str | bytes], Awaitable[None]]) -> None:
        self.take = take

    async def send(self, message: str | bytes) -> None:
        try:
            await self.take(message)
        except KeyError as error:  # trio-websocket would take it for an unknown event
            raise RuntimeError("a fault in taking a message") from error

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _NothingMore:
    """Replaces the stream after a protocol error: trio-websocket would read once more."""

    async def receive_some(self, _: int | None = None) -> bytes:
        raise trio.ClosedResourceError


_NOTHING_MORE: Any = _NothingMore()  # shared


def _protocol() -> Any:
    """Frames and the closing handshake of one connection, whose opening handshake is complete."""
    return Connection(ConnectionType.SERVER)  # has all that is used of a wsproto.WSConnection


class ServerWebSocket(WebSocketConnection):
    """Reads frames, answers pings and does the closing handshake, after the opening handshake.

    A subclass, because trio-websocket's own way costs an h11 connection, a task and a queue per
    client: half of the memory of a connection (docs/decisions/0006-own-handshake.md). `__init__`
    sets only what belongs to one connection; all connections share the rest.

    Resource handling: `stream` is closed when the connection has ended, except after a protocol
    error: the caller has to send the close frame, and the peer may still be sending.

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
    ) -> None:
        """Wrap `stream`; `take` is called with each message, one after the other.

        A message longer than `max_message_bytes`, or in more than `max_fragments` frames, ends the
        connection with 1009. A ping for which `may_answer_ping` returns False is ignored.
        """
        # Not super().__init__(): what that sets is made once, below the class.
        self._stream = stream
        self._stream_lock = trio.StrictFIFOLock()
        self._wsproto = _protocol()
        self._send_channel = _Handover(take)  # type: ignore[assignment]
        self.refused_with: int | None = None
        self._may_answer_ping = may_answer_ping
        self._max_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._bytes = self._fragments = 0
        self._pieces: list[Any] = []

    read: Final = WebSocketConnection._reader_task  # noqa: SLF001
    """Read until the connection has ended. Raises what `take` raises."""

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
        if self._bytes > self._max_bytes:
            await self._refuse(f"Exceeded maximum message size: {self._max_bytes} bytes")
        elif self._fragments > self._max_fragments:
            await self._refuse(f"Exceeded maximum number of fragments: {self._max_fragments}")
        elif event.message_finished:
            message = self._joined(event)
            self._forget_message()
            await self._send_channel.send(message)
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
            self._stream = _NOTHING_MORE
        else:
            await super()._handle_close_connection_event(event)

    def let_go(self) -> None:
        """Break wsproto's reference cycle: its parser is a generator that refers to its owner.

        Only a close frame from the peer ends the generator by itself, and the garbage collector
        ignores what has lived for long.
        """
        self._wsproto._proto._parse_more.close()  # type: ignore[attr-defined]  # noqa: SLF001

    def start_closing(self, code: int, reason: str) -> bytes | None:
        """Begin the closing handshake, which `read` completes. The frame; None if it has begun."""
        if self._close_reason is not None or self._wsproto.state is not ConnectionState.OPEN:
            return None
        self._close_reason = CloseReason(code, reason)
        return self._wsproto.send(CloseConnection(code=code, reason=reason))


# All that trio-websocket's constructor sets, as attributes of the class: connections of ours do not
# use its message queue, its pings, or the events of its handshakes.
_MADE_ONCE = WebSocketConnection(_NOTHING_MORE, _protocol(), message_queue_size=0)
for _name, _value in vars(_MADE_ONCE).items():
    setattr(ServerWebSocket, _name, _value)
