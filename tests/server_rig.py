"""A server without sockets and without NATS: all of the nursery tree but its edges."""

from __future__ import annotations

import json
from typing import Any, cast

import trio
import trio.testing
from trio_websocket import WebSocketConnection, wrap_client_stream

from trio_odin.auth.authorize import Authorizer
from trio_odin.connection.connection import Connection
from trio_odin.connection.keepalive import PingWheel
from trio_odin.fanout.hub import Hub
from trio_odin.ledger.counters import Ledger
from trio_odin.listener.listener import Listener
from trio_odin.net.http import Request, Response
from trio_odin.overload.admission import Admission
from trio_odin.settings.reading import read_settings
from trio_odin.upstream.gaps import Mark
from trio_odin.upstream.nats_message import NatsMessage

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def echo(request: Request) -> Response:
    """Answer every request with its path."""
    return Response.text(200, f"{request.method} {request.path}")


class Rig:
    """A listener with its hub; `connect` gives a client over a stream in memory."""

    def __init__(self, nursery: trio.Nursery, **variables: str) -> None:
        self.settings = read_settings(variables)
        self.ledger = Ledger()
        self.hub: Hub[Connection] = Hub(self.settings, self.ledger)
        self.hub.note(Mark(None, None))
        self.authorizer = Authorizer(self.settings)
        self.wheel: PingWheel = PingWheel(
            interval_seconds=self.settings.ping_interval_seconds,
            deadline_seconds=self.settings.keepalive_seconds,
            why_ended=lambda connection: self.authorizer.why_ended(connection.session.grant),
        )
        self.admission = Admission(
            max_connections=self.settings.max_connections,
            cpu_reject_percent=self.settings.cpu_reject_percent,
            max_per_address=self.settings.max_connections_per_address,
        )
        self.listener = Listener(
            hub=self.hub,
            wheel=self.wheel,
            admission=self.admission,
            authorizer=self.authorizer,
            respond=echo,
            settings=self.settings,
        )
        self._nursery = nursery

    def open_stream(self) -> trio.StapledStream[Any, Any]:
        """A stream to the listener, as after a TCP connect."""
        client, server = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.listener.serve, server)
        return client

    async def connect(self) -> WebSocketConnection:
        stream = self.open_stream()
        # Annotated for sockets only, but any trio stream works.
        return await wrap_client_stream(self._nursery, cast("Any", stream), "localhost", "/ws")

    async def subscribe(self, *channels: str) -> WebSocketConnection:
        client = await self.connect()
        await client.send_message(json.dumps({"type": "subscribe", "channels": channels}))
        assert json.loads(await client.get_message())["type"] == "subscription_ack"
        return client

    def publish(self, channel: str, payload: bytes = b"1") -> None:
        self.ledger.publications.received += 1
        self.hub.publish(NatsMessage(f"odin.token.{channel}", payload, None, trio.current_time()))

    def check_balance(self) -> None:
        assert self.ledger.deliveries.imbalance() == 0
        assert self.ledger.publications.imbalance(0) == 0
        assert self.hub.members or self.hub.outbox_rules.budget.used_bytes == 0


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received
