from __future__ import annotations

import tracemalloc

import attrs
import pytest
import trio
import trio.testing

from trio_odin.config import Settings, read_settings
from trio_odin.core.backpressure import OutboxRules
from trio_odin.core.closing import CloseReason
from trio_odin.core.history import History
from trio_odin.core.ledger import Invalid, Ledger, Shed
from trio_odin.core.publication import NatsMessage, Publication
from trio_odin.server.hub import Hub
from trio_odin.server.outlet import Outlet


@attrs.define(eq=False)
class Recorder:
    """An outlet that takes everything."""

    frames: list[bytes] = attrs.field(factory=list)
    deferred: list[bytes] = attrs.field(factory=list)
    writes: int = 0
    seq: int = 0

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        self.seq += 1
        frame = frames.setdefault(self.seq, publication.frame(self.seq))
        self.frames.append(frame)
        self.writes += 1
        return len(frame)

    def defer(self, publication: Publication) -> bool:
        self.seq += 1
        self.deferred.append(publication.frame(self.seq))
        return len(self.deferred) == 1

    def flush(self) -> None:
        self.frames += self.deferred
        self.deferred.clear()
        self.writes += 1


@attrs.define(eq=False)
class FakeMember:
    outlet: Recorder = attrs.field(factory=Recorder)


