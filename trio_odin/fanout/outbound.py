"""The socket side of one connection: all bytes to a client go through its outlet, in order.

Three kinds of bytes share a socket: envelopes from the fan-out, replies of ours, and the control
frames and close handshake of trio-websocket. The outlet is the stream that trio-websocket is given,
and the only one that writes to the socket, so none can land in the middle of another.

    deliver, flush ► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
    answer, send_all       │ no                     │ the socket is full, or took a part
                           ▼                        ▼
                        outbox (memory channel) ──► writer task: joins what waits, writes, sleeps

A literal task switch per delivery would cost 4 to 15 times as much as the write; the writer task is
there for the moments in which the socket will not take it.

Whether something may wait, and for how long, is decided in `fanout/backlog.py`.

Under load the hub does not `deliver` each envelope but `defer`s several, and `flush`es them in one
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

# A joined write takes at most about this much; the outbox may hold far more in large envelopes.
_JOINED_MAX_BYTES = 64 * 1024
# A frame of this size is written from the bytes that all its receivers share.
_LARGE_BYTES = 16 * 1024
# Within the write deadline it is looked so often whether the client takes anything. If the whole
# process stands still for a while that is one look, and nobody's fault.
_LOOKS_AT_PROGRESS = 5
# Where there is no socket to look at, a piece of this size that goes out is progress.
_PIECE_BYTES = 16 * 1024
# More than this many deferred envelopes are not worth waiting for: the write is cheap by then.
_DEFERRED_MAX = 64
_RECEIVE_BYTES = 4 * 1024
_SLOW_WRITE_SECONDS = 1.0
# The flight recorder marks how many wait from here on, each time they have doubled.
_DEPTH_MARK = 16
# A large frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096
_CLOSE_FRAME_START = bytes((FIN | Opcode.CLOSE,))


@attrs.define(eq=False)
class _Raw:
    """Ready bytes in the outbox; somebody is waiting for `is_written`."""

    data: bytes
    is_written: bool = False

    def pieces(self) -> list[memoryview]:
        """What is still to be written."""
        return [memoryview(self.data)]

    @property
    def size(self) -> int:
        """How many bytes that is."""
        return len(self.data)


_FULL = frozenset({Dropped.OUTBOX_FULL, Dropped.OUTBOX_BYTES})

# As an annotation: `open_memory_channel[...]` evaluates the type anew for each connection.
_Outbox: TypeAlias = tuple[
    trio.MemorySendChannel[QueuedMessage | _Raw], trio.MemoryReceiveChannel[QueuedMessage | _Raw]
]


class Owner(Protocol):
    """The connection, as its outlet knows it. None of this may raise or wait."""

    def evict(self, reason: CloseReason) -> None:
        """The connection is to be ended for `reason`."""

    def close_frame_sent(self) -> None:
        """Our close frame is out: the peer's answer is all that is missing."""


