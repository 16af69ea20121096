"""The server's side of TLS on one socket, for writes that do not wait and reads that do.

trio's `SSLStream` keeps what it has encrypted in memory until it is sent, and only a task can send
it. Here OpenSSL writes to the socket itself, so that an event goes out within the fan-out.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import attrs
import trio

from trio_odin.net.tls_files import expires_at, load_identity

# RFC 8446, 5.1: what a record can hold. OpenSSL encrypts and writes one after the other.
RECORD_MAX_BYTES: Final = 16_384
# RFC 8446, 6: the fatal alert `internal_error`, which needs no handshake.
TLS_REFUSAL: Final = b"\x15\x03\x03\x00\x02\x02\x50"

_HANDSHAKE_RECORD = b"\x16"  # RFC 8446, 5.1
_RECEIVE_BYTES = 16_384
# Two tasks cannot wait for one socket to become writable, so the second one looks again after this
# time. It is rare that a reader has to wait for that.
_BUSY_SECONDS = 0.05


@attrs.frozen
class TlsIdentity:
    """The server's certificate and key, ready for use.

    Attributes:
        context: what connections are made with.
        expires_at: when the certificate expires, in seconds of Unix time.
    """

    context: ssl.SSLContext
    expires_at: float

    @classmethod
    def load(cls, certificate: Path, key: Path | None) -> TlsIdentity:
        """Read the files.

        Raises:
            TlsFileUnusable: one of them cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # It would have a write wait for the peer; and a deflated secret can be guessed.
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        # A ticket is 250 bytes of each client and its computing; few clients come back with one.
        context.num_tickets = 1
        context.set_alpn_protocols(["http/1.1"])
        load_identity(context, certificate, key)
        return cls(context, expires_at(certificate))


class HandshakeFailed(Exception):
    """The client could not agree with us, or has gone. The socket is closed."""


async def speaks_tls(stream: trio.SocketStream) -> bool:
    """Wait for the first byte, which stays there: whether it begins a TLS handshake.

    True also if the client has gone: the handshake will notice.
    """
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            first = await stream.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError:
            return True
        return not first or first == _HANDSHAKE_RECORD


async def accept_tls(stream: trio.SocketStream, context: ssl.SSLContext) -> TlsStream:
    """Agree with the client on keys; returns the encrypted stream, which takes over the socket.

    Raises:
        HandshakeFailed: the client has no such version or cipher, does not accept the certificate,
            does not speak TLS, or has gone.

    Cancellation: the socket is closed.
    """
    file = stream.socket.detach()
    try:
        plain = socket.socket(fileno=file)
    except OSError as error:
        os.close(file)
        raise HandshakeFailed(str(error)) from None
    try:
        plain.setblocking(False)
        encrypted = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:  # ValueError: it came with data after it had gone
        plain.close()
        raise HandshakeFailed(str(error)) from None
    except BaseException:
        plain.close()
        raise
    try:
        while True:
            try:
                encrypted.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(encrypted)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(encrypted)
            else:
                return TlsStream(encrypted)
    except (OSError, ValueError) as error:
        _close(encrypted)
        raise HandshakeFailed(getattr(error, "reason", None) or str(error)) from None
    except BaseException:
        _close(encrypted)
        raise


