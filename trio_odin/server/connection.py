"""One WebSocket connection: its tasks, its scope, its end.

    Connection.run            the reader: commands → session → replies
    ├── trio-websocket        socket → messages; pongs and the close handshake
    └── Outlet.run_writer     outbox → socket; asleep unless the socket would block

The nursery's cancel scope is the eviction: `evict` names the reason, stops the outlet and cancels.
"""

from __future__ import annotations

import itertools
import time

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from trio_odin.config import Settings
from trio_odin.core.closing import CloseReason
from trio_odin.core.frame import close_frame
from trio_odin.core.session import Session
from trio_odin.net.http import Response, send_response
from trio_odin.server.hub import Hub
from trio_odin.server.keepalive import PingWheel
from trio_odin.server.outlet import Outlet

# How long a peer may take to answer our close frame.
_CLOSE_HANDSHAKE_SECONDS = 3.0
_RECEIVE_BYTES = 4 * 1024
# RFC 6455, 7.4.1: protocol error, data of a type or content that cannot be.
_BROKEN_RULES = {1002, 1003, 1007}
_REASONS = {1006: CloseReason.PEER_GONE, 1009: CloseReason.MESSAGE_TOO_BIG}

_log = structlog.get_logger("connection")
_numbers = itertools.count(1)


