"""Peer: the floor. One write(2) for each delivery and nothing else; no Python can be faster.

It is not a full server: a delivery that would block is lost, clients' pings are not answered,
and there is no keepalive.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar, cast

import trio
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.streams import StreamReader
from websockets.utils import accept_key

from trio_odin.lab.bench.peers.feed import Feed
from trio_odin.lab.bench.peers.program import run
from trio_odin.lab.bench.peers.wire import (
    Subscriptions,
    acknowledgement,
    asked_channels,
    delivery,
)
from trio_odin.net.address import Address
from trio_odin.net.listening import bound_address, open_listeners
from trio_odin.wire.frames import close_frame, text_frame

_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n"
)
_T = TypeVar("_T")


class _Floor:
    """A connection is known by its file number, which is forgotten before its socket is closed."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._streams: dict[int, trio.SocketStream] = {}
        self._ready: Subscriptions[int] = Subscriptions()
        # The socket took part of a frame: the rest of it must come before anything else.
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
        """Write `frame` to each; returns the sockets that took part of it, and how much."""
        write, size = os.write, len(frame)
        parts = []
        for number in numbers:
            try:
                written = write(number, frame)
            except OSError as error:  # would block, or the peer has left
                self._dropped[type(error).__name__] += 1
                continue
            if written != size:
                parts.append((number, written))
        return parts

    async def _finish(self, number: int, stream: trio.SocketStream, rest: bytes) -> None:
        """Write the part that the socket did not take at once; then the number is ready again."""
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
                    await self._converse(stream, number)
                finally:
                    self._ready.remove(number)
                    self._behind.remove(number)
                    del self._streams[number]
        except (trio.BrokenResourceError, OSError, EOFError, ValueError, WebSocketException):
            pass  # the client has left, in one way or another

    async def _converse(self, stream: trio.SocketStream, number: int) -> None:
        reader = StreamReader()

        async def take(parser: Generator[None, None, _T]) -> _T:
            while True:
                try:
                    next(parser)
                except StopIteration as whole:
                    return cast("_T", whole.value)
                if not (chunk := await stream.receive_some()):
                    raise EOFError
                reader.feed_data(chunk)

        request = await take(Request.parse(reader.read_line))
        key = request.headers.get("Sec-WebSocket-Key")
        if key is None:
            return  # not a WebSocket
        os.write(number, _ANSWER % accept_key(key).encode())
        while True:
            frame = await take(Frame.parse(reader.read_exact, mask=True))
            if frame.opcode == Opcode.CLOSE:
                os.write(number, close_frame(1000, ""))
                return
            if frame.opcode == Opcode.TEXT and (channels := asked_channels(bytes(frame.data))):
                os.write(number, text_frame(acknowledgement(channels)))
                self._ready.add(number, channels)


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
