"""The socket side of one connection: all bytes to a client go through its outlet, in order.

Three kinds of bytes share a socket: envelopes from the fan-out, replies of ours, and the control
frames and close handshake of trio-websocket. The outlet is the stream that trio-websocket is given,
and the only one that writes to the socket, so none can land in the middle of another.

    deliver, flush ► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
      send_all             │ no                     │ the socket is full, or took a part
                           ▼                        ▼
                        outbox (memory channel) ──► writer task: joins what waits, writes, sleeps

A literal task switch per delivery would cost 4 to 15 times as much as the write; the writer task is
there for the moments in which the socket will not take it.

Under load the hub does not `deliver` each envelope but `defer`s several, and `flush`es them in one
write. They come before anything that is sent in the meantime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias

import attrs
import trio

from trio_odin.core.backpressure import SlowConsumerWatch
from trio_odin.core.closing import CloseReason
from trio_odin.core.frame import FIN, PING, PONG_BYTES, PONG_HEAD, Opcode, missing_after
from trio_odin.core.history import History
from trio_odin.core.ledger import Dropped, Ledger
from trio_odin.core.publication import Publication

# A joined write takes at most about this much; the outbox may hold far more in large envelopes.
_JOINED_MAX_BYTES = 64 * 1024
# The write deadline is for a piece of this size: one that goes out is progress.
_PIECE_BYTES = 16 * 1024
# More than this many deferred envelopes are not worth waiting for: the write is cheap by then.
_DEFERRED_MAX = 64
_RECEIVE_BYTES = 4 * 1024
# A large frame costs more to keep for every seq until the fan-out ends than to make again.
_SHARED_FRAME_MAX_BYTES = 4096
_CLOSE_FRAME_START = bytes((FIN | Opcode.CLOSE,))


class _Envelope(NamedTuple):
    """An envelope in the outbox: references only. The first `sent` bytes of its frame are out."""

    publication: Publication
    seq: int
    sent: int


@attrs.define(eq=False)
class _Raw:
    """Ready bytes in the outbox; somebody is waiting for `is_written`."""

    data: bytes
    is_written: bool = False


# As an annotation: `open_memory_channel[...]` evaluates the type anew for each connection.
_Outbox: TypeAlias = tuple[
    trio.MemorySendChannel[_Envelope | _Raw], trio.MemoryReceiveChannel[_Envelope | _Raw]
]


class Owner(Protocol):
    """The connection, as its outlet knows it. None of this may raise or wait."""

    def evict(self, reason: CloseReason) -> None:
        """The connection is to be ended for `reason`."""

    def stream_closed(self) -> None:
        """Someone has closed the stream; trio-websocket does at the end of a connection."""

    def close_frame_sent(self) -> None:
        """Our close frame is out: the peer's answer is all that is missing."""


