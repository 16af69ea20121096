"""A program that takes its events too slowly: what waits, what is skipped, what is not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import trio

from tests.client.rig import Library, Place, recording
from tests.e2e.nats import NatsClient, nats_client
from tests.waiting import wait_until
from trio_odin.client import ClientError, Options, aio, on_trio, queues

pytestmark = pytest.mark.e2e

# Impatient: a client that waited for an answer would have given up long before.
IMPATIENT = Options(heartbeat_ms=100, pong_ms=300, answer_ms=2_000)
# More than a queue takes, and less than the buffers of the kernel.
EVENTS = 1_500
# As many as a server gives to one command: they fill a queue.
FIRST_VALUES = 1_000


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


async def run_client(library: Library, main: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run a program that gets the `connect` of the library, on asyncio in a thread."""
    if library == "trio":
        return await main(on_trio.connect)

    def run() -> Any:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(main(aio.connect))

    return await trio.to_thread.run_sync(run)


async def publish_to_many(nats: NatsClient, count: int) -> None:
    for number in range(count):
        await nats.publish(f"odin.token.T{number}.trade", str(number).encode())
    await nats.flush()


async def test_first_values_that_fill_a_queue_are_waited_for(
    library: Library, nats_url: str
) -> None:
    """Nobody takes them before `wait_live` has returned."""
    place = Place(nats_url)

    async def main(connect: Any) -> list[int]:
        async with connect(place.url, "*.trade", queue="wait") as feed:
            await feed.wait_live()
            found: list[int] = []
            async for event in feed:
                found.append(event.data)
                if len(found) == FIRST_VALUES:
                    break
            return found

    async with nats_client(nats_url) as nats, place.serving() as server:
        await publish_to_many(nats, EVENTS)
        await wait_until(lambda: server.ledger.publications.received == EVENTS)
        with trio.fail_after(30):
            found = await run_client(library, main)
    assert len({*found}) == FIRST_VALUES


async def test_waiting_for_first_values_has_an_end(
    library: Library, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_FULL_FROM", 100)
    monkeypatch.setattr(queues, "_CROWDED_FROM", FIRST_VALUES - 100)
    place = Place(nats_url)

    async def main(connect: Any) -> int:
        async with connect(place.url, "*.trade", queue="wait") as feed:
            with pytest.raises(ClientError, match="too much waits to be taken"):
                await feed.wait_live()
            return len([await anext(aiter(feed)) for _ in range(FIRST_VALUES)])

    async with nats_client(nats_url) as nats, place.serving() as server:
        await publish_to_many(nats, EVENTS)
        await wait_until(lambda: server.ledger.publications.received == EVENTS)
        with trio.fail_after(30):
            assert await run_client(library, main) == FIRST_VALUES
