"""Peer: the floor. One write(2) for each delivery and nothing else, so no Python can do it faster.

What makes a server of it is missing: a delivery that would block is lost, clients' pings go
unanswered, and nobody is asked whether they are still there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import trio

from trio_odin.core.address import Address
from trio_odin.core.frame import Opcode, close_frame, text_frame
from trio_odin.lab.bench.peers.feed import Feed
from trio_odin.lab.bench.peers.program import run
from trio_odin.lab.bench.peers.wire import (
    Subscriptions,
    acknowledgement,
    asked_channels,
    delivery,
)
from trio_odin.net.address import bound_address, open_listeners

_KEY = re.compile(rb"\r\nsec-websocket-key: *([^\r ]+)", re.IGNORECASE)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_OPCODE_BITS = 0x0F
_LENGTH_BITS = 0x7F
# A length of 7 bits that says how many bytes of length follow it.
_LONGER = {126: 2, 127: 8}


class _Floor:
    """A connection is its file number; a number is forgotten before its socket is closed."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._streams: dict[int, trio.SocketStream] = {}
        self._ready: Subscriptions[int] = Subscriptions()
        # The socket took part of a frame: nothing may follow before the rest of it.
        self._behind: Subscriptions[int] = Subscriptions()
        self._dropped = dropped

    async def fan_out(self, feed: Feed) -> None:
        """Write every event of `feed` to its subscribers."""
        async with trio.open_nursery() as nursery:
            async for channel, payload in feed:
                frame = text_frame(delivery(channel, payload))
                self._dropped["behind"] += len(self._behind.of(channel))
                for number, written in self._write(self._ready.of(channel), frame):
                    self._behind.add(number, self._ready.remove(number))
                    stream = self._streams[number]
                    nursery.start_soon(self._finish, number, stream, frame[written:])

    def _write(self, numbers: Iterable[int], frame: bytes) -> list[tuple[int, int]]:
        """Write `frame` to each; returns whose socket took part of it, and how much."""
        write, size = os.write, len(frame)
        parts = []
        for number in numbers:
            try:
                written = write(number, frame)
            except OSError as error:  # would block, or the other end has gone
                self._dropped[type(error).__name__] += 1
                continue
            if written != size:
                parts.append((number, written))
        return parts

    async def _finish(self, number: int, stream: trio.SocketStream, rest: bytes) -> None:
        """Write what the socket did not take at once; then the number is ready again."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(rest)
            self._ready.add(number, self._behind.remove(number))

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection: the handshake, then commands until it is closed."""
        number = stream.socket.fileno()
        self._streams[number] = stream
        try:
            async with stream:
                try:
                    await self._converse(_Incoming(stream), number)
                finally:
                    self._ready.remove(number)
                    self._behind.remove(number)
                    del self._streams[number]
        except (trio.BrokenResourceError, OSError, EOFError):
            pass  # gone, in whatever way

    async def _converse(self, incoming: _Incoming, number: int) -> None:
        key = _KEY.search(await incoming.take_head())
        if key is None:
            return  # no WebSocket
        os.write(number, _handshake_answer(key[1]))
        while True:
            opcode, payload = await incoming.take_frame()
            if opcode == Opcode.CLOSE:
                os.write(number, close_frame(1000, ""))
                return
            if opcode == Opcode.TEXT and (channels := asked_channels(payload)):
                os.write(number, text_frame(acknowledgement(channels)))
                self._ready.add(number, channels)


class _Incoming:
    """What a client has sent, in pieces of the wanted size. Raises EOFError at its end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def take_head(self) -> bytes:
        """The head of the request."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            await self._receive()
        return await self._take(end + 4)

    async def take_frame(self) -> tuple[int, bytes]:
        """The opcode and the payload of the next frame, which is masked."""
        first, second = await self._take(2)
        length = second & _LENGTH_BITS
        if length in _LONGER:
            length = int.from_bytes(await self._take(_LONGER[length]), "big")
        mask = await self._take(4)
        masked = await self._take(length)
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked))
        return first & _OPCODE_BITS, payload

    async def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._receive()
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def _receive(self) -> None:
        chunk = await self._stream.receive_some()
        if not chunk:
            raise EOFError
        self._received += chunk


def _handshake_answer(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455, 4.2.2
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


async def serve(
    feed: Feed,
    address: Address,
    dropped: Counter[str],
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    """Serve until cancelled."""
    floor = _Floor(dropped)
    listeners = await open_listeners(address)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, floor.handle, listeners))
        task_status.started(bound_address(listeners[0]))
        await floor.fan_out(feed)


def main() -> None:
    """Run the peer."""
    run(serve)


if __name__ == "__main__":
    main()