class Connection:
    """A client. Hashable by identity: it is the subscriber in the registry.

    Attributes:
        number: counts up per process, for the log.
        outlet: where envelopes for it go.
        session: what it may say, and its history.
        close_reason: set once the end is decided or has come.
    """

    __slots__ = (
        "_hub",
        "_nursery",
        "_reading",
        "_settings",
        "_stream",
        "_websocket",
        "_wheel",
        "close_reason",
        "history",
        "number",
        "outlet",
        "session",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        head: bytes,
        *,
        hub: Hub[Connection],
        wheel: PingWheel[Connection],
        settings: Settings,
    ) -> None:
        """A connection over `stream`, from which the handshake's `head` was received already."""
        self.number = next(_numbers)
        self.close_reason: CloseReason | None = None
        self.outlet = Outlet(
            stream,
            head=head,
            capacity=settings.outbox_capacity,
            write_deadline_seconds=settings.write_deadline_seconds,
            ledger=hub.ledger,
            owner=self,
        )
        self.session = Session(
            self,
            hub.registry,
            limits=hub.session_limits,
            traffic=hub.ledger.traffic,
            now=trio.current_time(),
        )
        self.history = self.session.history
        self._stream = stream
        self._hub = hub
        self._wheel = wheel
        self._settings = settings
        self._nursery: trio.Nursery | None = None
        self._reading: trio.CancelScope | None = None
        self._websocket: WebSocketConnection | None = None

    async def run(self) -> None:
        """Serve the client until either side ends it. Nothing it sends raises out of here.

        Cancellation: the socket is closed at once, without a close frame.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.outlet.run_writer)
                websocket = await self._shake_hands(nursery)
                if websocket is not None:
                    await self._serve(websocket)
                nursery.cancel_scope.cancel(reason="the connection has ended")
        except Exception:  # noqa: BLE001 - a fault in one connection must not end the others
            if self._reading is None:
                await self._refuse()
            elif self.close_reason is not None:
                # trio-websocket cannot answer a ping once we have sent our close frame.
                _log.debug("connection.failed_while_closing", connection=self.number)
            else:
                self.evict(CloseReason.INTERNAL_ERROR)
                _log.exception("connection.failed", connection=self.number)
        finally:
            self._nursery = None
            self.outlet.stop()
            await trio.aclose_forcefully(self.outlet)
            self._let_go()

    def _let_go(self) -> None:
        """Break the reference cycles, so that an ended connection is freed at once."""
        self.outlet.forget_owner()
        self._websocket = None
        del self.session

    async def _shake_hands(self, nursery: trio.Nursery) -> WebSocketConnection | None:
        with trio.move_on_after(self._settings.handshake_seconds):
            request = await wrap_server_stream(
                nursery,
                self.outlet,
                max_message_size=self._settings.max_message_bytes,
                receive_buffer_size=_RECEIVE_BYTES,
            )
            return await request.accept()
        self._hub.ledger.traffic.rejected["timeout"] += 1
        return None

    async def _refuse(self) -> None:
        """Answer a head that trio-websocket's parser choked on, such as an impossible host name."""
        self._hub.ledger.traffic.rejected["bad_request"] += 1
        self.outlet.stop()
        with trio.move_on_after(self._settings.write_deadline_seconds):
            await send_response(self._stream, Response.text(400, "Bad WebSocket handshake"))

    async def _serve(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        with self._hub.membership(self), self._wheel.pinging(self):
            _log.debug("connection.opened", connection=self.number)
            with trio.CancelScope() as self._reading:
                if self._hub.is_draining:  # it began while we shook hands
                    self.leave()
                await self._read(websocket)
            self._say_which_rule_was_broken()
            if self.close_reason is None:
                self.close_reason = _reason_of_peer(websocket)
            if self.close_reason is CloseReason.DRAINING:
                await self._leave_in_order(websocket)
            _log.debug("connection.closed", connection=self.number, reason=self.close_reason.label)

    async def _read(self, websocket: WebSocketConnection) -> None:
        traffic = self._hub.ledger.traffic
        while True:
            try:
                message = await websocket.get_message()
            except ConnectionClosed:
                return
            traffic.messages_received += 1
            if isinstance(message, bytes):
                traffic.binary_ignored += 1
                continue
            replies = self.session.receive(
                message, now=trio.current_time(), unix_ms=time.time_ns() // 1_000_000
            )
            if replies:
                try:
                    await self.outlet.send_all(b"".join(replies))
                except trio.BrokenResourceError:
                    return

    def evict(self, reason: CloseReason) -> None:
        """End the connection now, for `reason`; only the first one counts. Does not wait."""
        if self.close_reason is None:
            self.close_reason = reason
            farewell = b"" if reason.code is None else close_frame(reason.code, reason.text)
            self.outlet.stop(farewell)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason=reason.label)

    def stream_closed(self) -> None:
        """trio-websocket has ended the connection: stop reading."""
        self._say_which_rule_was_broken()
        if self._reading is not None:
            self._reading.cancel(reason="stream closed")
        elif self._nursery is not None:
            self._hub.ledger.traffic.rejected["bad_request"] += 1
            self._nursery.cancel_scope.cancel(reason="stream closed before the upgrade")

    def _say_which_rule_was_broken(self) -> None:
        """Close with the code: for broken frames trio-websocket leaves without a word."""
        closed = self._websocket.closed if self._websocket else None
        if closed and closed.code in _BROKEN_RULES:
            self.outlet.stop(close_frame(closed.code, ""))

    def leave(self) -> None:
        """Ask the connection to empty its outbox, close with 1001 and end. Does not wait."""
        if self.close_reason is None and self._reading is not None:
            self.close_reason = CloseReason.DRAINING
            self._reading.cancel(reason="drain")

    async def _leave_in_order(self, websocket: WebSocketConnection) -> None:
        with trio.move_on_after(self._settings.drain_seconds):
            await self.outlet.wait_flushed()
        reason = CloseReason.DRAINING
        with trio.move_on_after(_CLOSE_HANDSHAKE_SECONDS):
            await websocket.aclose(reason.code or 0, reason.text)


def _reason_of_peer(websocket: WebSocketConnection) -> CloseReason:
    """How a connection ended that we did not end. No closing handshake shows as code 1006."""
    code = websocket.closed.code if websocket.closed else 1006
    if code in _BROKEN_RULES:
        return CloseReason.PROTOCOL_ERROR
    return _REASONS.get(code, CloseReason.PEER_CLOSED)
