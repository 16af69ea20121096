"""The socket side of one connection: all bytes to a client go through its outlet, in order.

Three kinds of bytes share a socket: envelopes from the fan-out, replies of ours, and the control
frames and close handshake of trio-websocket. The outlet is the stream that trio-websocket is given,
and the only one that writes to the socket, so none can land in the middle of another.

    offer ──► nothing waits? ──yes──► one non-blocking write ──► all of it went out: done
      send_all      │ no                     │ the socket is full, or took a part
                    ▼                        ▼
                 outbox (memory channel) ──► writer task: joins what waits, writes, sleeps again

A literal task switch per delivery would cost 4 to 15 times as much as the write; the writer task is
there for the moments in which the socket will not take it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

import attrs
import trio

from trio_odin.core.backpressure import SlowConsumerWatch
from trio_odin.core.closing import CloseReason
from trio_odin.core.frame import FIN, PING, Opcode
from trio_odin.core.ledger import Dropped, Ledger
from trio_odin.core.publication import Publication

# A joined write takes at most about this much; the outbox may hold far more in large envelopes.
_JOINED_MAX_BYTES = 64 * 1024
# The write deadline is for a piece of this size: one that goes out is progress.
_PIECE_BYTES = 16 * 1024
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


class Owner(Protocol):
    """The connection, as its outlet knows it. Neither method may raise or wait."""

    def evict(self, reason: CloseReason) -> None:
        """The connection is to be ended for `reason`."""

    def stream_closed(self) -> None:
        """Someone has closed the stream; trio-websocket does at the end of a connection."""


class Outlet(trio.abc.Stream):
    """Owns the order of bytes on one socket; see the module's picture.

    Envelopes are `offer`ed without waiting, everything else is sent with `send_all`, which waits
    until it is out. `run_writer` has to be running in a task.

    Resource handling: owns `stream`. After `stop` no byte is written any more and what waits is
    booked as dropped; `aclose` stops and closes.
    """

    __slots__ = (
        "_head",
        "_is_empty",
        "_is_idle",
        "_is_stopped",
        "_is_torn",
        "_ledger",
        "_outbox_receive",
        "_outbox_send",
        "_owner",
        "_progress",
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
        head: bytes,
        capacity: int,
        write_deadline_seconds: float,
        ledger: Ledger,
        owner: Owner,
    ) -> None:
        """Wrap `stream`; `head` are bytes already received from it, to be received first."""
        self._stream = stream
        self._head = head
        self._ledger = ledger
        self._owner = owner
        self._write_deadline_seconds = write_deadline_seconds
        # Full: the slow-consumer watch decides, see `offer`. Replies wait for room instead.
        self._outbox_send, self._outbox_receive = trio.open_memory_channel[_Envelope | _Raw](
            capacity
        )
        self._watch = SlowConsumerWatch()
        self._write_now = _direct_write(stream)
        self._is_empty = True  # nothing in the outbox, and no frame half written
        self._is_idle = True  # that, and more may be written
        self._is_torn = False  # the last byte written may not be the end of a frame
        self._is_stopped = False
        self.is_closing = False  # a close frame is out, or queued
        self._waiting_envelopes = 0
        self._progress: trio.lowlevel.ParkingLot | None = None
        self.heard_at = trio.current_time()
        ledger.traffic.bytes_received += len(head)

    def offer(self, publication: Publication, seq: int, frame: bytes) -> int:
        """Hand over one envelope without waiting.

        Returns:
            The bytes written, if the whole `frame` went out at once: the caller books that. 0 if it
            was queued or dropped, which is booked here.
        """
        sent = 0
        if self._is_idle:
            try:
                sent = self._write_now(frame)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(Dropped.CLOSING)
                self._owner.evict(CloseReason.PEER_GONE)
                return 0
            if sent == len(frame):
                return sent
        self._queue(_Envelope(publication, seq, sent))
        return 0

    def _queue(self, envelope: _Envelope) -> None:
        if self._is_stopped or self.is_closing:
            self._drop(Dropped.CLOSING)
            return
        try:
            self._outbox_send.send_nowait(envelope)
        except trio.WouldBlock:
            self._drop(Dropped.OUTBOX_FULL)
            if self._watch.outbox_full():
                self._owner.evict(CloseReason.OUTBOX_FULL)
            return
        self._is_empty = self._is_idle = False
        self._is_torn = self._is_torn or envelope.sent > 0
        self._watch.outbox_accepted()
        self._waiting_envelopes += 1
        self._ledger.deliveries.queued += 1
        self._ledger.traffic.bytes_sent += envelope.sent

    def _drop(self, why: Dropped) -> None:
        self._ledger.deliveries.dropped[why] += 1

    def ping(self) -> None:
        """Send a WebSocket ping if the socket takes it now; else skip it.

        A socket that takes nothing has a writer at work, whose deadline is the shorter one.
        """
        if self._is_idle:
            try:
                rest = self._write_what_fits(PING)
            except OSError:
                self._owner.evict(CloseReason.PEER_GONE)
                return
            if 0 < len(rest) < len(PING):
                self._is_empty = self._is_idle = False
                self._outbox_send.send_nowait(_Raw(rest))  # it has room, nothing waited

    def _write_what_fits(self, data: bytes) -> bytes:
        """Write as much as the socket takes now, and return the rest. Only while idle."""
        try:
            sent = self._write_now(data)
        except BlockingIOError:
            return data
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
        rest = bytes(data)
        # The write comes first: an acknowledgement is to be out before the events it announces.
        if self._is_idle:
            try:
                rest = self._write_what_fits(rest)
            except OSError as error:
                raise trio.BrokenResourceError from error
        if data[:1] == _CLOSE_FRAME_START:
            self._close_for_good()
        if rest:
            await self._send_queued(_Raw(rest))
        else:
            await trio.lowlevel.checkpoint()

    def _close_for_good(self) -> None:
        """Take nothing any more: after a close frame nothing may follow (RFC 6455, 5.5.1)."""
        self.is_closing = True
        self._is_idle = False

    async def _send_queued(self, raw: _Raw) -> None:
        if self._is_stopped:
            raise trio.BrokenResourceError
        self._is_empty = self._is_idle = False
        await self._outbox_send.send(raw)
        await self._wait_for(lambda: raw.is_written)
        if not raw.is_written:
            raise trio.BrokenResourceError

    async def wait_flushed(self) -> None:
        """Wait until nothing waits to be written, or the outlet was stopped."""
        await self._wait_for(lambda: self._is_empty)

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
        self._is_empty = not self._outbox_receive.statistics().current_buffer_used
        if self._is_empty and not self._is_stopped and not self.is_closing:
            self._is_idle = True
            self._watch.outbox_accepted()
        if self._progress is not None:
            self._progress.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the underlying stream might take bytes."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive from the client. Anything it sends, a pong too, is a sign of life."""
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, b""
            return head
        data = await self._stream.receive_some(max_bytes)
        self.heard_at = trio.current_time()
        self._ledger.traffic.bytes_received += len(data)
        return data

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
                self._write_now(farewell)
        self._is_stopped = True
        self._is_idle = False
        # The file number may soon belong to another connection: nothing here may know it any more.
        self._write_now = _refuse
        self._ledger.deliveries.queued -= self._waiting_envelopes
        self._ledger.deliveries.dropped[Dropped.CLOSING] += self._waiting_envelopes
        self._waiting_envelopes = 0
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


_NOBODY = _Nobody()


def _bytes_of(item: _Envelope | _Raw) -> bytes:
    if isinstance(item, _Raw):
        return item.data
    return item.publication.frame(item.seq)[item.sent :]


def _direct_write(stream: trio.abc.Stream) -> Callable[[bytes], int]:
    """A non-blocking write to `stream`'s socket; one that never takes anything if it has none."""
    if isinstance(stream, trio.SocketStream):
        return partial(os.write, stream.socket.fileno())
    return _would_block


def _would_block(data: bytes) -> int:
    raise BlockingIOError


def _refuse(data: bytes) -> int:
    raise BrokenPipeError
