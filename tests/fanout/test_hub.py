from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_odin.fanout import hub as hub_module
from trio_odin.fanout.hub import Hub
from trio_odin.fanout.outbound import Outbound
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.slow_consumers import OutboxRules
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Invalid, Shed
from trio_odin.overload.meters import LoopMeter
from trio_odin.overload.turns import Turns
from trio_odin.settings.reading import read_settings
from trio_odin.settings.settings import Settings
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.compression import PLAIN, Encoding


@attrs.define(eq=False)
class Recorder:
    """An outbound side that takes everything."""

    frames: list[bytes] = attrs.field(factory=list)
    deferred: list[Publication] | None = None
    encoding: Encoding = PLAIN
    writes: int = 0
    seq: int = 0

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        self.seq += 1
        frame = frames.setdefault(self.seq, publication.frame(self.seq))
        self.frames.append(frame)
        self.writes += 1
        return len(frame)

    def take_turn(self) -> int:
        deferred, self.deferred = self.deferred or [], None
        for publication in deferred:
            self.seq += 1
            self.frames.append(publication.frame(self.seq))
        self.writes += 1
        return len(deferred)


@attrs.define(eq=False)
class FakeMember:
    outbound: Any = attrs.field(factory=Recorder)


class SlowMember(FakeMember):
    """Each of whose writes takes a millisecond."""

    def __init__(self, clock: MockClock) -> None:
        super().__init__()
        self.outbound = _SlowRecorder(clock=clock)


@attrs.define(eq=False)
class _SlowRecorder(Recorder):
    clock: MockClock | None = None

    def take_turn(self) -> int:
        assert self.clock is not None
        self.clock.jump(0.001)
        return super().take_turn()


def message(subject: str, payload: bytes = b"1") -> NatsMessage:
    return NatsMessage(subject, payload, 7, trio.current_time())


@pytest.fixture
async def hub(settings: Settings) -> Hub[Any]:
    return Hub(settings, Ledger())


