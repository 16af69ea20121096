"""Rates with a real NATS server and a client library of others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import StartServer, client_of, receive, url_of, wait_for_nats
from tests.e2e.nats import nats_client
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


async def publish(url: str, *events: tuple[str, int]) -> None:
    async with nats_client(url) as publisher:
        for channel, number in events:
            await publisher.publish(f"odin.token.{channel}", b"%d" % number)
        await publisher.flush()


async def say(client: ClientConnection, *channels: str, **more: Any) -> list[dict[str, Any]]:
    """The messages up to the acknowledgement of a subscription."""
    await client.send(json.dumps({"type": "subscribe", "channels": channels, **more}))
    messages = [await receive(client)]
    while messages[-1]["type"] != "subscription_ack":
        messages.append(await receive(client))
    return messages


def values(batch: dict[str, Any]) -> dict[str, tuple[Any, int]]:
    """By channel: the newest value, and how many gave way to it."""
    assert batch["type"] == "price:batch"
    return {one["channel"]: (one["data"], one.get("skipped", 0)) for one in batch["events"]}


async def test_a_rate_gives_the_newest_of_each_channel_in_one_message(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with connect(url_of(server)) as client:
        (ack,) = await say(client, "A.x", "B.x", "C.x", every_ms=900)
        assert ack["every_ms"] == 1000
        await publish(nats_url, ("A.x", 1), ("B.x", 1), ("A.x", 2), ("A.x", 3))
        # The tick may fall between them.
        found: dict[str, int] = {}
        lacking = {"A.x": 3, "B.x": 1}
        seq = 0
        while any(lacking.values()):
            batch = await receive(client)
            assert batch["seq"] == seq + 1
            seq = batch["seq"]
            for channel, (value, skipped) in values(batch).items():
                lacking[channel] -= 1 + skipped
                found[channel] = value
        assert found == {"A.x": 3, "B.x": 1}
        assert lacking == {"A.x": 0, "B.x": 0}
        deliveries = server.ledger.deliveries
        assert deliveries.matched == 4
        assert deliveries.written + deliveries.skipped == 4


async def test_a_pause_is_silent_and_its_end_brings_the_newest(
    start_server: StartServer, nats_url: str
) -> None:
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with connect(url_of(server)) as client, client_of(server, "A.x") as other:
        (ack,) = await say(client, "A.x", every_ms=None)
        assert ack["every_ms"] is None
        await publish(nats_url, *[("A.x", number) for number in range(1, 11)])
        assert [(await receive(other))["data"] for _ in range(10)] == list(range(1, 11))
        await trio.sleep(0.2)
        batch, ack = await say(client, "A.x", every_ms=0)
        assert values(batch) == {"A.x": (10, 9)}
        assert (batch["seq"], ack["every_ms"]) == (1, 0)
        await publish(nats_url, ("A.x", 11))
        event = await receive(client)
        assert (event["seq"], event["data"], event["prev"]) == (
            2,
            11,
            batch["events"][0]["offset"],
        )


async def test_a_client_that_does_not_read_gets_a_merged_batch_later(
    start_server: StartServer, nats_url: str
) -> None:
    """It is not evicted for falling behind, and what it skipped is counted."""
    server = await start_server(NATS_URL=nats_url, WS_MIN_EVERY_MS="50", WS_OUTBOX_CAPACITY="1")
    await wait_for_nats(server)
    padding, published = "x" * 500_000, 60
    async with connect(url_of(server), max_size=None, max_queue=1) as client:
        await say(client, "A.x", every_ms=50)
        async with nats_client(nats_url) as publisher:
            for number in range(1, published + 1):
                payload = json.dumps([number, padding]).encode()
                await publisher.publish("odin.token.A.x", payload)
                await publisher.flush()
                await trio.sleep(0.05)
        deliveries = server.ledger.deliveries
        await wait_until(lambda: deliveries.queued == 1)
        batches = deliveries.batches
        assert batches < published
        received, most, last = 0, 0, 0
        while received < published:
            (last, _), skipped = values(await receive(client))["A.x"]
            received += 1 + skipped
            most = max(most, skipped)
    assert (received, last) == (published, published)
    assert most > 3, "the batches of several ticks were merged"
    assert server.ledger.traffic.closed["peer_closed"] == 1
