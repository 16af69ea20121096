from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.nats import nats_client

pytestmark = pytest.mark.e2e


async def subscribe(client: ClientConnection, channel: str) -> None:
    await client.send(json.dumps({"type": "subscribe", "channels": [channel]}))
    assert await receive(client) == {"type": "subscription_ack", "subscribed": [channel]}


async def receive(client: ClientConnection) -> dict[str, Any]:
    with trio.fail_after(5):
        message: dict[str, Any] = json.loads(await client.recv())
    return message


async def start_peer(name: str, nats_url: str, nursery: trio.Nursery) -> tuple[trio.Process, str]:
    module = f"trio_odin.lab.bench.peers.{name}"
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            [sys.executable, "-m", module, "--nats", nats_url],
            stdout=subprocess.PIPE,
            check=False,
        )
    )
    assert process.stdout is not None
    with trio.fail_after(10):
        line = (await process.stdout.receive_some()).decode()
    assert line.startswith("listening on 127.0.0.1:")
    return process, f"ws://{line.split()[-1]}/ws"


@pytest.mark.parametrize("name", ["websockets_broadcast", "trio_websocket_plain", "send_floor"])
async def test_clients_of_a_peer_get_their_channel_and_it_ends_in_order(
    name: str, nats_url: str, nursery: trio.Nursery
) -> None:
    process, url = await start_peer(name, nats_url, nursery)
    async with connect(url) as one, connect(url) as two, nats_client(nats_url) as broker:
        await subscribe(one, "BTC.trade")
        await subscribe(two, "ETH.trade")
        for number in range(3):
            for token in ("BTC", "ETH", "SOL"):
                await broker.publish(f"odin.token.{token}.trade", b'{"n": %d}' % number)
        for number in range(3):
            assert await receive(one) == {"channel": "BTC.trade", "data": {"n": number}}
            assert await receive(two) == {"channel": "ETH.trade", "data": {"n": number}}
        await two.aclose()
        assert two.close_code == 1000
        await broker.publish("odin.token.ETH.trade", b"{}")
        await broker.publish("odin.token.BTC.trade", b'"a text of %b bytes"' % (b"0" * 200))
        assert (await receive(one))["data"].startswith("a text of 000")
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(5):
            assert await process.wait() == 0
