"""Hostile clients: any bytes over any kind of socket."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

import trio

from trio_odin.lab.fleet.dialects import masked_frame, upgrade_request

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
CONTINUATION, FIN = 0x00, 0x80

_SO_ATTACH_FILTER = 26
_IP_BIND_ADDRESS_NO_PORT = 24
_BPF_RET_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time


class Attacker:
    """One socket to the server. It keeps the bytes it reads."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def send(self, data: bytes) -> bool:
        """Send; returns whether the server still takes it."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_all(data)
            return True
        return False

    async def read_more(self) -> bool:
        """Read once; False at the end of the stream, of any kind."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            chunk = await self.stream.receive_some()
            self.received += chunk
            return bool(chunk)
        return False

    async def answer(self, seconds: float = 10) -> bytes:
        """Everything up to the end of the stream."""
        with trio.fail_after(seconds):
            while await self.read_more():
                pass
        return self.received

    async def end_of_stream(self, seconds: float) -> bool:
        """Read for `seconds`; returns whether the stream has ended."""
        with trio.move_on_after(seconds):
            while await self.read_more():
                pass
            return True
        return False

    async def status(self, seconds: float = 10) -> int:
        """The status of an HTTP answer; 0 if the stream ended without one."""
        with trio.fail_after(seconds):
            while b"\r\n\r\n" not in self.received and await self.read_more():
                pass
        head = self.received.split(b"\r\n")[0]
        return int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.1 ") else 0

    async def upgrade(self, *headers: str, path: str = "/ws") -> int:
        """Ask for a WebSocket; returns the status."""
        request = upgrade_request("127.0.0.1", path)[:-2]
        await self.send(request + "".join(f"{line}\r\n" for line in headers).encode() + b"\r\n")
        status = await self.status()
        self.received = self.received.partition(b"\r\n\r\n")[2]
        return status

    def frames(self) -> Iterable[tuple[int, bytes]]:
        """The complete frames that were read; the rest is kept."""
        while len(self.received) >= 2:
            length, start = self.received[1], 2
            if length >= 126:
                start = 4 if length == 126 else 10
                length = int.from_bytes(self.received[2:start], "big")
            if len(self.received) < start + length:
                return
            head, payload = self.received[0], self.received[start : start + length]
            self.received = self.received[start + length :]
            yield head, payload

    async def say(self, text: str) -> None:
        await self.send(masked_frame(TEXT, text.encode()))

    async def reply(self, seconds: float = 5) -> bytes:
        """The next text message."""
        with trio.fail_after(seconds):
            while True:
                for head, payload in self.frames():
                    if head == TEXT:
                        return payload
                assert await self.read_more(), "the server has closed the connection"

    async def close_code(self, seconds: float = 5) -> int:
        """Read to the end; the code of the close frame, 1006 if there was none, 0 if no end."""
        with trio.move_on_after(seconds):
            while True:
                for head, payload in self.frames():
                    if head == CLOSE:
                        return int.from_bytes(payload[:2], "big") or 1005
                if not await self.read_more():
                    return 1006
        return 0

    def reset(self) -> None:
        """Close with an RST."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.stream.socket.close()

    def vanish(self) -> None:
        drop_everything(self.stream.socket)


def drop_everything(sock: trio.socket.SocketType) -> None:
    """Make the kernel drop everything that arrives for a socket: no ACK, FIN or RST goes back.

    As with a pulled cable, the far end gets no answer. It is a classic BPF program of one
    instruction, which needs neither root nor a network namespace.
    """
    program = ctypes.create_string_buffer(_BPF_RET_NOTHING)
    fprog = struct.pack("HL", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


class Attackers:
    """Opens hostile sockets to one port, and closes the remaining ones."""

    def __init__(self, port: int) -> None:
        self.all: list[Attacker] = []
        self._port = port

    async def tcp(self, *, source: str = "127.0.0.1", receive_bytes: int = 0) -> Attacker:
        """A TCP connection; `receive_bytes` is its buffer, 0 leaves it to the kernel."""
        sock = trio.socket.socket()
        one = Attacker(trio.SocketStream(sock))
        self.all.append(one)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        # The port is chosen when the whole pair of addresses is known.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        await sock.bind((source, 0))
        await sock.connect(("127.0.0.1", self._port))
        return one

    async def websocket(self, *headers: str, source: str = "127.0.0.1") -> Attacker:
        """A WebSocket that was let in."""
        one = await self.tcp(source=source)
        status = await one.upgrade(*headers)
        assert status == 101, status
        return one

    async def many(
        self, count: int, *, is_upgraded: bool = False, receive_bytes: int = 0
    ) -> list[Attacker]:
        """Open `count` of them, one after the other."""
        if is_upgraded:
            return [await self.websocket() for _ in range(count)]
        return [await self.tcp(receive_bytes=receive_bytes) for _ in range(count)]

    def leave(self) -> None:
        """Close all."""
        for one in self.all:
            one.stream.socket.close()
        self.all.clear()


def raw_frame(head: int, payload: bytes = b"", *, length: bytes | None = None) -> bytes:
    """A masked frame with any length field, whose first byte has the mask bit."""
    if length is None:
        return masked_frame(head, payload)
    return bytes((head,)) + bytes((0x80 | length[0],)) + length[1:] + b"\0\0\0\0" + payload
