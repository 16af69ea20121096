"""Publishes numbered events through every outage, and records the acknowledged ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import suppress

import trio

from tests.oracle.follower import now_ms
from tests.oracle.truth import Evidence, Sent

_ACK = re.compile(rb"MSG acks\.(\d+) 1 (?:\d+ )?\d+\r\n(\{.*?\})\r\n")
_CONNECT = b'CONNECT {"verbose":false,"protocol":1}\r\nSUB acks.* 1\r\n'
_AGAIN_SECONDS = 0.05
_SILENCE_SECONDS = 1.5
_BYTES = 200
_LARGE_BYTES = 10_000
_LARGE = 0.05  # share of the events that may be large
_ACKNOWLEDGED = 0.6  # share of events with an acknowledgement, the others are plain messages


class Publisher:
    """Publishes at a rate until cancelled; while there is no NATS, events are left out.

    Some channels are chatty, others quiet: each has a third of the previous one's events,
    down to one in a few seconds.
    """

    def __init__(
        self,
        evidence: Evidence,
        channels: list[str],
        rate: float,
        rng: random.Random,
        next_port: Callable[[], int],
    ) -> None:
        self.is_paused = False
        self._evidence = evidence
        self._channels = channels
        self._weights = [max(0.02, 0.7**rank) for rank in range(len(channels))]
        self._rate = rate
        self._rng = rng
        self._next_port = next_port
        self._number = 0
        self._turn = trio.StrictFIFOLock()

    async def run(self) -> None:
        """Publish, through one node after the other if one is lost."""
        while True:
            with suppress(OSError, trio.TooSlowError):
                with trio.fail_after(1):
                    stream = await trio.open_tcp_stream("127.0.0.1", self._next_port())
                try:
                    await self._serve(stream)
                finally:
                    await trio.aclose_forcefully(stream)
            await trio.sleep(_AGAIN_SECONDS)

    async def publish_one(self, channel: str) -> int | None:
        """Publish an event now and wait for its acknowledgement; its number, None if none came.

        It is for the end of a run and uses its own connection.
        """
        with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(1):
            async with await trio.open_tcp_stream("127.0.0.1", self._next_port()) as stream:
                await stream.send_all(_CONNECT)
                number = self._number + 1
                await self._publish(stream, channel, is_acknowledged=True)
                buffer = b""
                async for chunk in stream:
                    buffer += chunk
                    self._take_acks(buffer)
                    if number in self._evidence.acknowledged:
                        return number
        return None

    async def _serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(_CONNECT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, stream, nursery.cancel_scope)
            while True:
                await trio.sleep(self._rng.expovariate(self._rate))
                if self.is_paused:
                    continue
                channel = self._rng.choices(self._channels, self._weights)[0]
                is_acknowledged = self._rng.random() < _ACKNOWLEDGED
                try:
                    await self._publish(stream, channel, is_acknowledged=is_acknowledged)
                except trio.BrokenResourceError:
                    nursery.cancel_scope.cancel()

    async def _publish(
        self, stream: trio.SocketStream, channel: str, *, is_acknowledged: bool
    ) -> None:
        self._number += 1
        number = self._number
        is_large = self._rng.random() < _LARGE
        padding = "x" * self._rng.randrange(_LARGE_BYTES if is_large else _BYTES)
        payload = json.dumps({"n": number, "of": channel, "pad": padding}, separators=(",", ":"))
        self._evidence.sent[number] = Sent(channel, payload, now_ms())
        reply = f" acks.{number}" if is_acknowledged else ""
        line = f"PUB odin.token.{channel}{reply} {len(payload)}\r\n{payload}\r\n"
        async with self._turn:
            await stream.send_all(line.encode())

    async def _listen(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """Take acknowledgements; end the connection when it falls silent."""
        buffer = b""
        while True:
            chunk = b""
            with trio.move_on_after(_SILENCE_SECONDS), suppress(trio.BrokenResourceError):
                chunk = await stream.receive_some(65_536)
            if not chunk and not self.is_paused:
                scope.cancel()
                return
            buffer = self._take_acks(buffer + chunk)
            if b"PING\r\n" in buffer:
                buffer = buffer.replace(b"PING\r\n", b"")
                async with self._turn:
                    await stream.send_all(b"PONG\r\n")

    def _take_acks(self, buffer: bytes) -> bytes:
        end = 0
        for found in _ACK.finditer(buffer):
            end = found.end()
            content = json.loads(found[2])
            if "seq" in content:
                self._evidence.acknowledged[int(found[1])] = (content["seq"], now_ms())
        return buffer[end:]