class Outlet(trio.abc.Stream):
    """Owns the order of bytes on one socket; see the module's picture.

    Envelopes are `deliver`ed without waiting, everything else is sent with `send_all`, which waits
    until it is out. `run_writer` has to be running in a task.

    Resource handling: owns `stream`. After `stop` no byte is written any more and what waits is
    booked as dropped; `aclose` stops and closes.
    """

    __slots__ = (
        "_deferred",
        "_file",
        "_history",
        "_is_idle",
        "_is_stopped",
        "_is_torn",
        "_ledger",
        "_missing",
        "_outbox_receive",
        "_outbox_send",
        "_owner",
        "_progress",
        "_socket",
        "_stream",
        "_waiting_envelopes",
        "_watch",
        "_write_deadline_seconds",
        "_write_now",
        "heard_at",
        "is_closing",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        history: History,
        capacity: int,
        write_deadline_seconds: float,
        ledger: Ledger,
        owner: Owner,
    ) -> None:
        """Wrap `stream`. A socket is read and written by its file number, other streams as such."""
        self._stream = stream
        self._history = history
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._ledger = ledger
        self._owner = owner
        self._write_deadline_seconds = write_deadline_seconds
        # Full: the slow-consumer watch decides, see `deliver`. Replies wait for room instead.
        outbox: _Outbox = trio.open_memory_channel(capacity)
        self._outbox_send, self._outbox_receive = outbox
        self._watch = SlowConsumerWatch()
        self._write_now, self._file = _direct_write(stream)
        self._is_idle = True  # nothing in the outbox, no frame half written, and more may be
        self._is_torn = False  # the last byte written may not be the end of a frame
        self._is_stopped = False
        self.is_closing = False  # a close frame is out, or queued
        self._waiting_envelopes = 0
        self._deferred: list[Publication] | None = None
        self._progress: trio.lowlevel.ParkingLot | None = None
        self._missing = 0  # bytes of a frame that was received in part, see `missing_after`
        self.heard_at = trio.current_time()

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        """Number one envelope, keep it for replay, and hand it over without waiting.

        Args:
            publication: what to deliver.
            frames: of this publication by `seq`, shared by all its subscribers; is added to.

        Returns:
            The bytes written, if the whole frame went out at once: the caller books that. 0 if it
            was queued or dropped, which is booked here.
        """
        history = self._history
        history.seq = seq = history.seq + 1
        history.kept.append(publication)
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
                self._drop(Dropped.CLOSING)
                self._owner.evict(CloseReason.PEER_GONE)
                return 0
            if sent == len(frame):
                return sent
        self._judge(self._queue(_Envelope(publication, seq, sent)))
        return 0

    def defer(self, publication: Publication) -> bool:
        """Like `deliver`, but leave the writing to the next `flush`; the caller books it as queued.

        Returns:
            True if it is the first one: the caller has to see to the `flush`.
        """
        self._history.append(publication)
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
        numbered = list(enumerate(deferred, self._history.seq - len(deferred) + 1))
        while numbered and self._is_idle:
            del numbered[: self._write_joined(numbered)]
        if numbered:
            self._queue_all(_Envelope(publication, seq, 0) for seq, publication in numbered)

    def _write_joined(self, numbered: Sequence[tuple[int, Publication]]) -> int:
        """Write as many as one write should take, and book or queue them. Returns how many."""
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
            sent = 0
        except OSError:
            self._ledger.deliveries.dropped[Dropped.CLOSING] += len(frames)
            self._owner.evict(CloseReason.PEER_GONE)
            return len(frames)
        if sent == size:
            self._ledger.deliveries.written += len(frames)
            self._ledger.traffic.bytes_sent += sent
        else:
            self._book_partly(numbered, frames, sent)
        return len(frames)

    def _book_partly(
        self, numbered: Sequence[tuple[int, Publication]], frames: Sequence[bytes], sent: int
    ) -> None:
        """Book the frames that are within the first `sent` bytes, and queue the others."""
        waiting = []
        for (seq, publication), frame in zip(numbered, frames, strict=False):
            if sent >= len(frame):
                self._ledger.deliveries.written += 1
                self._ledger.traffic.bytes_sent += len(frame)
                sent -= len(frame)
            else:
                waiting.append(_Envelope(publication, seq, sent))
                sent = 0
        self._queue_all(waiting)

    def _queue(self, envelope: _Envelope) -> bool:
        """Queue it, or drop it and book that. False if it was for a full outbox."""
        if self._is_stopped or self.is_closing:
            self._drop(Dropped.CLOSING)
            return True
        try:
            self._outbox_send.send_nowait(envelope)
        except trio.WouldBlock:
            self._drop(Dropped.OUTBOX_FULL)
            return False
        self._is_idle = False
        self._is_torn = self._is_torn or envelope.sent > 0
        self._waiting_envelopes += 1
        self._ledger.deliveries.queued += 1
        self._ledger.traffic.bytes_sent += envelope.sent
        return True

    def _queue_all(self, envelopes: Iterable[_Envelope]) -> None:
        # All are tried, and judged once: the writer had no turn between them.
        has_room = [self._queue(envelope) for envelope in envelopes]
        self._judge(all(has_room))

    def _judge(self, has_room: bool) -> None:
        if has_room:
            self._watch.outbox_accepted()
        elif self._watch.outbox_full():
            self._owner.evict(CloseReason.OUTBOX_FULL)

    def _drop(self, why: Dropped) -> None:
        self._ledger.deliveries.dropped[why] += 1

    def ping(self) -> None:
        """Send a WebSocket ping if the socket takes it now; else skip it.

        A socket that takes nothing has a writer at work, whose deadline is the shorter one.
        """
        try:
            self.send_nowait(PING)
        except trio.BrokenResourceError:
            self._owner.evict(CloseReason.PEER_GONE)

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
            self._is_idle = False
            self._outbox_send.send_nowait(_Raw(rest))  # it has room, nothing waited
        return True

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
            await self._send_queued(_Raw(rest))
        else:
            await trio.lowlevel.checkpoint()

    def close(self, frame: bytes) -> bool:
        """Send `frame`, a close frame, behind all that waits, and take nothing more. Does not wait.

        Returns:
            False if there is no room left for it: the peer has stopped reading.
        """
        if self.is_closing:
            return True
        rest = frame
        with suppress(trio.BrokenResourceError):  # the reader will notice as well
            rest = self._send_what_fits(frame)
        if rest:
            try:
                self._outbox_send.send_nowait(_Raw(rest))
            except trio.WouldBlock:
                return False
        self._close_for_good()
        if not rest:
            self._owner.close_frame_sent()
        return True

    def _close_for_good(self) -> None:
        """Take nothing any more: after a close frame nothing may follow (RFC 6455, 5.5.1)."""
        self.is_closing = True
        self._is_idle = False

    async def _send_queued(self, raw: _Raw) -> None:
        if self._is_stopped:
            raise trio.BrokenResourceError
        self._is_idle = False
        await self._outbox_send.send(raw)
        await self._wait_for(lambda: raw.is_written)
        if not raw.is_written:
            raise trio.BrokenResourceError

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        if self._progress is None:
            self._progress = trio.lowlevel.ParkingLot()
        while not condition() and not self._is_stopped:
            await self._progress.park()

    async def run_writer(self) -> None:
        """Write what waits in the outbox, joined; sleep while nothing does.

        Returns when the stream is gone or a write missed its deadline; the owner knows it then.
        """
        async for first in self._outbox_receive:
            batch, joined = self._take_batch(first)
            self._is_torn = True
            if not await self._write(joined):
                return
            self._is_torn = False
            self._settle(batch, len(joined))

    def _take_batch(self, first: _Envelope | _Raw) -> tuple[list[_Envelope | _Raw], bytes]:
        """What waits, `first` and as many more as one write should take, and their bytes joined."""
        batch = [first]
        joined = bytearray(_bytes_of(first))
        with suppress(trio.WouldBlock):
            while len(joined) < _JOINED_MAX_BYTES:
                batch.append(self._outbox_receive.receive_nowait())
                joined += _bytes_of(batch[-1])
        return batch, bytes(joined)

    async def _write(self, joined: bytes) -> bool:
        """Write it all. False if that cannot be, and then the connection is being ended."""
        view = memoryview(joined)
        for start in range(0, len(joined), _PIECE_BYTES):
            with trio.move_on_after(self._write_deadline_seconds) as deadline:
                try:
                    await self._stream.send_all(view[start : start + _PIECE_BYTES])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    if not self._is_stopped:  # else there is a better reason
                        self._owner.evict(CloseReason.PEER_GONE)
                    return False
            if deadline.cancelled_caught:
                self._owner.evict(CloseReason.WRITE_DEADLINE)
                return False
        return True

    def _settle(self, batch: list[_Envelope | _Raw], size: int) -> None:
        """Book a batch that was written, and wake who waited for it."""
        envelopes = 0
        for item in batch:
            if isinstance(item, _Raw):
                item.is_written = True
            else:
                envelopes += 1
        # If the outlet was stopped meanwhile, they are booked as dropped already.
        envelopes = min(envelopes, self._waiting_envelopes)
        self._waiting_envelopes -= envelopes
        self._ledger.deliveries.queued -= envelopes
        self._ledger.deliveries.written += envelopes
        self._ledger.traffic.bytes_sent += size
        if not self._is_stopped and not self._outbox_receive.statistics().current_buffer_used:
            if self.is_closing:
                self._owner.close_frame_sent()
            else:
                self._is_idle = True
                self._watch.outbox_accepted()
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
            try:
                data = os.read(socket.fileno(), max_bytes or _RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
            self._heard(data)
            if self._is_bare_pong(data):
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
        lost = self._waiting_envelopes + len(self._deferred or ())
        self._ledger.deliveries.queued -= lost
        self._ledger.deliveries.dropped[Dropped.CLOSING] += lost
        self._waiting_envelopes = 0
        self._deferred = None
        if self._progress is not None:
            self._progress.unpark_all()

    async def aclose(self) -> None:
        """Stop and close the stream. This is how trio-websocket ends a connection."""
        self._owner.stream_closed()
        self.stop()
        await self._stream.aclose()


class _Nobody:
    """The owner of an outlet whose connection has ended."""

    def evict(self, reason: CloseReason) -> None:
        pass

    def stream_closed(self) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass


_NOBODY = _Nobody()


def _bytes_of(item: _Envelope | _Raw) -> bytes:
    if isinstance(item, _Raw):
        return item.data
    return item.publication.frame(item.seq)[item.sent :]


def _direct_write(stream: trio.abc.Stream) -> tuple[Callable[[int, bytes], int], int]:
    """A non-blocking write and the file number to call it with.

    A stream without a socket never takes anything that way.
    """
    if isinstance(stream, trio.SocketStream):
        return os.write, stream.socket.fileno()
    return _would_block, -1


def _would_block(file: int, data: bytes) -> int:
    raise BlockingIOError


def _refuse(file: int, data: bytes) -> int:
    raise BrokenPipeError