class SlowMember(FakeMember):
    """Each of whose writes takes a millisecond."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        super().__init__()
        self.outlet = _SlowRecorder(clock=clock)


@attrs.define(eq=False)
class _SlowRecorder(Recorder):
    clock: trio.testing.MockClock | None = None

    def flush(self) -> None:
        super().flush()
        assert self.clock is not None
        self.clock.jump(0.001)


def message(subject: str, payload: bytes = b"1") -> NatsMessage:
    return NatsMessage(subject, payload, 7, trio.current_time())


@pytest.fixture
async def hub(settings: Settings) -> Hub[FakeMember]:
    return Hub(settings, Ledger())


async def test_only_the_subscribers_of_the_channel_get_the_event(hub: Hub[FakeMember]) -> None:
    both, one, none = FakeMember(), FakeMember(), FakeMember()
    hub.join(both)
    hub.join(one)
    hub.join(none)
    hub.registry.subscribe(both.outlet, ["BTC.trade", "ETH.trade"])
    hub.registry.subscribe(one.outlet, ["ETH.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    hub.publish(message("odin.token.ETH.trade"))
    hub.publish(message("odin.token.BTC.liquidity"))
    assert [len(m.outlet.frames) for m in (both, one, none)] == [2, 1, 0]
    assert hub.ledger.publications.fanned_out == 2
    assert hub.ledger.publications.unmatched == 1
    assert hub.ledger.deliveries.matched == hub.ledger.deliveries.written == 3


async def test_without_filtering_everyone_gets_everything() -> None:
    settings = read_settings({"ENABLE_SUBSCRIPTION_FILTERING": "false"})
    hub: Hub[FakeMember] = Hub(settings, Ledger())
    members = [FakeMember(), FakeMember()]
    hub.join(members[0])
    hub.join(members[1])
    hub.registry.subscribe(members[0].outlet, ["BTC.trade"])
    hub.publish(message("odin.token.SOL.social"))
    assert [len(m.outlet.frames) for m in members] == [1, 1]


async def test_each_connection_counts_its_own_seq(hub: Hub[FakeMember]) -> None:
    early, late = FakeMember(), FakeMember()
    hub.join(early)
    hub.join(late)
    hub.registry.subscribe(early.outlet, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    hub.registry.subscribe(late.outlet, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    assert b'"seq":2,' in early.outlet.frames[1]
    assert b'"seq":1,' in late.outlet.frames[0]


async def test_connections_at_the_same_seq_share_the_bytes(hub: Hub[FakeMember]) -> None:
    first, second = FakeMember(), FakeMember()
    hub.join(first)
    hub.join(second)
    hub.registry.subscribe(first.outlet, ["BTC.trade"])
    hub.registry.subscribe(second.outlet, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    assert first.outlet.frames[0] is second.outlet.frames[0]


async def test_what_is_no_event_is_counted_by_reason(hub: Hub[FakeMember]) -> None:
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade"])
    hub.publish(message("odin.token.BTC"))
    hub.publish(message("odin.token.B/C.trade"))
    hub.publish(message("odin.token.BTC.trade", b"{nonsense"))
    hub.publish(message("odin.token.BTC.trade.further.parts"))
    assert hub.ledger.publications.invalid == {Invalid.SUBJECT: 2, Invalid.PAYLOAD: 1}
    assert len(member.outlet.frames) == 1


async def test_a_rate_of_fan_outs_can_be_set(mock_clock: trio.testing.MockClock) -> None:
    hub: Hub[FakeMember] = Hub(read_settings({"WS_MAX_BROADCAST_RATE": "10"}), Ledger())
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade"])
    for _ in range(25):
        hub.publish(message("odin.token.BTC.trade"))
    mock_clock.jump(0.5)
    for _ in range(25):
        hub.publish(message("odin.token.BTC.trade"))
    assert len(member.outlet.frames) == 10 + 5
    assert hub.ledger.publications.shed == {Shed.BROADCAST_RATE: 35}


async def test_a_fan_out_is_one_step_for_the_scheduler(hub: Hub[FakeMember]) -> None:
    members = [FakeMember() for _ in range(50)]
    for member in members:
        hub.registry.subscribe(member.outlet, ["BTC.trade"])
    with trio.testing.assert_no_checkpoints():
        hub.publish(message("odin.token.BTC.trade"))
    assert all(member.outlet.frames for member in members)


async def test_who_leaves_has_no_subscription_left(hub: Hub[FakeMember]) -> None:
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade"])
    hub.leave(member, CloseReason.PEER_GONE)
    assert not hub.members
    assert hub.registry.channel_count() == 0
    assert hub.ledger.traffic.closed == {"peer_gone": 1}


async def test_the_hub_ends_when_the_feed_does_and_loses_nothing_in_it(
    hub: Hub[FakeMember],
) -> None:
    feed_send, feed_receive = trio.open_memory_channel[NatsMessage](10)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade"])
    for _ in range(10):
        feed_send.send_nowait(message("odin.token.BTC.trade"))
    feed_send.close()
    with trio.fail_after(1):
        await hub.run(feed_receive)
    assert len(member.outlet.frames) == 10


async def test_messages_that_wait_together_do_not_wait_for_a_turn_each(
    hub: Hub[FakeMember], nursery: trio.Nursery
) -> None:
    """While ten thousand connect, a turn of all tasks is long."""
    feed_send, feed_receive = trio.open_memory_channel[NatsMessage](50)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade"])
    for _ in range(50):
        feed_send.send_nowait(message("odin.token.BTC.trade"))
    turns = 0
    nursery.start_soon(hub.run, feed_receive)
    while len(member.outlet.frames) < 50:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert turns < 10
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_long_round_lets_others_have_a_turn_and_counts_its_own_work_only(
    hub: Hub[SlowMember], nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    """Else the work of others makes rounds longer, and longer rounds rest longer."""
    feed_send, feed_receive = trio.open_memory_channel[NatsMessage](10)
    members = [SlowMember(mock_clock) for _ in range(40)]
    for member in members:
        hub.join(member)
        hub.registry.subscribe(member.outlet, ["BTC.trade"])
    for _ in range(2):
        feed_send.send_nowait(message("odin.token.BTC.trade"))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while not members[-1].outlet.frames:
            await trio.lowlevel.checkpoint()
            turns += 1
            mock_clock.jump(1.0)

    async with trio.open_nursery() as together:
        together.start_soon(hub.run, feed_receive)
        together.start_soon(others)
        feed_send.close()
    assert 7 <= turns <= 9, "40 writes of 1 ms each, a turn each 5 ms"
    ended = trio.current_time() - 1
    assert hub._pace.delay(ended) == pytest.approx(0.02), "half of 40 ms"
    nursery.cancel_scope.cancel(reason="the test is over")


class QuietOwner:
    """Nobody to tell."""

    def evict(self, reason: CloseReason) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass


@attrs.define(eq=False)
class StreamMember:
    outlet: Outlet


async def test_a_consumer_that_never_reads_does_not_delay_the_others(
    settings: Settings, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """On a clock that only moves when everyone waits: no delay means no time passes at all."""
    hub: Hub[StreamMember] = Hub(settings, Ledger())
    stuck_stream, _never_read = trio.testing.lockstep_stream_pair()
    good_stream, good_peer = trio.testing.memory_stream_pair()
    members = [
        StreamMember(
            Outlet(
                stream,
                history=History(100),
                rules=OutboxRules(),
                ledger=hub.ledger,
                owner=QuietOwner(),
            )
        )
        for stream in (stuck_stream, good_stream)
    ]
    for member in members:
        nursery.start_soon(member.outlet.run_writer)
        hub.members[member] = None
        hub.registry.subscribe(member.outlet, ["BTC.trade"])
    started = trio.current_time()
    for number in range(1, 401):
        hub.publish(message("odin.token.BTC.trade"))
        frame = bytes(await good_peer.receive_some())
        assert b'"seq":%d,' % number in frame
    assert trio.current_time() == started
    assert hub.ledger.deliveries.queued == 400
    assert hub.ledger.deliveries.written == 400


async def test_large_frames_are_not_kept_for_every_seq(
    settings: Settings, hub: Hub[StreamMember]
) -> None:
    """A megabyte for a thousand connections at different numbers would be a gigabyte."""
    for number in range(200):
        history = History(100)
        history.seq = number
        outlet = Outlet(
            trio.testing.memory_stream_pair()[0],
            history=history,
            rules=OutboxRules(),
            ledger=hub.ledger,
            owner=QuietOwner(),
        )
        hub.registry.subscribe(outlet, ["BTC.trade"])
    payload = b'"%b"' % (b"x" * 100_000)
    tracemalloc.start()
    try:
        hub.publish(message("odin.token.BTC.trade", payload))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hub.ledger.deliveries.queued == 200
    assert peak < 20 * len(payload)


async def test_messages_that_wait_in_the_feed_are_written_to_each_in_one_go(
    hub: Hub[FakeMember],
) -> None:
    feed_send, feed_receive = trio.open_memory_channel[NatsMessage](10)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outlet, ["BTC.trade", "ETH.trade"])
    for channel in ("BTC", "ETH", "BTC"):
        feed_send.send_nowait(message(f"odin.token.{channel}.trade"))
    feed_send.close()
    await hub.run(feed_receive)
    assert [b'"seq":%d,' % n in frame for n, frame in enumerate(member.outlet.frames, 1)] == [
        True
    ] * 3
    assert member.outlet.writes == 1
    assert sum(hub.ledger.fan_out.counts) == 3
