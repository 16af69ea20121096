"""The server as in production, in the test's own trio loop, and clients of other libraries."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.waiting import wait_until
from trio_odin.server import Server, serve
from trio_odin.settings.reading import read_settings

StartServer: TypeAlias = Callable[..., Awaitable[Server]]
# The test's own clients keep the same process busy, and other tests the machine.
_WITHOUT_GUARD = {
    "WS_CPU_REJECT_THRESHOLD": "0",
    "WS_CPU_PAUSE_THRESHOLD": "0",
    "WS_LAG_REJECT_MS": "0",
}


@pytest.fixture
async def start_server(nursery: trio.Nursery) -> AsyncIterator[StartServer]:
    """Start a server with some variables set, by default without load limits.

    At the end its counters are checked, and it is cut.
    """
    servers = []

    async def start(**variables: str) -> Server:
        settings = read_settings({"WS_ADDR": "127.0.0.1:0", **_WITHOUT_GUARD, **variables})
        server: Server = await nursery.start(serve, settings)
        servers.append(server)
        return server

    yield start
    for server in servers:
        check_balance(server)


async def wait_for_nats(server: Server) -> None:
    await wait_until(lambda: server.snapshot().nats.is_connected)


def url_of(server: Server) -> str:
    return f"ws://{server.addresses[0]}/ws"


@asynccontextmanager
async def client_of(server: Server, *channels: str) -> AsyncIterator[ClientConnection]:
    """A client of the `websockets` library, subscribed to `channels`."""
    async with connect(url_of(server)) as client:
        if channels:
            await client.send(json.dumps({"type": "subscribe", "channels": channels}))
            assert (await receive(client))["type"] == "subscription_ack"
        yield client


async def receive(client: ClientConnection, *, ignored: str = "upstream") -> dict[str, Any]:
    """The next message that is not of the `ignored` type.

    A client with notices learns once a second whether NATS is gone, so mostly that is chance.
    """
    message: dict[str, Any] = {"type": ignored}
    with trio.fail_after(60):
        while message["type"] == ignored:
            message = json.loads(await client.recv())
    return message


@attrs.frozen
class Ending:
    """How a server ended a connection: the close code and text, None without a close frame.

    `reconnect_in_ms` are the notices before it, `events` the other messages.
    """

    code: int | None
    text: str
    reconnect_in_ms: list[int]
    events: list[dict[str, Any]]


async def ending_of(client: ClientConnection) -> Ending:
    """Receive until the connection has ended."""
    messages: list[dict[str, Any]] = []
    received = None
    try:
        while True:
            messages.append(await receive(client))
    except ConnectionClosed as closed:
        received = closed.rcvd
    return Ending(
        None if received is None else received.code,
        "" if received is None else received.reason,
        [m["reconnect_in_ms"] for m in messages if m.get("type") == "server:draining"],
        [m for m in messages if m.get("type") != "server:draining"],
    )


def check_balance(server: Server) -> None:
    """Check that every event is accounted for."""
    snapshot = server.snapshot()
    assert snapshot.ledger.deliveries.imbalance() == 0
    assert snapshot.fan_out.connections or snapshot.fan_out.outbox_bytes == 0
    assert snapshot.ledger.publications.imbalance(snapshot.fan_out.inbound_waiting) == 0