class TlsStream(trio.abc.HalfCloseableStream):
    """An encrypted stream to a client. Made by `accept_tls`.

    Resource handling: owns the socket; `aclose` closes it, with a `close_notify` if there is room.

    Attributes:
        socket: the socket, to wait for and to ask about; not to be written to or read from.
    """

    __slots__ = ("_is_ended", "_owed", "socket")

    def __init__(self, encrypted: ssl.SSLSocket) -> None:
        self.socket = encrypted
        self._owed = b""  # what OpenSSL has encrypted and could not write yet
        self._is_ended = False

    def write_now(self, _: int, data: bytes | memoryview) -> int:
        """Write a part of `data` and return its length, as `os.write` does. Does not wait.

        If the socket is full, OpenSSL keeps the last record and wants to be called again with the
        same bytes. They count as written but for the last one, so the caller comes back with that
        byte first, as it would with any other rest.

        Raises:
            BlockingIOError: the socket takes nothing now.
            OSError: the peer has gone.
        """
        if self._is_ended:  # the socket itself would send it unencrypted
            _break_pipe()
        if self._owed and not self._write_owed():
            raise BlockingIOError
        done = 0
        if self._owed:  # the rest of it is the first byte of `data`
            self._owed, done = b"", 1
        view = memoryview(data)
        while done < len(view):
            record = view[done : done + RECORD_MAX_BYTES]
            try:
                done += self.socket.send(record)
            except ssl.SSLWantWriteError:
                self._owed = bytes(record)
                done += len(record) - 1
                break
            except ssl.SSLZeroReturnError:
                _break_pipe()
        if not done:
            raise BlockingIOError
        return done

    def _write_owed(self) -> bool:
        """Have OpenSSL write what it keeps. False: the socket is still full."""
        try:
            self.socket.send(self._owed)
        except ssl.SSLWantWriteError:
            return False
        except ssl.SSLZeroReturnError:
            _break_pipe()
        return True

    def read_now(self, max_bytes: int) -> bytes:
        """Read what is there, as `os.read` does; empty at the end. Does not wait.

        Raises:
            BlockingIOError: nothing is there yet.
            OSError: the peer has gone, or does not keep to the protocol.
        """
        if self._is_ended:
            _break_pipe()
        try:
            return self.socket.recv(max_bytes)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    @property
    def has_more(self) -> bool:
        """Whether something is decrypted and not read: the socket need not be readable for it."""
        return self.socket.pending() > 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least a byte; empty at the end. After `send_eof`, bytes without meaning.

        Raises:
            trio.BrokenResourceError: the peer has gone.
            trio.ClosedResourceError: the stream is closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError
            try:
                if self._is_ended:  # the keys are gone, and so is the interest in it
                    return os.read(self.socket.fileno(), _RECEIVE_BYTES)
                return self.read_now(max_bytes or _RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)
            except ssl.SSLWantWriteError:
                await self.wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_writable(self) -> None:
        """Wait until the socket might take bytes. A reader and a writer may wait at a time.

        The reader has to where the peer wants an answer, for example to new keys.

        Raises:
            trio.ClosedResourceError: the socket was closed meanwhile.
        """
        try:
            await trio.lowlevel.wait_writable(self.socket)
        except trio.BusyResourceError:
            await trio.sleep(_BUSY_SECONDS)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

        Raises:
            trio.BrokenResourceError: the peer has gone.
            trio.ClosedResourceError: the stream is closed.

        Cancellation: a part may be sent, and nothing can be sent after it.
        """
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError
            try:
                rest = rest[self.write_now(-1, rest) :]
            except BlockingIOError:
                await self.wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket might take bytes.

        Raises:
            trio.ClosedResourceError: the stream is closed.
        """
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        await self.wait_writable()

    async def send_eof(self) -> None:
        """End our side: a `close_notify`, if there is room for it, and the end of the stream."""
        await trio.lowlevel.checkpoint()
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        self._say_goodbye()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close_now(self) -> None:
        """Close at once, without a checkpoint."""
        if self.socket.fileno() >= 0:
            self._say_goodbye()
            _close(self.socket)

    async def aclose(self) -> None:
        """Close at once."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def _say_goodbye(self) -> None:
        """Send a `close_notify`, if nothing else is under way."""
        if self._is_ended:
            return
        self._is_ended = True
        if not self._owed:
            with suppress(OSError, ValueError):  # SSLWantReadError: it waits for the peer's
                self.socket.unwrap()


def socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType | ssl.SSLSocket | None:
    """The socket under a stream, to ask about its number and addresses; None: it has none."""
    return stream.socket if isinstance(stream, trio.SocketStream | TlsStream) else None


def _close(encrypted: ssl.SSLSocket) -> None:
    trio.lowlevel.notify_closing(encrypted)
    encrypted.close()


def _break_pipe() -> NoReturn:
    raise BrokenPipeError("the peer has ended TLS") from None
