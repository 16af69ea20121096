from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import attrs
import trio
import trio.testing

from trio_odin.connection.keepalive import PingWheel
from trio_odin.ledger.reasons import CloseReason


@attrs.define(eq=False)
class FakeOutbound:
    heard_at: float = 0.0
    pinged_at: list[float] = attrs.field(factory=list)

    def ping(self) -> None:
        self.pinged_at.append(trio.current_time())


@attrs.define(eq=False)
class FakeConnection:
    outbound: FakeOutbound
    reason: CloseReason | None = None

    def evict(self, reason: CloseReason) -> None:
        self.reason = reason


def connection() -> Any:
    return FakeConnection(FakeOutbound(heard_at=trio.current_time()))


async def test_every_connection_is_pinged_once_an_interval(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    wheel = PingWheel(interval_seconds=27, deadline_seconds=1000)
    nursery.start_soon(wheel.run)
    pinged = connection()
    wheel.add(pinged)
    await trio.sleep(27 * 4 + 0.1)
    times = pinged.outbound.pinged_at
    assert len(times) == 4
    assert {round(b - a, 6) for a, b in pairwise(times)} == {27}


async def test_an_interval_of_a_day_costs_no_more_memory_than_minutes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    tracemalloc.start()
    try:
        wheel = PingWheel(interval_seconds=86_400, deadline_seconds=10**6)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    nursery.start_soon(wheel.run)
    pinged = connection()
    wheel.add(pinged)
    await trio.sleep(86_400 * 2 + 0.5)
    assert len(pinged.outbound.pinged_at) == 2


async def test_connections_that_came_at_once_are_not_pinged_at_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    wheel = PingWheel(interval_seconds=27, deadline_seconds=1000)
    nursery.start_soon(wheel.run)
    many = [connection() for _ in range(500)]
    for one in many:
        nursery.start_soon(_held, wheel, one)
    await trio.sleep(27.5)
    moments = {one.outbound.pinged_at[0] for one in many}
    assert len(moments) > 90  # of 108 steps, with 500 connections
    nursery.cancel_scope.cancel(reason="the test is over")


async def _held(wheel: PingWheel, one: Any) -> None:
    wheel.add(one)
    await trio.sleep_forever()


async def test_silence_past_the_deadline_evicts_and_never_before(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    wheel = PingWheel(interval_seconds=27, deadline_seconds=60)
    nursery.start_soon(wheel.run)
    silent = connection()
    wheel.add(silent)
    await trio.sleep(60)
    assert silent.reason is None
    await trio.sleep(27 + 1)
    assert silent.reason is CloseReason.KEEPALIVE_TIMEOUT


async def test_any_sign_of_life_counts(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    wheel = PingWheel(interval_seconds=27, deadline_seconds=60)
    nursery.start_soon(wheel.run)
    alive = connection()
    wheel.add(alive)
    for _ in range(20):
        await trio.sleep(30)
        alive.outbound.heard_at = trio.current_time()
    assert alive.reason is None


async def test_a_closed_connection_is_not_pinged(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    wheel = PingWheel(interval_seconds=2, deadline_seconds=60)
    nursery.start_soon(wheel.run)
    gone = connection()
    wheel.add(gone)
    wheel.remove(gone)
    await trio.sleep(10)
    assert gone.outbound.pinged_at == []


async def test_an_expired_connection_ends_at_its_next_ping_without_one(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    objections: dict[Any, CloseReason] = {}
    wheel = PingWheel(interval_seconds=27, deadline_seconds=1000, why_ended=objections.get)
    nursery.start_soon(wheel.run)
    welcome, unwelcome = connection(), connection()
    wheel.add(welcome)
    wheel.add(unwelcome)
    await trio.sleep(27.6)  # between two spokes
    assert unwelcome.reason is None
    pings = len(unwelcome.outbound.pinged_at), len(welcome.outbound.pinged_at)
    objections[unwelcome] = CloseReason.TOKEN_EXPIRED
    await trio.sleep(27)
    assert unwelcome.reason is CloseReason.TOKEN_EXPIRED
    assert welcome.reason is None
    assert len(unwelcome.outbound.pinged_at) == pings[0]
    assert len(welcome.outbound.pinged_at) == pings[1] + 1
