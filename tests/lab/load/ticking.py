"""A server of the `websockets` library with rates and compressed frames, and its publisher.

Each connection is rendered by itself, from the list of what was published: nothing is shared.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any

import attrs
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.lab.fleet.wire import DICTIONARY, Sent, batch, batch_tail, z1_payload
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.publisher import PublisherControl

TICK_SECONDS = 0.05
_ID = sha256(DICTIONARY).hexdigest()[:16]
_TOLD = {
    "type": "dictionary", "id": _ID, "bytes": len(DICTIONARY), "url": f"/dictionary/{_ID}",
}  # fmt: skip
Change = Callable[[Sent], Sent]


class Market:
    """What was published, by channel, in order."""

    def __init__(self, channels: list[str]) -> None:
        self.published: list[tuple[str, int]] = []
        self.of_channel: dict[str, list[Sent]] = {channel: [] for channel in channels}
        self.is_publishing = threading.Event()
        self.has_ended = threading.Event()

    def run(self) -> None:
        channels = list(self.of_channel)
        while not self.has_ended.wait(0.002):
            if not self.is_publishing.is_set():
                continue
            number = len(self.published) + 1
            channel = channels[number % len(channels)]
            before = self.of_channel[channel]
            prev = before[-1].number if before else 0
            due_ms = time.monotonic_ns() // 1_000_000
            self.published.append((channel, number))
            before.append(Sent(number, channel, prev, due_ms=due_ms))


class Publisher(PublisherControl):
    """Publishes in the market during the hold, and knows all events."""

    def __init__(self, plan: LoadPlan, market: Market) -> None:
        super().__init__(plan)
        self._market = market
        self.events = market.published

    @property
    def is_ours(self) -> bool:
        return True

    async def start(self) -> None:
        self._market.is_publishing.set()

    async def stop(self) -> None:
        self._market.is_publishing.clear()
        self.published = len(self._market.published)


@attrs.frozen
class _Server:
    market: Market
    encoding: str
    change: Change

    def handle(self, client: ServerConnection) -> None:
        if self.encoding == "z1":
            client.send(json.dumps(_TOLD, separators=(",", ":")))
        asked: dict[str, Any] = json.loads(client.recv())
        channels = asked["channels"]
        sent = {channel: len(self.market.of_channel[channel]) for channel in channels}
        ack = {"type": "subscription_ack", "subscribed": channels, "count": len(channels)}
        client.send(json.dumps(ack | {"every_ms": asked["every_ms"]}))
        seq = 0
        with suppress(ConnectionClosed):
            while not self.market.has_ended.is_set():
                if events := self._tick(sent):
                    seq += 1
                    self._send(client, seq, events)
                with suppress(TimeoutError):
                    client.recv(timeout=TICK_SECONDS)

    def _tick(self, sent: dict[str, int]) -> list[Sent]:
        found = []
        for channel, count in sent.items():
            of_channel = self.market.of_channel[channel]
            sent[channel] = now = len(of_channel)
            if now > count:
                newest = attrs.evolve(of_channel[now - 1], skipped=now - count - 1)
                found.append(self.change(newest))
        return found

    def _send(self, client: ServerConnection, seq: int, events: list[Sent]) -> None:
        if self.encoding == "z1":
            client.send(z1_payload(seq, batch_tail(events)))
        else:
            client.send(batch(seq, *events).decode())

    def page(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != _TOLD["url"]:
            return None
        return Response(200, "OK", Headers({"Content-Length": str(len(DICTIONARY))}), DICTIONARY)


@contextmanager
def ticking(
    channels: list[str], encoding: str, change: Change = lambda sent: sent
) -> Iterator[tuple[str, Market]]:
    """The address of a server, and its market. `change` makes its events faulty."""
    market = Market(channels)
    made = _Server(market, encoding, change)
    with serve(
        made.handle,
        "127.0.0.1",
        0,
        process_request=made.page,
        compression="deflate" if encoding == "deflate" else None,
        subprotocols=[Subprotocol("trio-odin.z1")] if encoding == "z1" else None,
    ) as server:
        threads = [threading.Thread(target=run) for run in (server.serve_forever, market.run)]
        for thread in threads:
            thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws", market
        finally:
            market.has_ended.set()
            server.shutdown()
            for thread in threads:
                thread.join()
