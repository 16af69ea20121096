"""trio-websocket, from the moment after the handshake, with nothing kept that no server needs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from trio_websocket import WebSocketConnection
from trio_websocket._impl import CloseReason  # not exported, but the type of a public property
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

__all__ = ["ServerWebSocket"]

_RECEIVE_BYTES = 4 * 1024
_DONE = trio.Event()  # shared: nobody ever waits for it
_NO_PINGS: OrderedDict[bytes, trio.Event] = OrderedDict()  # shared: it stays empty


class _Handover:
    """Stands where trio-websocket has a queue and a second task: gives each message over at once.

    While `take` waits, nothing more is read from the client. That is the back-pressure.
    """

    __slots__ = ("take",)

    def __init__(self, take: Callable[[str | bytes], Awaitable[None]]) -> None:
        self.take = take

    async def send(self, message: str | bytes) -> None:
        try:
            await self.take(message)
        except KeyError as error:  # trio-websocket would take it for an event it does not know
            raise RuntimeError("a fault in taking a message") from error

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class ServerWebSocket(WebSocketConnection):
    """A WebSocket whose handshake is done; reads frames, answers pings, does the closing handshake.

    A subclass, because trio-websocket's own way costs an h11 connection, a task and a queue for
    each client: half of the memory of a connection (docs/decisions/0006-own-handshake.md).

    Resource handling: `stream` is closed when the connection has ended.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_message_bytes: int,
        take: Callable[[str | bytes], Awaitable[None]],
    ) -> None:
        """Over `stream`; `take` is called with each message, one after the other."""
        # Not super().__init__(): what it makes for the handshake, for a queue of messages and for
        # pings of its own is a tenth of the price of a connect. A test compares the two.
        self._close_reason = None
        self._id = 0
        self._stream = stream
        self._stream_lock = trio.StrictFIFOLock()
        protocol: Any = Connection(ConnectionType.SERVER)  # has all that is asked of a WSConnection
        self._wsproto = protocol
        self._message_size = 0
        self._message_parts = []
        self._max_message_size = max_message_bytes
        self._receive_buffer_size = _RECEIVE_BYTES
        self._reader_running = True
        self._initial_request = None
        self._path = None
        self._subprotocol = None
        self._handshake_headers = self._reject_headers = ()
        self._reject_status = 0
        self._reject_body = b""
        self._send_channel = self._recv_channel = _Handover(take)  # type: ignore[assignment]
        self._pings = _NO_PINGS
        self._connection_proposal = None
        self._open_handshake = self._close_handshake = _DONE
        self._for_testing_peer_closed_connection = _DONE

    read: Final = WebSocketConnection._reader_task  # noqa: SLF001
    """Read until the connection has ended. What `take` raises comes out here."""

    async def _handle_ping_event(self, event: Ping) -> None:
        # The base answers in any state, which after our close frame is an error.
        if self._wsproto.state is ConnectionState.OPEN:
            await super()._handle_ping_event(event)

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        # What comes behind our close frame is not read. Of a fragmented message the base keeps each
        # part, and empty ones would never reach the limit of bytes.
        is_open = self._wsproto.state is ConnectionState.OPEN
        if is_open and (event.data or event.message_finished):
            await super()._handle_message_event(event)

    def start_closing(self, code: int, reason: str) -> bytes | None:
        """The frame that begins the closing handshake, which `read` completes; None if it began."""
        if self._close_reason is not None or self._wsproto.state is not ConnectionState.OPEN:
            return None
        self._close_reason = CloseReason(code, reason)
        return self._wsproto.send(CloseConnection(code=code, reason=reason))
