"""Rates with a real NATS server and a client library of others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from websockets.trio.client import ClientConnection, connect

from tests.e2e.conftest import (
    StartServer,
    client_of,
    ending_of,
    receive,
    url_of,
    wait_for_nats,
)
from tests.e2e.nats import nats_client, running_nats
from tests.e2e.test_positions import FILE_STREAM
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


@attrs.define
class Tally:
    """What came of each channel: the newest value, and how many events, skipped ones included."""

    newest: dict[str, int] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(factory=Counter)

    def take(self, *batches: dict[str, Any]) -> None:
        for batch in batches:
            for channel, (value, skipped) in values(batch).items():
                self.newest[channel] = value
                self.counts[channel] += 1 + skipped


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


async def test_a_drain_sends_what_is_due_before_it_closes(
    start_server: StartServer, nats_url: str
) -> None:
    """It does not wait for the ticks, and ends no pause."""
    server = await start_server(NATS_URL=nats_url)
    await wait_for_nats(server)
    async with connect(url_of(server)) as client:
        await say(client, "A.x", every_ms=60_000)
        await say(client, "B.x", every_ms=30_000)
        await say(client, "C.x", every_ms=None)
        await publish(nats_url, ("A.x", 1), ("B.x", 1), ("C.x", 1), ("A.x", 2), ("A.x", 3))
        await wait_until(lambda: server.ledger.publications.fanned_out == 5)
        server.drain()
        ending = await ending_of(client)
    assert (ending.code, len(ending.reconnect_in_ms)) == (1001, 1)
    tally = Tally()
    tally.take(*ending.events)  # mostly one, but a tick may have come first
    assert tally.newest == {"A.x": 3, "B.x": 1}
    assert tally.counts == {"A.x": 3, "B.x": 1}
    deliveries = server.ledger.deliveries
    assert (deliveries.matched, deliveries.written, deliveries.skipped) == (4, 2, 2)


async def test_a_restart_of_nats_loses_nothing_at_a_rate(
    start_server: StartServer, tmp_path: Path
) -> None:
    """What waits for its tick or for the end of a pause waits over the restart, too."""
    with running_nats(tmp_path) as nats:
        async with nats_client(nats.url) as operator:
            await operator.request("$JS.API.STREAM.CREATE.ODIN_TOKENS", FILE_STREAM)
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with connect(url_of(server)) as client:
            await say(client, "A.x", every_ms=100, notices=True)
            await say(client, "B.x", every_ms=60_000)
            await say(client, "C.x", every_ms=None)
            await publish(nats.url, *[("A.x", number) for number in range(1, 11)])
            await publish(nats.url, ("B.x", 1), ("C.x", 1), ("B.x", 2))
            await wait_until(lambda: server.ledger.publications.fanned_out == 13)
            nats.stop()
            nats.start()
            await publish(nats.url, *[("A.x", number) for number in range(11, 21)])
            await publish(nats.url, ("B.x", 3), ("C.x", 2))
            tally = Tally()
            while tally.newest.get("A.x") != 20:
                tally.take(await receive(client))
            await wait_until(lambda: server.ledger.publications.fanned_out == 25)
            *due, ack = await say(client, "B.x", "C.x", every_ms=0)
            tally.take(*due)
            assert tally.newest == {"A.x": 20, "B.x": 3, "C.x": 2}
            assert tally.counts == {"A.x": 20, "B.x": 3, "C.x": 2}
            assert ack["offset"] == 25
            assert due[-1]["seq"] < 25


async def test_what_is_due_of_an_old_stream_comes_without_its_offset(
    start_server: StartServer, tmp_path: Path
) -> None:
    with running_nats(tmp_path) as nats:
        server = await start_server(NATS_URL=nats.url)
        await wait_for_nats(server)
        async with connect(url_of(server)) as client:
            (ack,) = await say(client, "A.x", every_ms=None, notices=True)
            await publish(nats.url, ("A.x", 1), ("A.x", 2))
            await wait_until(lambda: server.ledger.publications.fanned_out == 2)
            nats.stop()  # the stream is in memory
            nats.start()
            gap = await receive(client)
            assert (gap["type"], gap["reason"]) == ("gap", "stream")
            assert gap["epoch"] != ack["epoch"]
            due, _ = await say(client, "A.x", every_ms=0)
            (event,) = due["events"]
            assert (event["data"], event["skipped"]) == (2, 1)
            assert "offset" not in event
            await publish(nats.url, ("A.x", 3))
            newer = await receive(client)
            assert (newer["data"], newer["offset"]) == (3, 1)
