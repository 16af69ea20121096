"""One client's socket: writes that never wait, writes with a deadline, and reads.

It knows bytes only; what they mean, and their order, is the business of the `Outbound`.
"""

from __future__ import annotations

import fcntl
import os
import select
import ssl
import termios
from array import array
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

import trio

from trio_odin.fanout.flight import FlightEvent, FlightRecorder
from trio_odin.ledger.counters import Traffic
from trio_odin.net.http import linger
from trio_odin.net.tls_stream import TlsStream, socket_of
from trio_odin.overload.turns import Turns
from trio_odin.wire.frames import PONG_BYTES, PONG_HEAD, missing_after

# Progress is checked this often within the write deadline. A while in which the whole process
# stands still is one check, and not the client's fault.
_CHECKS_OF_PROGRESS = 5
# Without a socket to ask, a piece of this size that is written is progress.
_PIECE_BYTES = 16 * 1024
_RECEIVE_BYTES = 4 * 1024
_SLOW_WRITE_SECONDS = 1.0


class Tap(Protocol):
    """Follows what is written to one client. None of this waits or raises another error."""

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write as the socket's `untapped_write` does, and take note of what was written."""
        ...

    def frames_are_whole(self) -> None:
        """Note that the last byte written ends a frame."""

    def ended(self) -> None:
        """Note that nothing more will be written."""


