"""One WebSocket connection: its tasks, its cancel scope, its end.

    Connection.run            the reader: frames → commands → session → replies
    └── Outbound.run_writer   outbox → socket; only while the socket would block

Cancelling the nursery is the eviction: `evict` records the reason, stops the `Outbound`, cancels.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

import structlog
import trio

from trio_odin.auth.grants import Grant
from trio_odin.auth.identity import UNKNOWN, Identity
from trio_odin.connection.connection_log import ConnectionLog
from trio_odin.connection.keepalive import PingWheel
from trio_odin.connection.session import Session, SessionLimits
from trio_odin.connection.websocket import ServerWebSocket
from trio_odin.fanout.flight import COMMANDS
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.ledger.reasons import CloseReason
from trio_odin.overload.turnover import note_command, note_end
from trio_odin.settings.settings import Settings
from trio_odin.wire.frames import close_frame
from trio_odin.wire.negotiation import NO_COMPRESSION, Agreed

# How long a peer may take to answer a close frame.
_CLOSE_HANDSHAKE_SECONDS = 3.0
# RFC 6455, 7.4.1
_GONE = 1006
_TOO_BIG = 1009

_log = structlog.get_logger("connection")
_numbers = itertools.count(1)


class Connection:
    """A client. Hashable by identity. Its `outbound` is the subscriber in the registry.

    Attributes:
        number: counts up per process, for the log.
        identity: the client's address and user agent, for the log.
        outbound: the writer of everything that is sent to the client.
        session: executes the client's commands.
        close_reason: None until the end is decided or has come.
    """

    __slots__ = (
        "_hub",
        "_is_evicted",
        "_log",
        "_nursery",
        "_settings",
        "_websocket",
        "close_reason",
        "identity",
        "number",
        "outbound",
        "session",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        hub: Hub[Connection],
        settings: Settings,
        limits: SessionLimits,
        log: ConnectionLog,
        grant: Grant | None = None,
        identity: Identity = UNKNOWN,
        agreed: Agreed = NO_COMPRESSION,
    ) -> None:
        """Wrap `stream`, on which the request for a WebSocket was received.

        `grant` is what the client's token allows; None if no token was needed. `agreed` is what was
        chosen from the client's offers.
        """
        self.number = next(_numbers)
        self.identity = identity
        self._is_evicted = False
        self.close_reason: CloseReason | None = None
        replay_buffer = ReplayBuffer(settings.replay_capacity)
        self.outbound = Outbound(
            stream,
            replay_buffer=replay_buffer,
            rules=hub.outbox_rules,
            ledger=hub.ledger,
            owner=self,
            turns=hub.turns,
            encoding=agreed.encoding,
        )
        self.session = Session(
            self.outbound,
            hub.registry,
            replay_buffer=replay_buffer,
            resume_buffer=hub.resume_buffer,
            newest_events=hub.newest_events,
            limits=limits,
            traffic=hub.ledger.traffic,
            nats_status=hub.nats_status,
            now=trio.current_time(),
            grant=grant,
        )
        self._websocket = ServerWebSocket(
            self.outbound,
            max_message_bytes=settings.max_message_bytes,
            max_fragments=settings.max_fragments,
            take=self._take,
            may_answer_ping=self._may_answer_ping,
            client_window_bits=agreed.client_window_bits,
            windows=hub.window_budget,
        )
        self._hub = hub
        self._log = log
        self._settings = settings
        self._nursery: trio.Nursery | None = None

    async def run(self, upgrade: bytes, wheel: PingWheel) -> None:
        """Serve the client until either side ends the connection. Nothing that it sends raises.

        Args:
            upgrade: the response that completes the handshake.
            wheel: the ping wheel to join.

        Cancellation: the socket is closed at once, without a close frame.
        """
        self._hub.join(self)
        self._log.opened(self)
        wheel.add(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    reading = self._read(upgrade)
                    del upgrade  # this frame lives as long as the connection
                    await reading
                finally:
                    self._nursery = None  # it takes no task any more
                if nursery.child_tasks:
                    nursery.cancel_scope.cancel(reason="the connection has ended")
        finally:
            note_end()
            if self.close_reason is None:
                self.close_reason = self._reason_of_peer()
            wheel.remove(self)
            self._hub.leave(self, self.close_reason)
            self._log.closed(self, self.close_reason, is_told=self._is_evicted)
            try:
                await self._part()
            finally:
                # Closing by way of trio takes two turns of the loop and an exception, which counts
                # where ten thousand clients go at once.
                if not self.outbound.close_now():
                    await trio.aclose_forcefully(self.outbound)
                self._let_go()

    async def _read(self, upgrade: bytes) -> None:
        try:
            await self._send(upgrade)
            del upgrade
            await self._websocket.read()
        # Not caught outside the nursery, whose exception group would be a reference cycle.
        except Exception:  # noqa: BLE001 - a fault in one connection must not end the others
            self.evict(CloseReason.INTERNAL_ERROR)
            _log.exception("connection.failed", connection=self.number)

    def _let_go(self) -> None:
        """Break the reference cycles, so that an ended connection is freed at once."""
        self.outbound.forget_owner()
        self._websocket.let_go()
        del self._websocket
        del self.session

    async def _take(self, message: str | bytes) -> None:
        """Execute one message of the client, and send the replies."""
        note_command()
        traffic = self._hub.ledger.traffic
        traffic.messages_received += 1
        if isinstance(message, bytes):
            traffic.binary_ignored += 1
            return
        await self._hub.wait_settled()
        if self.outbound.is_ending:
            return
        self.outbound.flush()  # a command may number messages: deferred ones come first
        answers = self.session.receive(
            message, now=trio.current_time(), unix_ms=time.time_ns() // 1_000_000
        )
        self.outbound.note(COMMANDS[self.session.last_command])
        if owed := self._hub.notices.owed_to(self.outbound):
            answers.insert(0, owed)
        if answers:
            with suppress(trio.BrokenResourceError):  # the reader notices as well
                await self.outbound.answer(answers)

    def _may_answer_ping(self) -> bool:
        return self.session.allows_ping(trio.current_time())

    async def _send(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError):  # the reader notices as well
            if not self.outbound.send_nowait(data):
                await self.outbound.send_all(data)

    def evict(self, reason: CloseReason) -> None:
        """End the connection now. Only the first `reason` counts. Does not wait."""
        if self.close_reason is None:
            self.close_reason = reason
            if reason.code is not None:  # else the server did not want it to end
                self._is_evicted = True
                self._log.evicted(self, reason)
            farewell = b"" if reason.code is None else close_frame(reason.code, reason.text)
            self.outbound.stop(farewell)
        if reason is CloseReason.PEER_GONE:
            # The reader finds the peer gone, in a turn with time for it: thousands may go at once.
            self._end_within(_CLOSE_HANDSHAKE_SECONDS)
        elif self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason=reason.label)

    async def _part(self) -> None:
        """Stop the `Outbound`; after a protocol error, with a close frame and time to read it."""
        code = self._websocket.refused_with
        if self.close_reason is CloseReason.PROTOCOL_ERROR and code is not None:
            self.outbound.stop(close_frame(code, ""))
            await self.outbound.linger()
        else:
            self.outbound.stop()

    def announce_close(self, frame: bytes) -> None:
        """Send `frame`, which says when to reconnect. Does not wait.

        A client so slow that there is no room for it learns of its end from the close frame.
        """
        self.outbound.send_soon(frame)

    def leave(self) -> None:
        """Ask the connection to empty its outbox, close with 1001 and end. Does not wait.

        It is unsubscribed first and receives no further events.
        """
        reason = CloseReason.DRAINING
        if self.close_reason is not None or self._nursery is None:
            return
        owed = self._hub.registry.rates.owed(self.outbound)
        self._hub.registry.remove(self.outbound)
        for batch in owed:  # a client resumes after the last event that it got
            self.outbound.send_batch(batch)
        self._end_within(self._settings.drain_seconds)
        frame = self._websocket.start_closing(reason.code or 0, reason.text)
        if frame is None:  # the peer has begun to close already
            return
        self.close_reason = reason
        if not self.outbound.close(frame):
            self._nursery.cancel_scope.cancel(reason="no room for the close frame")

    def start_writer(self) -> None:
        """Run the writer in a task. If the connection ends, what waits is not written any more."""
        if self._nursery is not None:
            self._nursery.start_soon(self.outbound.run_writer)

    def close_frame_sent(self) -> None:
        """Give the peer a moment to answer the close frame, which was written."""
        self._end_within(_CLOSE_HANDSHAKE_SECONDS)

    def _end_within(self, seconds: float) -> None:
        if self._nursery is not None:
            scope = self._nursery.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + seconds)

    def _reason_of_peer(self) -> CloseReason:
        """Why it ended if the server did not end it. Code 1006: without a closing handshake."""
        if (code := self._websocket.refused_with) is not None:
            is_too_big = code == _TOO_BIG
            return CloseReason.MESSAGE_TOO_BIG if is_too_big else CloseReason.PROTOCOL_ERROR
        closed = self._websocket.closed
        if closed is None:
            return CloseReason.STOPPED
        return CloseReason.PEER_GONE if closed.code == _GONE else CloseReason.PEER_CLOSED
