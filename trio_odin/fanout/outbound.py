"""The socket side of one connection: all bytes to a client go through its `Outbound`, in order.

Three kinds of bytes share a socket: messages from the fan-out, replies, and the control frames and
closing handshake of trio-websocket. `Outbound` is the stream that trio-websocket is given, and
nothing else writes to the socket, so no frame can land in the middle of another.

    deliver, flush ► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
    answer, send_all       │ no                     │ the socket is full, or took a part
                           ▼                        ▼
                        outbox (memory channel) ──► writer task: joins what waits, writes, sleeps

A task switch per delivery would cost 4 to 15 times as much as the write; the writer task is there
for the moments in which the socket takes nothing.

`fanout/backlog.py` decides whether something may wait, and for how long.

Under load the hub does not `deliver` each message but `defer`s several, and `flush`es them in one
write. They come before anything that is sent in the meantime.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import termios
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from trio_odin.fanout.answers import Answer, Resend
from trio_odin.fanout.backlog import Backlog, OutboxRules, QueuedMessage
from trio_odin.fanout.flight import REFUSALS, FlightEvent, FlightRecorder
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.net.http import linger
from trio_odin.overload.turns import Turns
from trio_odin.wire.frames import FIN, PING, PONG_BYTES, PONG_HEAD, Opcode, missing_after

# A joined write takes at most about this much; the outbox may hold far more in large messages.
_JOINED_MAX_BYTES = 64 * 1024
# From this size on a frame is written from the bytes that all its receivers share.
_LARGE_BYTES = 16 * 1024
# Progress is checked this often within the write deadline. A while in which the whole process
# stands still is one check, and not the client's fault.
_LOOKS_AT_PROGRESS = 5
# Without a socket to look at, a piece of this size that is written is progress.
_PIECE_BYTES = 16 * 1024
# More deferred messages than this are not worth waiting for: the write is cheap by then.
_DEFERRED_MAX = 64
_RECEIVE_BYTES = 4 * 1024
_SLOW_WRITE_SECONDS = 1.0
# From this many waiting messages on, the flight recorder notes each doubling.
_DEPTH_MARK = 16
# A larger frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096
_CLOSE_FRAME_START = bytes((FIN | Opcode.CLOSE,))


@attrs.define(eq=False)
class _Raw:
    """Ready bytes in the outbox; a task may be waiting for `is_written`."""

    data: bytes
    is_written: bool = False

    def pieces(self) -> list[memoryview]:
        """The bytes that are still to be written, in pieces."""
        return [memoryview(self.data)]

    @property
    def size(self) -> int:
        """How many bytes are still to be written."""
        return len(self.data)


_FULL = frozenset({Dropped.OUTBOX_FULL, Dropped.OUTBOX_BYTES})

# An annotation, because `open_memory_channel[...]` evaluates the type anew per connection.
_Outbox: TypeAlias = tuple[
    trio.MemorySendChannel[QueuedMessage | _Raw], trio.MemoryReceiveChannel[QueuedMessage | _Raw]
]


class Owner(Protocol):
    """The connection, as its `Outbound` knows it. None of this may raise or wait."""

    def evict(self, reason: CloseReason) -> None:
        """End the connection for `reason`."""

    def close_frame_sent(self) -> None:
        """Note that the close frame is written: only the peer's answer is missing."""


