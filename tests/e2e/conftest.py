"""The server as in production, in the test's own trio loop, and clients that are not ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from trio_odin.config import read_settings
from trio_odin.server.tree import Server, serve

StartServer: TypeAlias = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server(nursery: trio.Nursery) -> StartServer:
    """Start a server with some variables set; it is cut at the end of the test."""

    async def start(**variables: str) -> Server:
        settings = read_settings({"WS_ADDR": "127.0.0.1:0", **variables})
        server: Server = await nursery.start(serve, settings)
        return server

    return start


async def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def wait_for_nats(server: Server) -> None:
    await wait_until(lambda: server.snapshot().is_nats_connected)


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


async def receive(client: ClientConnection) -> dict[str, Any]:
    with trio.fail_after(10):
        message: dict[str, Any] = json.loads(await client.recv())
    return message


def check_balance(server: Server) -> None:
    """Nothing may be unaccounted for, ever."""
    snapshot = server.snapshot()
    assert snapshot.ledger.deliveries.imbalance() == 0
    assert snapshot.ledger.publications.imbalance(snapshot.feed_waiting) == 0
