"""A stream on which whole frames go out in order: at once if it takes them, else by a writer task.

Everything that changes the state of the sending side is in this file.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Protocol

import trio

from trio_odin.fanout.client_socket import ClientSocket
from trio_odin.fanout.flight import FlightEvent, FlightRecorder
from trio_odin.fanout.outbox import Joined, Outbox, QueuedBytes
from trio_odin.fanout.slow_consumers import OutboxRules, QueuedMessage
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.overload.turns import Turns
from trio_odin.wire.frames import FIN, Opcode

_CLOSE_FRAME_START = bytes((FIN | Opcode.CLOSE,))


class State(Enum):
    """What may be sent, and how."""

    IDLE = "nothing waits, and the last frame is whole: what comes is written at once"
    WAITING = "something waits: what comes is queued after it"
    CLOSING = "a close frame is queued or written: what waits is written, nothing more is taken"
    STOPPED = "nothing more is taken or written"

    __hash__ = object.__hash__  # Enum's own is written in Python


class Step(Enum):
    """What changes the state."""

    QUEUED = "something is queued"
    EMPTIED = "the writer wrote all that waited"
    CLOSED = "a close frame is queued or written"
    STOPPED = "the connection has ended"

    __hash__ = object.__hash__


# What is not here cannot happen: it would be a fault of this module.
_NEXT: Final[Mapping[State, Mapping[Step, State]]] = {
    State.IDLE: {
        Step.QUEUED: State.WAITING,
        Step.CLOSED: State.CLOSING,
        Step.STOPPED: State.STOPPED,
    },
    State.WAITING: {
        Step.QUEUED: State.WAITING,
        Step.EMPTIED: State.IDLE,
        Step.CLOSED: State.CLOSING,
        Step.STOPPED: State.STOPPED,
    },
    State.CLOSING: {
        Step.QUEUED: State.CLOSING,  # the rest of the close frame itself
        Step.EMPTIED: State.CLOSING,
        Step.STOPPED: State.STOPPED,
    },
    State.STOPPED: {Step.EMPTIED: State.STOPPED},  # the write that was under way is complete
}
IDLE: Final = State.IDLE
STOPPED: Final = State.STOPPED
_ENDING = frozenset({State.CLOSING, State.STOPPED})


class Owner(Protocol):
    """The connection, as its `Outbound` knows it. None of this may raise or wait."""

    def evict(self, reason: CloseReason) -> None:
        """End the connection for `reason`."""

    def close_frame_sent(self) -> None:
        """Note that the close frame is written: only the peer's answer is missing."""

    def start_writer(self) -> None:
        """Run `OrderedStream.run_writer` in a task: something waits."""


