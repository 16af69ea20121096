"""What a program does with a feed: loops, subscriptions, errors and ends, on both libraries."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from subprocess import run

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.client.rig import Library, Place, recording
from tests.e2e.nats import nats_client
from tests.waiting import wait_until
from trio_odin.client import (
    ClientError,
    ClientWarning,
    Position,
    Refused,
    Subscription,
    aio,
    connect,
)
from trio_odin.client.driver import Driver
from trio_odin.server import Server

NOWHERE = "ws://127.0.0.1:1/ws"


class UserError(Exception):
    pass


def run_asyncio(main: object) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_an_error_of_the_block_comes_out_as_it_is(seconds: float) -> None:
    async def use() -> None:
        async with connect(NOWHERE, "BTC.trade"):
            await trio.sleep(seconds)
            raise UserError

    with pytest.raises(UserError):
        await use()


def test_an_error_of_the_block_comes_out_as_it_is_on_asyncio() -> None:
    async def main() -> None:
        async with aio.connect(NOWHERE, "BTC.trade"):
            await asyncio.sleep(0.05)
            raise UserError

    with pytest.raises(UserError):
        run_asyncio(main())


async def test_cancellation_ends_everything() -> None:
    with trio.move_on_after(0.1) as scope:
        async with connect(NOWHERE, "BTC.trade") as feed:
            async for _ in feed:
                pass
    assert scope.cancelled_caught


def test_cancellation_ends_everything_on_asyncio() -> None:
    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1), aio.connect(NOWHERE, "BTC.trade") as feed:
                async for _ in feed:
                    pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_asyncio(main())


async def test_loops_elsewhere_end_when_the_block_is_cancelled() -> None:
    ended: list[str] = []

    async def follow(subscription: Subscription) -> None:
        async for _ in subscription:
            pass
        ended.append("in order")

    with trio.fail_after(20):
        async with trio.open_nursery() as outer:
            with trio.CancelScope() as scope:
                async with connect(NOWHERE) as feed:
                    outer.start_soon(follow, feed.subscribe("BTC.trade"))
                    await wait_all_tasks_blocked()
                    scope.cancel(reason="the test")
                    await trio.sleep_forever()
            assert feed.state.name == "closed"
    assert ended == ["in order"]


def test_loops_elsewhere_end_when_the_block_is_cancelled_on_asyncio() -> None:
    async def follow(subscription: Subscription) -> str:
        async for _ in subscription:
            pass
        return "in order"

    async def main() -> None:
        begun: asyncio.Queue[asyncio.Task[str]] = asyncio.Queue()

        async def use() -> None:
            async with aio.connect(NOWHERE) as feed:
                begun.put_nowait(asyncio.create_task(follow(feed.subscribe("BTC.trade"))))
                await asyncio.Event().wait()

        block = asyncio.create_task(use())
        loop = await begun.get()
        await asyncio.sleep(0.05)
        block.cancel()
        async with asyncio.timeout(20):
            assert await loop == "in order"
            await asyncio.wait([block])
        assert block.cancelled()

    run_asyncio(main())


async def test_loops_elsewhere_end_when_the_client_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def fail(self: object) -> None:
        raise UserError

    async def follow(subscription: Subscription) -> None:
        async for _ in subscription:
            pass
        ended.append("in order")

    monkeypatch.setattr(Driver, "run", fail)
    with trio.fail_after(20):
        async with trio.open_nursery() as outer:
            with pytest.RaisesGroup(UserError):
                async with connect(NOWHERE) as feed:
                    outer.start_soon(follow, feed.subscribe("BTC.trade"))
                    await trio.sleep_forever()
    assert ended == ["in order"]


async def test_what_fails_is_not_hidden_by_a_nursery_of_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A nursery gives a lone Cancelled in a group."""

    async def fail(self: object) -> None:
        raise UserError

    async def use() -> None:
        async with connect(NOWHERE), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    monkeypatch.setattr(Driver, "run", fail)
    with pytest.RaisesGroup(UserError):
        await use()


