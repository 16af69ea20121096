"""Who is followed by a trace, and that looking for them lets all other tasks have a turn."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing

from trio_odin.admin.inspector import Inspector
from trio_odin.admin.questions import Frames, NextFrames, StartTrace, StopTrace, TraceStarted
from trio_odin.admin.tracing import CONNECTIONS_MAX, Tap
from trio_odin.fanout.registry import Registry
from trio_odin.wire.rates import EVERY_EVENT, Rate


@attrs.define(eq=False)
class Socket:
    tap: Tap | None = None

    def untapped_write(self, file: int, data: bytes | memoryview) -> int:
        raise AssertionError

    def follow(self, tap: Tap | None) -> bool:
        self.tap = tap
        return True


@attrs.define(eq=False)
class Outbound:
    socket: Socket = attrs.field(factory=Socket)
    is_torn: bool = False


@attrs.define(eq=False)
class Member:
    number: int
    outbound: Outbound = attrs.field(factory=Outbound)


@attrs.define
class Hub:
    """As much of a hub as a trace needs."""

    registry: Registry[Any] = attrs.field(factory=Registry)
    members: dict[Member, None] = attrs.field(factory=dict)

    def connect(self, name: str, rate: Rate = EVERY_EVENT) -> Member:
        member = Member(len(self.members) + 1)
        self.members[member] = None
        if rate == EVERY_EVENT:
            self.registry.subscribe(member.outbound, [name])
        else:
            self.registry.set_rate(member.outbound, [name], rate)
        return member


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def inspector(hub: Hub) -> Inspector:
    return Inspector(cast("Any", hub))


async def start(inspector: Inspector, channel: str) -> int:
    started = await inspector.answer(StartTrace(channel=channel))
    assert isinstance(started, TraceStarted)
    return started.trace


def is_followed(member: Member) -> bool:
    return member.outbound.socket.tap is not None


@pytest.mark.parametrize("rate", [EVERY_EVENT, 1000, None])
@pytest.mark.parametrize("name", ["BTC.trade", "BTC.*", "*.trade", ">"])
async def test_a_channel_is_followed_for_whoever_gets_it(
    hub: Hub, inspector: Inspector, name: str, rate: Rate
) -> None:
    other, wanted = hub.connect("ETH.social", rate), hub.connect(name, rate)
    trace = await start(inspector, "BTC.trade")
    assert (is_followed(other), is_followed(wanted)) == (False, True)
    await inspector.answer(StopTrace(trace=trace))
    assert not is_followed(wanted)


async def test_each_trace_finds_those_that_come_later(
    hub: Hub, inspector: Inspector, autojump_clock: trio.testing.MockClock
) -> None:
    traces = [await start(inspector, name) for name in ("BTC.trade", "ETH.trade")]
    late = [hub.connect(name) for name in ("BTC.trade", "ETH.trade")]
    await trio.sleep(3)
    for trace in traces:
        assert isinstance(await inspector.answer(NextFrames(trace=trace)), Frames)
    assert list(map(is_followed, late)) == [True, True]


async def test_no_more_connections_are_followed_than_may_be(hub: Hub, inspector: Inspector) -> None:
    members = [hub.connect("BTC.trade") for _ in range(CONNECTIONS_MAX + 5)]
    await start(inspector, "BTC.trade")
    assert sum(map(is_followed, members)) == CONNECTIONS_MAX


async def test_while_connections_are_looked_for_others_have_a_turn(
    hub: Hub, inspector: Inspector, nursery: trio.Nursery
) -> None:
    for _ in range(20_000):
        hub.connect("ETH.trade", 1000)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(take_turns)
    await trio.lowlevel.checkpoint()
    before = turns
    await start(inspector, "BTC.trade")
    assert turns - before >= 2
    nursery.cancel_scope.cancel()


async def test_a_trace_that_ends_meanwhile_follows_nobody(
    hub: Hub, inspector: Inspector, nursery: trio.Nursery
) -> None:
    for _ in range(20_000):
        hub.connect("ETH.trade", 1000)
    wanted = hub.connect("BTC.trade")
    nursery.start_soon(start, inspector, "BTC.trade")
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    await inspector.answer(StopTrace(trace=1))
    await trio.testing.wait_all_tasks_blocked()
    assert not is_followed(wanted)