class Outbound(trio.abc.Stream):
    """Owns the order of bytes on one socket; see the module's drawing.

    Messages are `deliver`ed without waiting. `answer` sends the replies to a command, `send_all`
    the frames of trio-websocket; both wait until the bytes are written. `run_writer` must be
    running in a task.

    Resource handling: owns `stream`. After `stop` nothing more is written, and what waits is
    counted as dropped; `aclose` stops and closes.

    Attributes:
        heard_at: when anything was last heard from the client, in monotonic seconds.
        is_closing: whether a close frame is written or queued.
    """

    __slots__ = (
        "_backlog",
        "_deferred",
        "_dropped",
        "_file",
        "_flight",
        "_is_idle",
        "_is_stopped",
        "_is_torn",
        "_ledger",
        "_missing",
        "_opened_at",
        "_outbox_receive",
        "_outbox_send",
        "_owner",
        "_progress",
        "_replay_buffer",
        "_rules",
        "_skipped_total",
        "_socket",
        "_stream",
        "_turns",
        "_write_now",
        "heard_at",
        "is_closing",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        replay_buffer: ReplayBuffer,
        rules: OutboxRules,
        ledger: Ledger,
        owner: Owner,
        turns: Turns | None = None,
    ) -> None:
        """Wrap `stream`. A socket is used by its file number, another stream by its methods."""
        self._stream = stream
        self._replay_buffer = replay_buffer
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._ledger = ledger
        self._owner = owner
        self._turns = turns
        self._rules = rules
        # Without a limit: the backlog limits messages, see `_queue`. The sender of a reply waits
        # until it is written, so there are no more replies than tasks that send: the reader.
        outbox: _Outbox = trio.open_memory_channel(math.inf)
        self._outbox_send, self._outbox_receive = outbox
        self._backlog: Backlog | None = None  # nothing waits
        # In earlier backlogs: messages that gave way to newer ones, or found no room.
        self._skipped_total = self._dropped = 0
        self._flight: FlightRecorder | None = None  # nothing notable happened
        self._write_now, self._file = _direct_write(stream)
        self._is_idle = True  # nothing waits, no frame is half written, and more may be sent
        self._is_torn = False  # the last byte written may not be the end of a frame
        self._is_stopped = False
        self.is_closing = False  # a close frame is written or queued
        self._deferred: list[Publication] | None = None
        self._progress: trio.lowlevel.ParkingLot | None = None
        self._missing = 0  # bytes of a partly received frame, see `missing_after`
        self._opened_at = self.heard_at = trio.current_time()

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        """Number one message, keep it for replay, and hand it over without waiting.

        Args:
            publication: the event to deliver.
            frames: frames of this publication by `seq`, shared by all its subscribers; added to.

        Returns:
            The bytes written, if the whole frame was written at once: the caller counts these. 0 if
            it was queued or dropped, which is counted here.
        """
        replay_buffer = self._replay_buffer
        replay_buffer.seq = seq = replay_buffer.seq + 1
        replay_buffer.kept.append(publication.kept)
        frame = frames.get(seq)
        if frame is None:
            frame = publication.frame(seq)
            if len(frame) <= _SHARED_FRAME_MAX_BYTES:
                frames[seq] = frame
        sent = 0
        if self._is_idle:
            try:
                sent = self._write_now(self._file, frame)
            except BlockingIOError:
                pass
            except OSError:
                self._ledger.deliveries.dropped[Dropped.CLOSING] += 1
                self._owner.evict(CloseReason.PEER_GONE)
                return 0
            if sent == len(frame):
                return sent
        self._judge(self._queue(QueuedMessage(publication, seq, sent)))
        return 0

    def defer(self, publication: Publication) -> bool:
        """Like `deliver`, but leave the write to the next `flush`; the caller counts it as queued.

        Returns:
            True if it is the first one: the caller must see to the `flush`.
        """
        self._replay_buffer.append(publication)
        deferred = self._deferred
        if deferred is None:
            self._deferred = [publication]
            return True
        deferred.append(publication)
        if len(deferred) >= _DEFERRED_MAX:
            self.flush()
        return False

    def flush(self) -> None:
        """Hand over the deferred messages, in one write if the socket takes it. Does not wait."""
        deferred = self._deferred
        if deferred is None:
            return
        self._deferred = None
        self._ledger.deliveries.queued -= len(deferred)
        numbered = list(enumerate(deferred, self._replay_buffer.seq - len(deferred) + 1))
        written = self._write_what_fits(numbered)
        # All are tried before one judgement: the writer had no turn between them.
        self._judge(*(self._queue(QueuedMessage(one, seq)) for seq, one in numbered[written:]))

    def _write_what_fits(
        self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool = False
    ) -> int:
        """Write, joined, what the socket takes now. Returns how many; one half written counts."""
        written = 0
        while self._is_idle and written < len(numbered):
            more = self._write_joined(numbered[written:], is_resent=is_resent)
            if not more:
                break
            written += more
        return written

    def _write_joined(self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool) -> int:
        """The same with one write, of as many as one write should take."""
        frames: list[bytes] = []
        size = 0
        for seq, publication in numbered:
            frames.append(publication.frame(seq))
            size += len(frames[-1])
            if size >= _JOINED_MAX_BYTES:
                break
        try:
            sent = self._write_now(self._file, b"".join(frames))
        except BlockingIOError:
            return 0
        except OSError:
            self._owner.evict(CloseReason.PEER_GONE)
            return 0
        whole = len(frames)
        if sent < size:
            ends = list(itertools.accumulate(map(len, frames)))
            whole = bisect_right(ends, sent)
            size = ends[whole - 1] if whole else 0
        self._ledger.deliveries.written += whole
        self._ledger.traffic.bytes_sent += size
        if sent == size:
            return whole
        seq, publication = numbered[whole]
        message = self._resent(publication, seq) if is_resent else QueuedMessage(publication, seq)
        message.sent = sent - size
        self._queue(message)  # there is room: nothing waited
        return whole + 1

    def _resent(self, publication: Publication, seq: int) -> QueuedMessage:
        return QueuedMessage(
            publication, seq, is_resent=True, is_replayed=seq <= self._replay_buffer.seq
        )

    def _queue(self, message: QueuedMessage) -> Dropped | None:
        """Queue `message`, or return why not; then it counts as dropped, unless it is resent."""
        if self._is_stopped or self.is_closing:
            if not message.is_resent:
                self._ledger.deliveries.dropped[Dropped.CLOSING] += 1
            return Dropped.CLOSING
        backlog, outbox = self._begin_to_wait(), self._outbox_send.statistics()
        room = self._rules.capacity - outbox.current_buffer_used
        refusal = backlog.admit(message, room=room)
        if refusal is not None:
            self.note(FlightEvent.CUT_SHORT if message.is_resent else REFUSALS[refusal])
            return refusal
        if room < 1:
            self._take_out_superseded(backlog)
        self._outbox_send.send_nowait(message)
        if outbox.tasks_waiting_receive:
            backlog.pin(message)  # the writer has it, and has still to wake up
        self._is_idle = False
        self._is_torn = self._is_torn or message.sent > 0
        self._ledger.traffic.bytes_sent += message.sent
        self._mark_depth(backlog.messages, message)
        return None

    def _begin_to_wait(self) -> Backlog:
        if self._backlog is None:
            self._backlog = Backlog(
                self._rules, self._ledger.deliveries, skipped_total=self._skipped_total
            )
            self.note(FlightEvent.BEGAN_TO_WAIT)
        return self._backlog

    def _take_out_superseded(self, backlog: Backlog) -> None:
        for item in backlog.without_superseded(list(self._waiting())):
            self._outbox_send.send_nowait(item)

    def _waiting(self) -> Iterator[QueuedMessage | _Raw]:
        """Take items from the outbox, one after the other, until it is empty."""
        with suppress(trio.WouldBlock):
            while True:
                yield self._outbox_receive.receive_nowait()

    def _mark_depth(self, depth: int, newest: QueuedMessage) -> None:
        if depth >= _DEPTH_MARK and depth & (depth - 1) == 0 and not newest.skipped:
            self.note(FlightEvent.DEPTH, depth)

    def _judge(self, *refusals: Dropped | None) -> None:
        # The limit for all outboxes together is not the fault of this one client.
        had_room = not _FULL.intersection(refusals)
        if self._backlog is not None and self._backlog.is_too_slow(had_room=had_room):
            self._owner.evict(CloseReason.OUTBOX_FULL)

    def ping(self) -> None:
        """Send a WebSocket ping if the socket takes it now; otherwise skip it.

        If the socket takes nothing, the writer is at work, and its deadline is shorter.
        """
        try:
            is_sent = self.send_nowait(PING)
        except trio.BrokenResourceError:
            self._owner.evict(CloseReason.PEER_GONE)
        else:
            self.note(FlightEvent.PING if is_sent else FlightEvent.PING_SKIPPED)

    def send_nowait(self, data: bytes) -> bool:
        """Send ready bytes, whole frames, at once.

        Returns:
            False if the socket takes nothing now or something waits already: see `send_all`.

        Raises:
            trio.BrokenResourceError: the peer has gone.
        """
        if not self._is_idle:
            return False
        rest = self._send_what_fits(data)
        if len(rest) == len(data):
            return False
        if rest:
            self._queue_raw(rest)  # there is room: nothing waited
        return True

    def _queue_raw(self, data: bytes) -> _Raw:
        if self._is_stopped:
            raise trio.BrokenResourceError
        self._is_idle = False
        raw = _Raw(data)
        self._outbox_send.send_nowait(raw)
        self._begin_to_wait().reply_waits(len(data))
        return raw

    def _send_what_fits(self, data: bytes) -> bytes:
        """Send what the socket takes now, after the deferred messages; returns the rest.

        Raises:
            trio.BrokenResourceError: the peer has gone.
        """
        self.flush()
        if not self._is_idle:
            return data
        try:
            sent = self._write_now(self._file, data)
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
        if self.is_closing:
            raise trio.BrokenResourceError
        # Before any checkpoint: an acknowledgement must come before the events that it announces.
        rest = self._send_what_fits(bytes(data))
        if data[:1] == _CLOSE_FRAME_START:
            self._close_for_good()
            if not rest:
                self._owner.close_frame_sent()
        if rest:
            await self._wait_written(self._queue_raw(rest))
        else:
            await trio.lowlevel.checkpoint()

    async def answer(self, answers: Iterable[Answer]) -> None:
        """Send the answers to one command, in order, and wait until they are written.

        Everything is written or queued before the first checkpoint, so later publications come
        after it. Resent events wait within the limits for all events; from the first one without
        room on, they are left out. So no client can ask for more than may wait.

        Raises:
            trio.BrokenResourceError: the connection was stopped first.

        Cancellation: what is queued may still be sent.
        """
        if self.is_closing or self._is_stopped:
            raise trio.BrokenResourceError
        ready, last = b"", None
        for answer in answers:
            if isinstance(answer, Resend):
                self._send_or_queue(ready)
                ready = b"".join(answer.finish(self._resend(answer.messages)))
            else:
                ready += answer
        last = self._send_or_queue(ready)
        if last is not None:
            await self._wait_written(last)

    def _send_or_queue(self, ready: bytes) -> _Raw | None:
        """Send ready bytes, maybe none. If anything waits after that, returns the last of it."""
        rest = self._send_what_fits(ready) if ready else b""
        if self._is_idle and not rest:
            return None
        return self._queue_raw(rest)

    def _resend(self, messages: Sequence[tuple[int, Publication]]) -> int:
        """Write or queue as many as there is room for, and count them. Returns how many."""
        sent = self._write_what_fits(messages, is_resent=True)
        for seq, publication in messages[sent:]:
            if self._queue(self._resent(publication, seq)) is not None:
                break
            sent += 1
        self._ledger.deliveries.matched += sent
        return sent

    def close(self, frame: bytes) -> bool:
        """Send the close frame `frame` after all that waits, and take nothing more. Does not wait.

        Returns:
            False if there is no room left for it: the peer has stopped reading.
        """
        if self.is_closing:
            return True
        if not self._send_behind(frame, asks_for_bytes=False):
            return False
        is_sent = self._is_idle
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
        return not self.is_closing and self._send_behind(data, asks_for_bytes=True)

    def _send_behind(self, data: bytes, *, asks_for_bytes: bool) -> bool:
        with suppress(trio.BrokenResourceError):  # the reader notices as well
            rest = self._send_what_fits(data)
            if rest:
                room = self._rules.capacity - self._outbox_send.statistics().current_buffer_used
                size = len(rest) if asks_for_bytes else 0
                if not self._begin_to_wait().may_wait(size, room=room):
                    return False
                self._queue_raw(rest)
            return True
        return False

    def _close_for_good(self) -> None:
        """Take nothing more: nothing may follow a close frame (RFC 6455, 5.5.1)."""
        self.is_closing = True
        self._is_idle = False
        self.note(FlightEvent.CLOSING)

    async def _wait_written(self, raw: _Raw) -> None:
        self.note(FlightEvent.REPLY_WAITED)
        if self._progress is None:
            self._progress = trio.lowlevel.ParkingLot()
        while not raw.is_written:
            if self._is_stopped:
                raise trio.BrokenResourceError
            await self._progress.park()

    async def run_writer(self) -> None:
        """Write what waits in the outbox, joined; sleep while nothing does.

        Returns when the stream is gone or a write missed its deadline, after it has evicted the
        connection.
        """
        while not self._is_stopped:
            try:  # not only `receive`: other tasks run between its taking and its return
                first = self._outbox_receive.receive_nowait()
            except trio.WouldBlock:
                first = await self._outbox_receive.receive()
            backlog = self._begin_to_wait()
            batch, buffers = self._take_batch(first, backlog)
            self._is_torn = True
            try:
                is_written = await self._write(buffers)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                if not self._is_stopped:  # else there is a better reason already
                    self._owner.evict(CloseReason.PEER_GONE)
                return
            if not is_written:
                self.note(FlightEvent.STALLED)
                self._owner.evict(CloseReason.WRITE_DEADLINE)
                return
            self._is_torn = False
            self._settle(batch, sum(map(len, buffers)), backlog)

    def _take_batch(
        self, first: QueuedMessage | _Raw, backlog: Backlog
    ) -> tuple[list[QueuedMessage | _Raw], list[bytes | memoryview]]:
        """Take `first` and as many more as one write should take; returns them and their bytes.

        Small ones are joined. Large ones are not copied: many clients may wait for the same.
        """
        batch: list[QueuedMessage | _Raw] = []
        buffers: list[bytes | memoryview] = []
        joined = bytearray()
        size = skipped = 0
        for item in itertools.chain([first], self._waiting()):
            if isinstance(item, QueuedMessage):
                if not backlog.take(item):
                    continue
                skipped += item.skipped
            batch.append(item)
            size += item.size
            if item.size < _LARGE_BYTES:
                for piece in item.pieces():
                    joined += piece
            else:
                buffers += [bytes(joined), *item.pieces()]
                joined.clear()
            if size >= _JOINED_MAX_BYTES:
                break
        if skipped:
            self.note(FlightEvent.CONFLATED, skipped)
        return batch, [*buffers, bytes(joined)]

    async def _write(self, buffers: Iterable[bytes | memoryview]) -> bool:
        """Write all `buffers`. False if the client takes nothing for the write deadline."""
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                started = trio.current_time()
                sent = await self._write_some(rest)
                if not sent:
                    return False
                rest = rest[sent:]
                # While a reply waits, nothing is read from the client: this is a sign of life too.
                self.heard_at = trio.current_time()
                if self.heard_at - started >= _SLOW_WRITE_SECONDS:
                    self.note(FlightEvent.SLOW_WRITE)
        return True

    async def _write_some(self, data: memoryview) -> int:
        """Write a part as soon as the client takes it. Returns its length; 0: no progress."""
        socket, seconds = self._socket, self._rules.write_deadline_seconds
        if socket is None:
            piece = data[:_PIECE_BYTES]
            with trio.move_on_after(seconds) as deadline:
                await self._stream.send_all(piece)
            return 0 if deadline.cancelled_caught else len(piece)
        unread, looks = _unread_bytes(socket), 0
        while looks < _LOOKS_AT_PROGRESS:
            try:
                return self._write_now(self._file, data)
            except BlockingIOError:
                pass
            with trio.move_on_after(seconds / _LOOKS_AT_PROGRESS) as deadline:
                await trio.lowlevel.wait_writable(socket)
            if deadline.cancelled_caught:
                looks += 1
            # The kernel takes more only once a third of its buffer is free. A client that reads
            # slowly but all the time empties it meanwhile.
            if (left := _unread_bytes(socket)) < unread:
                unread, looks = left, 0
                self.heard_at = trio.current_time()
        return 0

    def _settle(self, batch: list[QueuedMessage | _Raw], size: int, backlog: Backlog) -> None:
        """Count a batch that was written, and wake the tasks that waited for it."""
        messages = 0
        for item in batch:
            if isinstance(item, _Raw):
                item.is_written = True
            else:
                messages += 1
        backlog.written(messages, size)
        self._ledger.traffic.bytes_sent += size
        if not self._is_stopped and not self._outbox_receive.statistics().current_buffer_used:
            if self.is_closing:
                self._owner.close_frame_sent()
            else:
                self._is_idle = True
                self._skipped_total = backlog.skipped_total
                self._dropped += backlog.dropped
                self._backlog = None
                self.note(FlightEvent.EMPTIED)
        if self._progress is not None:
            self._progress.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the underlying stream might take bytes."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive from the client. Anything that it sends, even a pong, is a sign of life.

        A socket is read once it is readable. `SocketStream.receive_some` reads first and then
        waits: a failed read per message, and more frames on the stack of each waiting reader.

        Raises:
            trio.ClosedResourceError: the connection was stopped.
            trio.BrokenResourceError: the peer has gone.
        """
        socket = self._socket
        if socket is None:
            return self._heard(await self._stream.receive_some(max_bytes))
        while True:
            if self._is_stopped:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(socket)
            if self._turns is not None and self._turns.are_over():
                await self._turns.wait()
            try:
                data = os.read(socket.fileno(), max_bytes or _RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
            self._heard(data)
            if self._is_bare_pong(data):
                self.note(FlightEvent.PONG)
                continue  # its arrival is all that it says, and ten thousand add up
            self._missing = missing_after(data, self._missing)
            return data

    def _heard(self, data: bytes | bytearray) -> bytes | bytearray:
        self.heard_at = trio.current_time()
        self._ledger.traffic.bytes_received += len(data)
        return data

    def _is_bare_pong(self, data: bytes) -> bool:
        is_alone = self._missing == 0 and len(data) == PONG_BYTES
        return is_alone and data.startswith(PONG_HEAD)

    def note(self, event: FlightEvent, count: int = 1) -> None:
        """Add `event` to the flight recorder. Not for the hot path."""
        if self._flight is None:
            self._flight = FlightRecorder(self._opened_at)
        self._flight.add(event, trio.current_time(), count)

    @property
    def dropped(self) -> int:
        """How many messages found no room."""
        return self._dropped + (self._backlog.dropped if self._backlog else 0)

    def counts(self) -> dict[str, Any]:
        """The totals of the connection, for the log."""
        conflated = self._skipped_total + (self._backlog.conflated if self._backlog else 0)
        return {
            "seconds": round(trio.current_time() - self._opened_at, 3),
            "seq": self._replay_buffer.seq,
            "dropped": self.dropped,
            "conflated": conflated,
        }

    def report(self) -> dict[str, Any]:
        """The totals, the present state and the last events, for the log."""
        backlog = self._backlog
        return self.counts() | {
            "silent_seconds": round(trio.current_time() - self.heard_at, 3),
            "queued": (backlog.messages if backlog else 0) + len(self._deferred or ()),
            "queued_bytes": backlog.bytes if backlog else 0,
            "events": self._flight.lines() if self._flight else [],
        }

    def forget_owner(self) -> None:
        """Drop the connection, so that it can be freed without the garbage collector."""
        self._owner = _NOBODY

    def stop(self, farewell: bytes = b"") -> None:
        """Take and write nothing more; count what waits as dropped. May be called again.

        `farewell`, a close frame, is tried once, if no frame is half written.
        """
        if self._is_stopped:
            return
        if farewell and not self._is_torn and not self.is_closing:
            with suppress(OSError):  # full or gone: best effort
                self._write_now(self._file, farewell)
        self._is_stopped = True
        self._is_idle = False
        # The file number may soon belong to another connection: nothing here may use it again.
        self._write_now = _refuse
        if self._backlog is not None:
            self._backlog.abandon()
        if self._deferred is not None:
            self._ledger.deliveries.queued -= len(self._deferred)
            self._ledger.deliveries.dropped[Dropped.CLOSING] += len(self._deferred)
            self._deferred = None
        if self._progress is not None:
            self._progress.unpark_all()

    async def linger(self) -> None:
        """Read on for a moment, so that a peer that is still sending gets the close frame."""
        await linger(self._stream)

    async def aclose(self) -> None:
        """Stop, and close the stream. trio-websocket ends a connection this way."""
        self.stop()
        await self._stream.aclose()


class _Nobody:
    """The owner of an `Outbound` whose connection has ended."""

    def evict(self, reason: CloseReason) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass


_NOBODY = _Nobody()


def _unread_bytes(socket: trio.socket.SocketType) -> int:
    """How many bytes the peer has not acknowledged to the kernel; see tcp(7), SIOCOUTQ."""
    unread = array("i", [0])
    with suppress(OSError):  # the peer has gone: the write will notice
        fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, unread)
    return unread[0]


def _direct_write(stream: trio.abc.Stream) -> tuple[Callable[[int, bytes | memoryview], int], int]:
    """A non-blocking write and the file number to call it with.

    A stream without a socket never takes anything this way.
    """
    if isinstance(stream, trio.SocketStream):
        return os.write, stream.socket.fileno()
    return _would_block, -1


def _would_block(file: int, data: bytes | memoryview) -> int:
    raise BlockingIOError


def _refuse(file: int, data: bytes | memoryview) -> int:
    raise BrokenPipeError