async def test_only_the_subscribers_of_the_channel_get_the_event(hub: Hub[Any]) -> None:
    both, one, none = FakeMember(), FakeMember(), FakeMember()
    hub.join(both)
    hub.join(one)
    hub.join(none)
    hub.registry.subscribe(both.outbound, ["BTC.trade", "ETH.trade"])
    hub.registry.subscribe(one.outbound, ["ETH.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    hub.publish(message("odin.token.ETH.trade"))
    hub.publish(message("odin.token.BTC.liquidity"))
    assert [len(m.outbound.frames) for m in (both, one, none)] == [2, 1, 0]
    assert hub.ledger.publications.fanned_out == 2
    assert hub.ledger.publications.unmatched == 1
    assert hub.ledger.deliveries.matched == hub.ledger.deliveries.written == 3


async def test_without_filtering_everyone_gets_everything() -> None:
    settings = read_settings({"ENABLE_SUBSCRIPTION_FILTERING": "false"})
    hub: Hub[Any] = Hub(settings, Ledger())
    members = [FakeMember(), FakeMember()]
    hub.join(members[0])
    hub.join(members[1])
    hub.registry.subscribe(members[0].outbound, ["BTC.trade"])
    hub.publish(message("odin.token.SOL.social"))
    assert [len(m.outbound.frames) for m in members] == [1, 1]


async def test_each_connection_counts_its_own_seq(hub: Hub[Any]) -> None:
    early, late = FakeMember(), FakeMember()
    hub.join(early)
    hub.join(late)
    hub.registry.subscribe(early.outbound, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    hub.registry.subscribe(late.outbound, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    assert b'"seq":2,' in early.outbound.frames[1]
    assert b'"seq":1,' in late.outbound.frames[0]


async def test_connections_at_the_same_seq_share_the_bytes(hub: Hub[Any]) -> None:
    first, second = FakeMember(), FakeMember()
    hub.join(first)
    hub.join(second)
    hub.registry.subscribe(first.outbound, ["BTC.trade"])
    hub.registry.subscribe(second.outbound, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"))
    assert first.outbound.frames[0] is second.outbound.frames[0]


async def test_an_invalid_event_is_counted_by_reason(hub: Hub[Any]) -> None:
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    hub.publish(message("odin.token.BTC"))
    hub.publish(message("odin.token.B/C.trade"))
    hub.publish(message("odin.token.BTC.trade", b"{nonsense"))
    hub.publish(message("odin.token.BTC.trade.further.parts"))
    assert hub.ledger.publications.invalid == {Invalid.SUBJECT: 2, Invalid.PAYLOAD: 1}
    assert len(member.outbound.frames) == 1


async def test_the_rate_of_fan_outs_can_be_set(mock_clock: MockClock) -> None:
    hub: Hub[Any] = Hub(read_settings({"WS_MAX_BROADCAST_RATE": "10"}), Ledger())
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    for _ in range(25):
        hub.publish(message("odin.token.BTC.trade"))
    mock_clock.jump(0.5)
    for _ in range(25):
        hub.publish(message("odin.token.BTC.trade"))
    assert len(member.outbound.frames) == 10 + 5
    assert hub.ledger.publications.shed == {Shed.BROADCAST_RATE: 35}


async def test_a_fan_out_is_one_step_for_the_scheduler(hub: Hub[Any]) -> None:
    members = [FakeMember() for _ in range(50)]
    for member in members:
        hub.registry.subscribe(member.outbound, ["BTC.trade"])
    with trio.testing.assert_no_checkpoints():
        hub.publish(message("odin.token.BTC.trade"))
    assert all(member.outbound.frames for member in members)


async def test_a_connection_that_leaves_has_no_subscription_left(hub: Hub[Any]) -> None:
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    hub.leave(member, CloseReason.PEER_GONE)
    assert not hub.members
    assert hub.registry.channel_count() == 0
    assert hub.ledger.traffic.closed == {"peer_gone": 1}


async def test_the_hub_ends_with_its_inbound_queue_and_loses_nothing(
    hub: Hub[Any],
) -> None:
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](10)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    for _ in range(10):
        inbound_send.send_nowait(message("odin.token.BTC.trade"))
    inbound_send.close()
    with trio.fail_after(1):
        await hub.run(inbound_receive)
    assert len(member.outbound.frames) == 10


async def test_no_more_than_so_many_messages_are_taken_before_all_have_the_first(
    hub: Hub[Any], nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """The messages deferred for a connection are bounded; the inbound queue sheds and counts."""
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](1000)
    members = [SlowMember(mock_clock) for _ in range(20)]
    for member in members:
        hub.registry.subscribe(member.outbound, ["BTC.trade"])
    for _ in range(1000):
        inbound_send.send_nowait(message("odin.token.BTC.trade"))
    inbound_send.close()
    most = 0
    async with trio.open_nursery() as together:
        together.start_soon(hub.run, inbound_receive)
        while not all(len(member.outbound.frames) == 1000 for member in members):
            most = max(most, *(len(member.outbound.deferred or ()) for member in members))
            await trio.lowlevel.checkpoint()
    assert 200 < most <= 256


async def test_a_message_is_not_written_before_what_is_deferred(hub: Hub[Any]) -> None:
    member = FakeMember()
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    hub.publish(message("odin.token.BTC.trade"), is_alone=False)
    hub.publish(message("odin.token.BTC.trade"))
    assert member.outbound.frames == []
    assert len(member.outbound.deferred) == 2


async def test_messages_that_wait_together_do_not_wait_for_a_turn_each(
    hub: Hub[Any], nursery: trio.Nursery
) -> None:
    """While ten thousand connect, a turn of all tasks is long."""
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](50)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade"])
    for _ in range(50):
        inbound_send.send_nowait(message("odin.token.BTC.trade"))
    turns = 0
    nursery.start_soon(hub.run, inbound_receive)
    while len(member.outbound.frames) < 50:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert turns < 10
    nursery.cancel_scope.cancel(reason="the test is over")


async def turns_of_others(hub: Hub[Any], members: list[SlowMember], clock: MockClock) -> int:
    """Publish two messages to all; returns how many turns other tasks have until they have them."""
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](10)
    for member in members:
        hub.join(member)
        hub.registry.subscribe(member.outbound, ["BTC.trade"])
    for _ in range(2):
        inbound_send.send_nowait(message("odin.token.BTC.trade"))
    inbound_send.close()
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run, inbound_receive)
        while not all(member.outbound.frames for member in members):
            await trio.lowlevel.checkpoint()
            turns += 1
            clock.jump(1.0)
    return turns


async def test_other_tasks_have_a_turn_after_each_slice_of_writes(
    hub: Hub[Any], mock_clock: MockClock
) -> None:
    members = [SlowMember(mock_clock) for _ in range(160)]
    turns = await turns_of_others(hub, members, mock_clock)
    assert 20 <= turns <= 22, "a turn after 8 writes, as each takes a millisecond"
    assert [member.outbound.writes for member in members] == [1] * 160


async def test_events_have_half_of_a_turn_in_which_others_take_long(
    settings: Settings, mock_clock: MockClock
) -> None:
    loop = LoopMeter(())
    loop.last_turn_seconds = 0.032
    hub: Hub[Any] = Hub(settings, Ledger(), Turns(loop))
    members = [SlowMember(mock_clock) for _ in range(160)]
    turns = await turns_of_others(hub, members, mock_clock)
    assert 10 <= turns <= 12, "a turn after 16 writes, as each takes a millisecond"


@pytest.mark.parametrize("count", [1, 7, 250])
async def test_no_subscriber_is_always_the_last(
    hub: Hub[Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_WRITTEN_AT_ONCE", 100)
    order: list[int] = []
    for number in range(count):
        outbound = OrderedRecorder(order=order, number=number)
        hub.registry.subscribe(outbound, ["BTC.trade"])  # type: ignore[arg-type]
    last: Counter[int] = Counter()
    for _ in range(10 * count):
        order.clear()
        await published(hub, message("odin.token.BTC.trade"))
        assert sorted(order) == list(range(count)), "each of them once"
        last[order[-1]] += 1
    assert len(last) == count
    assert max(last.values()) <= 20


@attrs.define(eq=False)
class OrderedRecorder(Recorder):
    """Notes its turn in an order that all share."""

    order: list[int] = attrs.field(factory=list)
    number: int = 0

    def deliver(self, publication: Publication, frames: dict[int, bytes]) -> int:
        self.order.append(self.number)
        return super().deliver(publication, frames)

    def take_turn(self) -> int:
        self.order.append(self.number)
        return super().take_turn()


async def published(hub: Hub[Any], *messages: NatsMessage) -> None:
    """Let the hub publish these messages, and write to everyone."""
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](len(messages))
    for one in messages:
        inbound_send.send_nowait(one)
    inbound_send.close()
    await hub.run(inbound_receive)


@attrs.define(eq=False)
class QuietOwner:
    """An owner that only runs the writer."""

    nursery: trio.Nursery
    outbound: Outbound | None = None

    def evict(self, reason: CloseReason) -> None:
        pass

    def close_frame_sent(self) -> None:
        pass

    def start_writer(self) -> None:
        assert self.outbound is not None
        self.nursery.start_soon(self.outbound.run_writer)


def outbound_over(stream: trio.abc.Stream, ledger: Ledger, nursery: trio.Nursery) -> Outbound:
    """An outbound side whose writer runs in `nursery`."""
    owner = QuietOwner(nursery)
    owner.outbound = Outbound(
        stream,
        replay_buffer=ReplayBuffer(100),
        rules=OutboxRules(),
        ledger=ledger,
        owner=owner,
    )
    return owner.outbound


@attrs.define(eq=False)
class StreamMember:
    outbound: Outbound


async def test_a_consumer_that_never_reads_does_not_delay_the_others(
    settings: Settings, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The clock moves only when every task waits: without a delay no time passes."""
    hub: Hub[Any] = Hub(settings, Ledger())
    stuck_stream, _never_read = trio.testing.lockstep_stream_pair()
    good_stream, good_peer = trio.testing.memory_stream_pair()
    members = [
        StreamMember(outbound_over(stream, hub.ledger, nursery))
        for stream in (stuck_stream, good_stream)
    ]
    for member in members:
        hub.members[member] = None
        hub.registry.subscribe(member.outbound, ["BTC.trade"])
    started = trio.current_time()
    for number in range(1, 401):
        hub.publish(message("odin.token.BTC.trade"))
        frame = bytes(await good_peer.receive_some())
        assert b'"seq":%d,' % number in frame
    assert trio.current_time() == started
    assert hub.ledger.deliveries.queued == 400
    assert hub.ledger.deliveries.written == 400


async def test_large_frames_are_not_kept_for_every_seq(
    hub: Hub[Any], nursery: trio.Nursery
) -> None:
    """A megabyte for a thousand connections at different numbers would be a gigabyte."""
    for number in range(200):
        outbound = outbound_over(trio.testing.memory_stream_pair()[0], hub.ledger, nursery)
        outbound._replay_buffer.seq = number
        hub.registry.subscribe(outbound, ["BTC.trade"])
    payload = b'"%b"' % (b"x" * 100_000)
    tracemalloc.start()
    try:
        hub.publish(message("odin.token.BTC.trade", payload))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hub.ledger.deliveries.queued == 200
    assert peak < 20 * len(payload)


async def test_messages_waiting_in_the_inbound_queue_are_written_in_one_go(
    hub: Hub[Any], mock_clock: MockClock
) -> None:
    del mock_clock  # it stands still, so that no slice ends
    inbound_send, inbound_receive = trio.open_memory_channel[NatsMessage](10)
    member = FakeMember()
    hub.join(member)
    hub.registry.subscribe(member.outbound, ["BTC.trade", "ETH.trade"])
    for channel in ("BTC", "ETH", "BTC"):
        inbound_send.send_nowait(message(f"odin.token.{channel}.trade"))
    inbound_send.close()
    await hub.run(inbound_receive)
    assert [b'"seq":%d,' % n in frame for n, frame in enumerate(member.outbound.frames, 1)] == [
        True
    ] * 3
    assert member.outbound.writes == 1
    assert sum(hub.ledger.fan_out.counts) == 3