class ClientSocket:
    """Writes to and reads from the stream of one client.

    Resource handling: owns `stream`; `stop` ends all writing and reading, `aclose` closes it.

    Attributes:
        stream: the client's stream.
        write_now: as `os.write`, to be called with `file`: takes what fits, and does not wait.
            Raises BlockingIOError if that is nothing, another OSError if the peer has gone.
        file: the file number; -1 for a stream without one, which takes nothing this way.
        heard_at: when anything was last heard from the client, in monotonic seconds.
        tap: who follows what is written; None: nobody.
    """

    __slots__ = (
        "_flight",
        "_missing",
        "_socket",
        "_traffic",
        "_turns",
        "_unread",
        "file",
        "heard_at",
        "stream",
        "tap",
        "write_now",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        traffic: Traffic,
        flight: FlightRecorder,
        turns: Turns | None = None,
    ) -> None:
        """Wrap `stream`. A socket is used by its file number, another stream by its methods."""
        self.stream = stream
        self._socket = socket_of(stream)
        self.file = self._socket.fileno() if self._socket else -1
        self.write_now: Callable[[int, bytes | memoryview], int] = self.untapped_write
        self._traffic = traffic
        self._flight = flight
        self._turns = turns
        self._unread = 0  # when the socket took nothing, see `may_take`
        self._missing = 0  # bytes of a partly received frame, see `missing_after`
        self.heard_at = trio.current_time()
        self.tap: Tap | None = None

    @property
    def untapped_write(self) -> Callable[[int, bytes | memoryview], int]:
        """The `write_now` of the stream itself: what a tap has to write with."""
        if isinstance(self.stream, TlsStream):
            return self.stream.write_now
        return os.write if self._socket else _take_nothing

    def follow(self, tap: Tap | None) -> bool:
        """Have `tap` get all that is written from now on; None: nobody gets it any longer.

        What is not followed pays nothing for it: the tap takes the place of `write_now`.

        Returns:
            False if it cannot be followed, because it has ended or has no file number.
        """
        if self._socket is None or self.is_stopped:
            return False
        self.tap = tap
        self.write_now = self.untapped_write if tap is None else tap.write
        return True

    async def write_all(self, buffers: Iterable[bytes | memoryview], seconds: float) -> bool:
        """Write all `buffers`, which end with a whole frame.

        Returns False if the client takes nothing for `seconds`.

        Raises:
            OSError, trio.BrokenResourceError, trio.ClosedResourceError: the peer has gone, or the
                connection was stopped.

        Cancellation: a part may be written.
        """
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                started = trio.current_time()
                sent = await self._write_some(rest, seconds)
                if not sent:
                    return False
                rest = rest[sent:]
                # While a reply waits, nothing is read from the client: this is a sign of life too.
                self.heard_at = trio.current_time()
                if self.heard_at - started >= _SLOW_WRITE_SECONDS:
                    self._flight.add(FlightEvent.SLOW_WRITE, self.heard_at)
        if self.tap is not None:
            self.tap.frames_are_whole()
        return True

    async def _write_some(self, data: memoryview, seconds: float) -> int:
        """Write a part as soon as the client takes it. Returns its length; 0: no progress."""
        socket = self._socket
        if socket is None:
            piece = data[:_PIECE_BYTES]
            with trio.move_on_after(seconds) as deadline:
                await self.stream.send_all(piece)
            return 0 if deadline.cancelled_caught else len(piece)
        unread, checks = _unread_bytes(socket), 0
        while checks < _CHECKS_OF_PROGRESS:
            try:
                return self.write_now(self.file, data)
            except BlockingIOError:
                pass
            with trio.move_on_after(seconds / _CHECKS_OF_PROGRESS) as deadline:
                if isinstance(self.stream, TlsStream):  # its reader may wait for the same
                    await self.stream.wait_writable()
                else:
                    await trio.lowlevel.wait_writable(socket)
            if deadline.cancelled_caught:
                checks += 1
            # The kernel takes more only once a third of its buffer is free. A client that reads
            # slowly but all the time empties it meanwhile.
            if (left := _unread_bytes(socket)) < unread:
                unread, checks = left, 0
                self.heard_at = trio.current_time()
        return 0

    @property
    def is_file(self) -> bool:
        """Whether it can be written to by its file number."""
        return self._socket is not None

    def note_full(self) -> None:
        """Note that the socket took nothing; see `may_take`."""
        if self._socket is not None:
            self._unread = _unread_bytes(self._socket)

    def may_take(self) -> bool:
        """Whether the socket has room again, after it took nothing. Costs nothing if it did.

        That the client has read since then is a sign of life: a client that reads slowly gets no
        pings, for want of room.
        """
        if self._socket is None or not self._unread:
            return True
        unread = _unread_bytes(self._socket)
        if unread < self._unread:
            self.heard_at = trio.current_time()
            self._unread = unread
        has_room = _has_room(self._socket)
        if has_room:
            self._unread = 0
        return has_room

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive from the client. Anything that it sends, even a pong, is a sign of life.

        Raises:
            trio.ClosedResourceError: the connection was stopped.
            trio.BrokenResourceError: the peer has gone.
        """
        if self._socket is None:
            return self._receive_from_stream(max_bytes)
        if isinstance(self.stream, TlsStream):
            return self._receive_from_tls(self.stream, max_bytes or _RECEIVE_BYTES)
        return self._receive_from_socket(self._socket, max_bytes or _RECEIVE_BYTES)

    async def _receive_from_stream(self, max_bytes: int | None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        self._heard(data)
        return data

    async def _receive_from_socket(
        self, socket: trio.socket.SocketType | ssl.SSLSocket, max_bytes: int
    ) -> bytes | bytearray:
        """Read once the socket is readable.

        `SocketStream.receive_some` reads first and then waits: a failed read per message, and more
        frames on the stack of each waiting reader.
        """
        while True:
            if self.is_stopped:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(socket)
            if self._turns is not None and self._turns.are_over():
                await self._turns.wait()
            try:
                data = os.read(socket.fileno(), max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
            if self._is_to_return(data):
                return data

    async def _receive_from_tls(self, stream: TlsStream, max_bytes: int) -> bytes | bytearray:
        """The same for TLS, where what one read leaves is decrypted already."""
        while True:
            if self.is_stopped:
                raise trio.ClosedResourceError
            if not stream.has_more:
                await trio.lowlevel.wait_readable(stream.socket)
            if self._turns is not None and self._turns.are_over():
                await self._turns.wait()
            try:
                data = stream.read_now(max_bytes)
            except BlockingIOError:  # a part of a record, or one without data
                continue
            except ssl.SSLWantWriteError:
                await stream.wait_writable()
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
            if self._is_to_return(data):
                return data

    def _is_to_return(self, data: bytes) -> bool:
        """Take note of what was received: whether it is of interest to the reader."""
        self._heard(data)
        if self._is_bare_pong(data):
            self._flight.add(FlightEvent.PONG, self.heard_at)
            return False  # its arrival is all that it says, and ten thousand add up
        self._missing = missing_after(data, self._missing)
        return True

    def _heard(self, data: bytes | bytearray) -> None:
        self.heard_at = trio.current_time()
        self._traffic.bytes_received += len(data)

    def _is_bare_pong(self, data: bytes) -> bool:
        is_alone = self._missing == 0 and len(data) == PONG_BYTES
        return is_alone and data.startswith(PONG_HEAD)

    async def wait_writable(self) -> None:
        """Wait until the stream might take bytes."""
        await self.stream.wait_send_all_might_not_block()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self.write_now is _refuse

    def stop(self) -> None:
        """Write nothing more: the file number may soon belong to another connection."""
        self.write_now = _refuse
        if self.tap is not None:
            self.tap.ended()
            self.tap = None

    async def linger(self) -> None:
        """Read on for a moment, so that a peer that is still sending gets the close frame."""
        await linger(self.stream)

    def close_now(self) -> bool:
        """Stop, and close the stream without a checkpoint. False: only `aclose` can close it."""
        self.stop()
        if isinstance(self.stream, trio.SocketStream):
            self.stream.socket.close()
        elif isinstance(self.stream, TlsStream):
            self.stream.close_now()
        else:
            return False
        return True

    async def aclose(self) -> None:
        """Stop, and close the stream."""
        self.stop()
        await self.stream.aclose()


def _unread_bytes(socket: trio.socket.SocketType | ssl.SSLSocket) -> int:
    """How many bytes the peer has not acknowledged to the kernel; see tcp(7), SIOCOUTQ."""
    unread = array("i", [0])
    with suppress(OSError):  # the peer has gone: the write will notice
        fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, unread)
    return unread[0]


def _has_room(socket: trio.socket.SocketType | ssl.SSLSocket) -> bool:
    room = select.poll()
    room.register(socket.fileno(), select.POLLOUT)
    return bool(room.poll(0))


def _take_nothing(file: int, data: bytes | memoryview) -> int:
    raise BlockingIOError


def _refuse(file: int, data: bytes | memoryview) -> int:
    raise BrokenPipeError
