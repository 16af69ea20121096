"""A program that takes its events too slowly: what waits, what is skipped, what is not read."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.client.rig import Library, Place, recording
from tests.e2e.nats import NatsClient, nats_client
from tests.waiting import wait_until
from trio_odin.client import Options

pytestmark = pytest.mark.e2e

# Impatient: a client that waited for an answer would have given up long before.
IMPATIENT = Options(heartbeat_ms=100, pong_ms=300, answer_ms=2_000)
# More than a queue takes, and less than the buffers of the kernel.
EVENTS = 1_500


async def publish(nats: NatsClient, channel: str, numbers: range) -> None:
    for number in numbers:
        await nats.publish(f"odin.token.{channel}", str(number).encode())
    await nats.flush()


async def test_of_each_channel_the_newest_event_waits(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving() as server,
        recording(library, place.url, "*.trade", compression=False) as client,
    ):
        await client.until_live()
        await publish(nats, "BTC.trade", range(1))
        await client.until_data(0)
        client.is_paused = True
        await publish(nats, "BTC.trade", range(1, 2))
        await client.until_data(0, 1)
        await publish(nats, "BTC.trade", range(2, 300))
        await publish(nats, "ETH.trade", range(200))
        await wait_until(lambda: server.ledger.deliveries.written == 500)
        assert client.feed is not None
        feed = client.feed
        await wait_until(lambda: getattr(feed.newest("ETH.trade"), "data", None) == 199)
        client.is_paused = False
        await wait_until(lambda: len(client.events) == 4)
    assert [(event.channel, event.data, event.skipped) for event in client.events[2:]] == [
        ("BTC.trade", 299, 297),
        ("ETH.trade", 199, 199),
    ]
    assert not client.gaps


async def test_reading_waits_and_nothing_is_lost(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving(WS_OUTBOX_CAPACITY="5000") as server,
        recording(
            library,
            place.url,
            "BTC.trade",
            compression=False,
            queue="wait",
            options=IMPATIENT,
        ) as client,
    ):
        await client.until_live()
        client.is_paused = True
        await publish(nats, "BTC.trade", range(EVENTS))
        await wait_until(lambda: server.ledger.deliveries.written == EVENTS)
        assert client.feed is not None
        before = -1
        while (size := client.feed.bytes_received) != before:
            before = size
            await trio.sleep(1)  # longer than the client would wait for a pong
        assert size < EVENTS * 100, "it has stopped reading"
        now = client.feed.now_ms()
        await trio.sleep(0.1)
        assert client.feed.now_ms() == now, "and its clock stands still"
        client.is_paused = False
        await wait_until(lambda: len(client.events) == EVENTS)
        assert client.data == [*range(EVENTS)]
        assert {state.name for state in client.states} <= {"connecting", "live"}
        assert not client.gaps
        await publish(nats, "BTC.trade", range(EVENTS, EVENTS + 1))
        await client.until_data(EVENTS)


async def test_a_subscription_that_is_closed_lets_the_others_go_on(
    library: Library, nats_url: str
) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving(WS_OUTBOX_CAPACITY="5000"),
        recording(library, place.url, "ETH.trade", compression=False) as client,
    ):
        await client.until_live()
        assert client.feed is not None
        # Nobody takes its events.
        subscriptions = []
        subscribe = partial(client.feed.subscribe, "BTC.trade", queue="wait")
        client.call(lambda: subscriptions.append(subscribe()))
        await client.until_live(times=1)
        await publish(nats, "BTC.trade", range(EVENTS))
        await publish(nats, "ETH.trade", range(1))
        await trio.sleep(0.3)
        assert not client.events
        client.call(subscriptions[0].close)
        await client.until_data(0)