class OrderedStream(trio.abc.Stream):
    """Sends ready bytes and messages in order, and takes nothing after a close frame.

    Its owner is asked for a task for `run_writer` whenever something begins to wait.

    Resource handling: owns the stream. After `stop` nothing more is written, and what waits is
    counted as dropped; `aclose` stops and closes.

    Attributes:
        socket: the client's socket.
    """

    __slots__ = (
        "_flight",
        "_has_writer",
        "_is_torn",
        "_ledger",
        "_outbox",
        "_owner",
        "_progress",
        "_state",
        "_write_deadline_seconds",
        "socket",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        rules: OutboxRules,
        ledger: Ledger,
        owner: Owner,
        turns: Turns | None = None,
    ) -> None:
        """Wrap `stream`."""
        self._flight = flight = FlightRecorder(trio.current_time())
        self.socket = ClientSocket(stream, traffic=ledger.traffic, flight=flight, turns=turns)
        self._outbox = Outbox(rules, ledger.deliveries, flight)
        self._write_deadline_seconds = rules.write_deadline_seconds
        self._ledger = ledger
        self._owner = owner
        self._state = State.IDLE
        self._has_writer = False
        self._is_torn = False  # the last byte written may not be the end of a frame
        self._progress: trio.lowlevel.ParkingLot | None = None  # the tasks in `_wait_written`

    def flush(self) -> None:
        """Hand over what has to come before any other bytes: `Outbound` defers messages."""

    def _go(self, step: Step) -> None:
        self._state = _NEXT[self._state][step]

    def _queue(self, message: QueuedMessage) -> Dropped | None:
        """Queue `message`, or return why not; then it counts as dropped, unless it is resent."""
        if self.is_ending:
            if not message.is_resent:
                self._ledger.deliveries.dropped[Dropped.CLOSING] += message.publication.events
            return Dropped.CLOSING
        refusal = self._outbox.queue(message)
        if refusal is None:
            self._let_wait()
            self._is_torn = self._is_torn or message.sent > 0
            self._ledger.traffic.bytes_sent += message.sent
        return refusal

    def _queue_bytes(self, data: bytes) -> QueuedBytes:
        """Queue ready bytes.

        Raises:
            trio.BrokenResourceError: the connection was stopped.
        """
        if self._state is State.STOPPED:
            raise trio.BrokenResourceError
        item = self._outbox.queue_bytes(data)
        self._let_wait()
        return item

    def _let_wait(self) -> None:
        self._go(Step.QUEUED)
        if not self._has_writer:
            self._has_writer = True
            self._owner.start_writer()

    def send_nowait(self, data: bytes) -> bool:
        """Send ready bytes, whole frames, at once.

        Returns:
            False if the socket takes nothing now or something waits already: see `send_all`.

        Raises:
            trio.BrokenResourceError: the peer has gone, or the connection was stopped.
        """
        if self._state is not IDLE:
            return False
        rest = self._send_what_fits(data)
        if len(rest) == len(data):
            return False
        if rest:
            self._queue_bytes(rest)  # there is room: nothing waited
        return True

    def _send_what_fits(self, data: bytes) -> bytes:
        """Send what the socket takes now, after the deferred messages; returns the rest.

        Raises:
            trio.BrokenResourceError: the peer has gone, or the connection was stopped.
        """
        self.flush()
        if self._state is State.STOPPED:
            raise trio.BrokenResourceError
        if self._state is not IDLE:
            return data
        try:
            sent = self.socket.write_now(self.socket.file, data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._ledger.traffic.bytes_sent += sent
        self._is_torn = sent < len(data)
        return data[sent:]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ready bytes, whole frames, in order, and wait until they are written.

        The wait is the back-pressure on a client that does not read what it asked for.

        Raises:
            trio.BrokenResourceError: the connection was stopped first.

        Cancellation: the bytes may still be sent.
        """
        if self.is_ending:
            raise trio.BrokenResourceError
        # Before any checkpoint: an acknowledgement must come before the events that it announces.
        rest = self._send_what_fits(bytes(data))
        if data[:1] == _CLOSE_FRAME_START:
            self._close_for_good()
            if not rest:
                self._owner.close_frame_sent()
        if rest:
            await self._wait_written(self._queue_bytes(rest))
        else:
            await trio.lowlevel.checkpoint()

    def close(self, frame: bytes) -> bool:
        """Send the close frame `frame` after all that waits, and take nothing more. Does not wait.

        Returns:
            False if there is no room left for it: the peer has stopped reading.
        """
        if self._state is State.CLOSING:
            return True
        if not self._send_after_all(frame, is_bounded=False):
            return False
        is_sent = self._state is IDLE
        self._close_for_good()
        if is_sent:
            self._owner.close_frame_sent()
        return True

    def send_soon(self, data: bytes) -> bool:
        """Send ready bytes, whole frames, after all that waits. Does not wait.

        Returns:
            False if there is no room left for them within the limits of events, a close frame is
            written or queued, or the peer has gone.
        """
        return not self.is_ending and self._send_after_all(data, is_bounded=True)

    def _send_after_all(self, data: bytes, *, is_bounded: bool) -> bool:
        """`is_bounded`: the bytes of `data` count, and not only the slot that it takes."""
        try:
            rest = self._send_what_fits(data)
        except trio.BrokenResourceError:  # the reader notices as well
            return False
        if rest:
            if not self._outbox.has_room_for(len(rest) if is_bounded else 0):
                return False
            self._queue_bytes(rest)
        return True

    def _close_for_good(self) -> None:
        """Take nothing more: nothing may follow a close frame (RFC 6455, 5.5.1)."""
        self._go(Step.CLOSED)
        self.note(FlightEvent.CLOSING)

    async def _wait_written(self, item: QueuedBytes) -> None:
        self.note(FlightEvent.REPLY_WAITED)
        if self._progress is None:
            self._progress = trio.lowlevel.ParkingLot()
        while not item.is_written:
            if self._state is State.STOPPED:
                raise trio.BrokenResourceError
            await self._progress.park()

    async def run_writer(self) -> None:
        """Write what waits in the outbox, joined. Returns when nothing waits any more.

        It also returns when the stream is gone or a write missed its deadline, after it has evicted
        the connection.
        """
        while self._state is not State.STOPPED and (first := self._outbox.take()):
            joined = self._outbox.join(first)
            self._is_torn = True
            try:
                is_written = await self.socket.write_all(
                    joined.buffers, self._write_deadline_seconds
                )
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                if not self.socket.is_stopped:  # else there is a better reason already
                    self._owner.evict(CloseReason.PEER_GONE)
                return
            if not is_written:
                self.note(FlightEvent.STALLED)
                self._owner.evict(CloseReason.WRITE_DEADLINE)
                return
            self._is_torn = False
            self._settle(joined)
        self._has_writer = False

    def _settle(self, joined: Joined) -> None:
        """Count what was written, and wake the tasks that waited for it."""
        is_empty = self._outbox.written(joined)
        self._ledger.traffic.bytes_sent += joined.size
        if is_empty:
            self._go(Step.EMPTIED)
            if self._state is IDLE:
                self._outbox.forget_backlog()
            elif self._state is State.CLOSING:
                self._owner.close_frame_sent()
        if self._progress is not None:
            self._progress.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the underlying stream might take bytes."""
        await self.socket.wait_writable()

    # Not `async`, which would be one more frame on the stack of each waiting reader. Type checkers
    # disagree about what an async function returns.
    def receive_some(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, max_bytes: int | None = None
    ) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive from the client; see `ClientSocket.receive_some`."""
        return self.socket.receive_some(max_bytes)

    @property
    def state(self) -> State:
        """What may be sent now, and how."""
        return self._state

    @property
    def is_torn(self) -> bool:
        """Whether the last byte written may not be the end of a frame."""
        return self._is_torn

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is taken: a close frame is written or queued, or it is stopped."""
        return self._state in _ENDING

    @property
    def heard_at(self) -> float:
        """When anything was last heard from the client, in monotonic seconds."""
        return self.socket.heard_at

    def note(self, event: FlightEvent, count: int = 1) -> None:
        """Add `event` to the flight recorder. Not for the hot path."""
        self._flight.add(event, trio.current_time(), count)

    def forget_owner(self) -> None:
        """Drop the connection, so that it can be freed without the garbage collector."""
        self._owner = _NOBODY

    def stop(self, farewell: bytes = b"") -> None:
        """Take and write nothing more; count what waits as dropped. May be called again.

        `farewell`, a close frame, is tried once, if no frame is half written.
        """
        if self._state is State.STOPPED:
            return
        if farewell and not self._is_torn and self._state is not State.CLOSING:
            with suppress(OSError):  # full or gone: best effort
                self.socket.write_now(self.socket.file, farewell)
        self._go(Step.STOPPED)
        self.socket.stop()
        self._outbox.abandon()
        if self._progress is not None:
            self._progress.unpark_all()

    async def linger(self) -> None:
        """Read on for a moment, so that a peer that is still sending gets the close frame."""
        await self.socket.linger()

    def close_now(self) -> bool:
        """Stop, and close the stream without a checkpoint. False: only `aclose` can close it."""
        self.stop()
        return self.socket.close_now()

    async def aclose(self) -> None:
        """Stop, and close the stream. trio-websocket ends a connection this way."""
        self.stop()
        await self.socket.aclose()


class _Nobody:
    """The owner of an `Outbound` whose connection has ended."""

    def evict(self, reason: CloseReason) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass

    def start_writer(self) -> None:
        pass


_NOBODY = _Nobody()
