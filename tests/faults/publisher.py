"""A publisher of numbered events that records which of them NATS has taken."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence

import trio

from trio_odin.lab.fleet.events import Event, payload_of

CHANNELS = [f"T{number}.trade" for number in range(10)]

_ACK = re.compile(rb"MSG acks\.(\d+) 1 \d+\r\n(\{.*?\})\r\n")
_AGAIN_SECONDS = 0.02
_CONNECT = b'CONNECT {"verbose":false}\r\nSUB acks.* 1\r\n'


class Publisher:
    """Publishes on an open-loop schedule, through every outage; ticks without NATS are left out.

    Attributes:
        taken: the events that the stream has acknowledged, by number.
        is_paused: nothing is published while it is true.
        payload_bytes: of later events.
        unknown: events published that were not acknowledged, as when NATS is killed.
    """

    def __init__(
        self, port: int, rate: float, *, first: int = 1, others: Sequence[int] = ()
    ) -> None:
        """Publish to `port`, and to each of the `others` in turn if a node is lost."""
        self.taken: dict[int, Event] = {}
        self.is_paused = True
        self.payload_bytes = 200
        self._ports = itertools.cycle([port, *others])
        self._rate = rate
        self._number = first - 1
        self._sent: dict[int, Event] = {}
        self._turn = trio.StrictFIFOLock()

    @property
    def number(self) -> int:
        """The number of the last published event."""
        return self._number

    @property
    def unknown(self) -> int:
        return len(self._sent)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", next(self._ports)) as stream:
                    await stream.send_all(_CONNECT)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._take_acks, stream, nursery.cancel_scope)
                        await self._publish(stream)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # no NATS
            await trio.sleep(_AGAIN_SECONDS)

    async def _publish(self, stream: trio.SocketStream) -> None:
        due_ns = time.monotonic_ns()
        while True:
            due_ns = max(due_ns + int(1e9 / self._rate), time.monotonic_ns())
            await trio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            if not self.is_paused:
                await self._publish_one(stream, due_ns)

    async def _publish_one(self, stream: trio.SocketStream, due_ns: int) -> None:
        self._number += 1
        number = self._number
        event = Event(number, due_ns, CHANNELS[number % len(CHANNELS)])
        payload = payload_of(event, self.payload_bytes)
        self._sent[number] = event
        line = f"PUB odin.token.{event.channel} acks.{number} {len(payload)}\r\n"
        async with self._turn:
            await stream.send_all(line.encode() + payload + b"\r\n")

    async def _take_acks(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        buffer = b""
        async for chunk in stream:
            buffer += chunk
            end = 0
            for found in _ACK.finditer(buffer):
                end = found.end()
                event = self._sent.pop(int(found[1]), None)
                if event is not None and b'"seq":' in found[2]:
                    self.taken[event.number] = event
            if b"PING\r\n" in buffer[end:]:
                async with self._turn:
                    await stream.send_all(b"PONG\r\n")
                buffer = buffer.replace(b"PING\r\n", b"")
            buffer = buffer[end:]
        scope.cancel(reason="NATS has gone")