async def test_loops_end_when_the_feed_is_closed() -> None:
    async with connect(NOWHERE) as feed, trio.open_nursery() as nursery:
        ended = []

        async def follow(subscription: Subscription) -> None:
            async for _ in subscription:
                pass
            ended.append(1)

        nursery.start_soon(follow, feed.subscribe("BTC.trade"))
        nursery.start_soon(follow, feed.subscribe(["*.trade", "ETH.>"], every_ms=100))
        await trio.sleep(0.05)
        await feed.aclose()
        async for _ in feed:
            pytest.fail("there was no event")
        await wait_until(lambda: len(ended) == 2)
        assert feed.state.name == "closed"
        with pytest.raises(ClientError, match="closed"):
            await feed.wait_live()
        assert [item async for item in feed.subscribe("BTC.trade").items()] == []


async def test_wrong_arguments_are_named() -> None:
    for arguments, sentence in (
        ({"channels": "BTC"}, "'BTC': a channel is"),
        ({"every_ms": -1}, "every_ms=-1: allowed is 0 or more, or None"),
        ({"queue": "none"}, "queue='none': allowed is one of newest, wait"),
        ({"url": []}, "no URL: at least one"),
        ({"after": Position("e", 1)}, "after=.* without channels: name them in connect"),
    ):
        with pytest.raises(ClientError, match=sentence):
            async with connect(**{"url": NOWHERE, **arguments}):  # type: ignore[arg-type]
                pass


async def test_a_loop_over_events_warns_of_a_refused_name() -> None:
    async with connect(NOWHERE) as feed:
        subscription = feed.subscribe("BTC.trade")
        subscription.put(Refused(channel="BTC.trade", code="FORBIDDEN_CHANNEL"), (0, None))

        async def follow() -> None:
            async for _ in subscription:
                pytest.fail("there was no event")

        with (
            trio.move_on_after(0.05),
            pytest.warns(ClientWarning, match="'BTC.trade': 'FORBIDDEN_CHANNEL'") as warned,
        ):
            await follow()
        assert warned[0].filename == __file__


def channels_of(server: Server) -> int:
    counts = server.snapshot().fan_out.subscription_counts
    return sum(counts)


@pytest.mark.e2e
async def test_subscriptions_share_a_connection(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving() as server,
        recording(library, place.url, "BTC.trade") as client,
    ):
        await client.until_live()
        assert client.feed is not None
        feed = client.feed
        subscriptions: list[Subscription] = []
        client.call(lambda: subscriptions.append(feed.subscribe("*.trade", snapshot=False)))
        await wait_until(lambda: subscriptions and channels_of(server) == 2)
        await nats.publish("odin.token.BTC.trade", b"1")
        await nats.publish("odin.token.ETH.trade", b"2")
        await nats.flush()
        await client.until_data(1)
        newest = feed.newest("BTC.trade")
        assert newest is not None
        assert newest.data == 1
        await wait_until(lambda: feed.newest("ETH.trade"))
        client.call(subscriptions[0].close)
        await wait_until(lambda: channels_of(server) == 1)
        assert server.snapshot().fan_out.connections == 1
    assert client.data == [1]


@pytest.mark.e2e
async def test_the_rate_of_a_feed_can_change(library: Library, nats_url: str) -> None:
    place = Place(nats_url)
    async with (
        nats_client(nats_url) as nats,
        place.serving(),
        recording(library, place.url, "BTC.trade", every_ms=None) as client,
    ):
        await client.until_live()
        for number in range(3):
            await nats.publish("odin.token.BTC.trade", str(number).encode())
        await nats.flush()
        await trio.sleep(0.3)
        assert not client.events
        assert client.feed is not None
        feed = client.feed
        client.call(lambda: feed.set_rate(0))
        await client.until_data(2)
    assert client.events[0].skipped == 2


@pytest.mark.parametrize(
    ("module", "absent"),
    [("trio_odin.client.aio", "trio"), ("trio_odin.client.on_trio", "websockets")],
)
def test_each_shell_loads_its_own_library_only(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