class Outbound(trio.abc.Stream):
    """Owns the order of bytes on one socket; see the module's picture.

    Envelopes are `deliver`ed without waiting, everything else is sent with `send_all`, which waits
    until it is out. `run_writer` has to be running in a task.

    Resource handling: owns `stream`. After `stop` no byte is written any more and what waits is
    booked as dropped; `aclose` stops and closes.
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
        """Wrap `stream`. A socket is read and written by its file number, other streams as such."""
        self._stream = stream
        self._replay_buffer = replay_buffer
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._ledger = ledger
        self._owner = owner
        self._turns = turns
        self._rules = rules
        # Not the channel has the limit: of events the backlog, see `_queue`; and who sends a reply
        # waits until it is out, so there are no more of them than tasks that send: the reader.
        outbox: _Outbox = trio.open_memory_channel(math.inf)
        self._outbox_send, self._outbox_receive = outbox
        self._backlog: Backlog | None = None  # nothing waits
        # Before the backlog: envelopes that gave way to newer ones, or found no room.
        self._skipped_total = self._dropped = 0
        self._flight: FlightRecorder | None = None  # nothing notable happened
        self._write_now, self._file = _direct_write(stream)
        self._is_idle = True  # nothing in the outbox, no frame half written, and more may be
        self._is_torn = False  # the last byte written may not be the end of a frame
        self._is_stopped = False
        self.is_closing = False  # a close frame is out, or queued
        self._deferred: list[Publication] | None = None
        self._progress: trio.lowlevel.ParkingLot | None = None
        self._missing = 0  # bytes of a frame that was received in part, see `missing_after`
        self._opened_at = self.heard_at = trio.current_time()

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        """Number one envelope, keep it for replay, and hand it over without waiting.

        Args:
            publication: what to deliver.
            frames: of this publication by `seq`, shared by all its subscribers; is added to.

        Returns:
            The bytes written, if the whole frame went out at once: the caller books that. 0 if it
            was queued or dropped, which is booked here.
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
        """Like `deliver`, but leave the writing to the next `flush`; the caller books it as queued.

        Returns:
            True if it is the first one: the caller has to see to the `flush`.
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
        """Hand over what was deferred, in one write if the socket takes it. Does not wait."""
        deferred = self._deferred
        if deferred is None:
            return
        self._deferred = None
        self._ledger.deliveries.queued -= len(deferred)
        numbered = list(enumerate(deferred, self._replay_buffer.seq - len(deferred) + 1))
        written = self._write_what_fits(numbered)
        # All are tried, and judged once: the writer had no turn between them.
        self._judge(*(self._queue(QueuedMessage(one, seq)) for seq, one in numbered[written:]))

    def _write_what_fits(
        self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool = False
    ) -> int:
        """Write as many as the socket takes now, joined; one half written counts. How many."""
        written = 0
        while self._is_idle and written < len(numbered):
            more = self._write_joined(numbered[written:], is_resent=is_resent)
            if not more:
                break
            written += more
        return written

    def _write_joined(self, numbered: Sequence[tuple[int, Publication]], *, is_resent: bool) -> int:
        """The same with one write: as many as that should take."""
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
        self._queue(message)  # it has room, nothing waited
        return whole + 1

    def _resent(self, publication: Publication, seq: int) -> QueuedMessage:
        return QueuedMessage(
            publication, seq, is_resent=True, is_replayed=seq <= self._replay_buffer.seq
        )

    def _queue(self, message: QueuedMessage) -> Dropped | None:
        """Queue it. If that cannot be, returns why; it is booked as dropped unless it is resent."""
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
            backlog.pin(message)  # it is with the writer, which has still to wake up
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
        """Take from the outbox, one after the other, until it is empty."""
        with suppress(trio.WouldBlock):
            while True:
                yield self._outbox_receive.receive_nowait()

    def _mark_depth(self, depth: int, newest: QueuedMessage) -> None:
        if depth >= _DEPTH_MARK and depth & (depth - 1) == 0 and not newest.skipped:
            self.note(FlightEvent.DEPTH, depth)

    def _judge(self, *refusals: Dropped | None) -> None:
        # What waits for all together is not the fault of this one client.
        had_room = not _FULL.intersection(refusals)
        if self._backlog is not None and self._backlog.is_too_slow(had_room=had_room):
            self._owner.evict(CloseReason.OUTBOX_FULL)

    def ping(self) -> None:
        """Send a WebSocket ping if the socket takes it now; else skip it.

        A socket that takes nothing has a writer at work, whose deadline is the shorter one.
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
            False if the socket takes nothing now or others wait already: see `send_all`.

        Raises:
            trio.BrokenResourceError: the peer has gone.
        """
        if not self._is_idle:
            return False
        rest = self._send_what_fits(data)
        if len(rest) == len(data):
            return False
        if rest:
            self._queue_raw(rest)  # it has room, nothing waited
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
        """Send as much as can go out now, behind what was deferred, and return the rest.

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
        """Send ready bytes, whole frames, in their turn, and wait until they are out.

        Waiting is the back-pressure on a client that does not read what it asked for.

        Raises:
            trio.BrokenResourceError: the connection was stopped first.

        Cancellation: the bytes may still be sent.
        """
        if self.is_closing:
            raise trio.BrokenResourceError
        # The write comes first: an acknowledgement is to be out before the events it announces.
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
        """Send what answers one command, in order, and wait until it is out.

        Everything is written or queued before the first checkpoint: what is published from then on
        comes after it. Resent events wait under the limits for all events, and at the first one for
        which there is no room the rest is left out. So nobody can ask for more than may wait.

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
        """Send ready bytes, maybe none. If something waits then, returns the last of it."""
        rest = self._send_what_fits(ready) if ready else b""
        if self._is_idle and not rest:
            return None
        return self._queue_raw(rest)

    def _resend(self, messages: Sequence[tuple[int, Publication]]) -> int:
        """Write or queue as many as there is room for. Returns how many; these are booked."""
        sent = self._write_what_fits(messages, is_resent=True)
        for seq, publication in messages[sent:]:
            if self._queue(self._resent(publication, seq)) is not None:
                break
            sent += 1
        self._ledger.deliveries.matched += sent
        return sent

    def close(self, frame: bytes) -> bool:
        """Send `frame`, a close frame, behind all that waits, and take nothing more. Does not wait.

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
        """Send ready bytes, whole frames, behind all that waits. Does not wait.

        Returns:
            False if there is no room left for them under the limits of events, or a close frame is
            out.
        """
        return not self.is_closing and self._send_behind(data, asks_for_bytes=True)

    def _send_behind(self, data: bytes, *, asks_for_bytes: bool) -> bool:
        with suppress(trio.BrokenResourceError):  # the reader will notice as well
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
        """Take nothing any more: after a close frame nothing may follow (RFC 6455, 5.5.1)."""
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

        Returns when the stream is gone or a write missed its deadline; the owner knows it then.
        """
        while not self._is_stopped:
            try:  # not `receive` alone: it lets others run between its taking and its return
                first = self._outbox_receive.receive_nowait()
            except trio.WouldBlock:
                first = await self._outbox_receive.receive()
            backlog = self._begin_to_wait()
            batch, buffers = self._take_batch(first, backlog)
            self._is_torn = True
            try:
                is_written = await self._write(buffers)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                if not self._is_stopped:  # else there is a better reason
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
        """What waits, `first` and as many more as one write should take, and their bytes.

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
        """Write it all. False if the client takes nothing of it for the write deadline."""
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                started = trio.current_time()
                sent = await self._write_some(rest)
                if not sent:
                    return False
                rest = rest[sent:]
                # While a reply waits its turn, nothing of the client is read: this is life as well.
                self.heard_at = trio.current_time()
                if self.heard_at - started >= _SLOW_WRITE_SECONDS:
                    self.note(FlightEvent.SLOW_WRITE)
        return True

    async def _write_some(self, data: memoryview) -> int:
        """Write a part, as soon as it is taken. How many bytes; 0 if there was no progress."""
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
            # The kernel takes more only once a third of its buffer is free. Who reads slowly, but
            # all the time, empties it meanwhile.
            if (left := _unread_bytes(socket)) < unread:
                unread, looks = left, 0
                self.heard_at = trio.current_time()
        return 0

    def _settle(self, batch: list[QueuedMessage | _Raw], size: int, backlog: Backlog) -> None:
        """Book a batch that was written, and wake who waited for it."""
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
        """Receive from the client. Anything it sends, a pong too, is a sign of life.

        From a socket: one read once it is readable. `SocketStream.receive_some` tries first and
        waits then: a failed read for each message, and more frames on each waiting reader's stack.
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
                continue  # that it came is all it says, and ten thousand of them add up
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
        """Write `event` into the flight recorder. Not for the hot path."""
        if self._flight is None:
            self._flight = FlightRecorder(self._opened_at)
        self._flight.add(event, trio.current_time(), count)

    @property
    def dropped(self) -> int:
        """How many envelopes found no room."""
        return self._dropped + (self._backlog.dropped if self._backlog else 0)

    def counts(self) -> dict[str, Any]:
        """What became of the connection, for the log."""
        conflated = self._skipped_total + (self._backlog.conflated if self._backlog else 0)
        return {
            "seconds": round(trio.current_time() - self._opened_at, 3),
            "seq": self._replay_buffer.seq,
            "dropped": self.dropped,
            "conflated": conflated,
        }

    def report(self) -> dict[str, Any]:
        """The same, how it stands and what happened last."""
        backlog = self._backlog
        return self.counts() | {
            "silent_seconds": round(trio.current_time() - self.heard_at, 3),
            "queued": (backlog.messages if backlog else 0) + len(self._deferred or ()),
            "queued_bytes": backlog.bytes if backlog else 0,
            "events": self._flight.lines() if self._flight else [],
        }

    def forget_owner(self) -> None:
        """Let go of the connection, so that it can be freed without the garbage collector."""
        self._owner = _NOBODY

    def stop(self, farewell: bytes = b"") -> None:
        """Take and write nothing more; book what waits as dropped. Can be called again.

        `farewell`, a close frame, is tried once, if the socket stands between two frames.
        """
        if self._is_stopped:
            return
        if farewell and not self._is_torn and not self.is_closing:
            with suppress(OSError):  # full or gone: best effort
                self._write_now(self._file, farewell)
        self._is_stopped = True
        self._is_idle = False
        # The file number may soon belong to another connection: nothing here may know it any more.
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
        """Read on for a moment: who broke a rule may be sending still, and is to see the answer."""
        await linger(self._stream)

    async def aclose(self) -> None:
        """Stop and close the stream. This is how trio-websocket ends a connection."""
        self.stop()
        await self._stream.aclose()


class _Nobody:
    """The owner of an outlet whose connection has ended."""

    def evict(self, reason: CloseReason) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass


_NOBODY = _Nobody()


def _unread_bytes(socket: trio.socket.SocketType) -> int:
    """What the kernel holds that the peer has not acknowledged; see tcp(7), SIOCOUTQ."""
    unread = array("i", [0])
    with suppress(OSError):  # it has gone: the write will see
        fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, unread)
    return unread[0]


def _direct_write(stream: trio.abc.Stream) -> tuple[Callable[[int, bytes | memoryview], int], int]:
    """A non-blocking write and the file number to call it with.

    A stream without a socket never takes anything that way.
    """
    if isinstance(stream, trio.SocketStream):
        return os.write, stream.socket.fileno()
    return _would_block, -1


def _would_block(file: int, data: bytes | memoryview) -> int:
    raise BlockingIOError


def _refuse(file: int, data: bytes | memoryview) -> int:
    raise BrokenPipeError
