from __future__ import annotations

import json
import os
import random
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import Opcode

from tests.connection.client import LossRule, frames_of
from trio_odin.fanout.answers import Answer, Resend
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.ordered_stream import State
from trio_odin.fanout.outbound import Outbound, defer
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.replay_buffer import ReplayBuffer
from trio_odin.fanout.slow_consumers import OutboxRules, SlowPolicy
from trio_odin.fanout.updates import Updates
from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.reasons import CloseReason, Dropped
from trio_odin.overload.byte_budget import ByteBudget
from trio_odin.upstream.nats_message import NatsMessage
from trio_odin.wire.compression import PLAIN
from trio_odin.wire.frames import PING, close_frame, text_frame


class OwnerOfOne:
    """Keeps the calls of its outbound side; evicts as a connection does, by stopping it."""

    def __init__(self) -> None:
        self.reasons: list[CloseReason] = []
        self.close_frame_is_out = False
        self.outbound: Outbound | None = None
        self.writer_is_wanted = False
        self.start_writer = self.note_that_a_writer_is_wanted

    def note_that_a_writer_is_wanted(self) -> None:
        self.writer_is_wanted = True

    def evict(self, reason: CloseReason) -> None:
        self.reasons.append(reason)
        if self.outbound is not None:
            self.outbound.stop()

    def close_frame_sent(self) -> None:
        self.close_frame_is_out = True


class Rig:
    """An outbound side over `stream`, and its counters."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        policy: SlowPolicy = SlowPolicy.EVICT,
        capacity: int = 512,
        max_bytes: int = 100_000_000,
        total_bytes: int = 0,
        write_deadline: float = 5,
    ) -> None:
        self.budget = ByteBudget(total_bytes)
        self.owner = OwnerOfOne()
        self.ledger = Ledger()
        self.replay_buffer = ReplayBuffer(100)
        self.outbound = Outbound(
            stream,
            replay_buffer=self.replay_buffer,
            rules=OutboxRules(policy, capacity, max_bytes, write_deadline, self.budget),
            ledger=self.ledger,
            owner=self.owner,
        )
        self.owner.outbound = self.outbound
        self.turns = 0

    def wait_for_turn(self, outbound: Outbound) -> None:
        assert outbound is self.outbound
        self.turns += 1

    def run_writer_in(self, nursery: trio.Nursery) -> None:
        """Run the writer whenever it is asked for; at once if it already was."""
        self.owner.start_writer = lambda: nursery.start_soon(self.outbound.run_writer)
        if self.owner.writer_is_wanted:
            self.owner.start_writer()

    def check_the_end(self) -> None:
        """Check that an ended connection owes nothing: no envelope, no byte."""
        self.outbound.stop()
        assert self.ledger.deliveries.queued == self.ledger.deliveries.imbalance() == 0
        assert self.budget.used_bytes == 0

    def offer(self, publication: Publication) -> bytes:
        """Offer the next envelope and count it as the hub does. Returns its frame."""
        sent = self.outbound.deliver(publication, {})
        frame = publication.frame(self.replay_buffer.seq)
        self.ledger.deliveries.matched += 1
        self.ledger.deliveries.written += sent > 0
        self.ledger.traffic.bytes_sent += sent
        assert self.ledger.deliveries.imbalance() == 0
        return frame

    def defer(self, publication: Publication) -> bytes:
        """The same in a joined round: the hub flushes at its end."""
        defer(publication, [self.outbound], self.ledger, self.wait_for_turn)
        assert self.ledger.deliveries.imbalance() == 0
        return publication.frame(self.outbound.counts()["seq"])


def publication(size: int = 20, channel: str = "BTC.trade") -> Publication:
    return Publication(channel, b'"%b"' % (b"x" * size), offset=1, unix_ms=1)


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        assert chunk
        received += chunk
    return received


async def test_an_envelope_goes_out_at_once_without_the_writer() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        frame = rig.offer(publication())
        assert await receive_exactly(theirs, len(frame)) == frame
        assert rig.ledger.deliveries.written == 1


async def test_an_offer_is_not_a_checkpoint() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours, capacity=1)
        with trio.testing.assert_no_checkpoints():
            for _ in range(5):
                rig.offer(publication(200_000))


async def test_bytes_that_the_socket_does_not_take_arrive_in_order_later(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        expected = b"".join([rig.offer(publication(30_000)) for _ in range(40)])
        assert rig.ledger.deliveries.queued > 0
        rig.run_writer_in(nursery)
        assert await receive_exactly(theirs, len(expected)) == expected
        await trio.testing.wait_all_tasks_blocked()
        assert rig.ledger.deliveries.queued == 0
        assert rig.ledger.deliveries.written == 40
        assert rig.ledger.traffic.bytes_sent == len(expected)
        # Direct writes are possible again.
        frame = rig.offer(publication())
        assert rig.ledger.deliveries.written == 41
        assert await receive_exactly(theirs, len(frame)) == frame


async def test_a_reply_waits_for_its_turn_after_queued_envelopes(nursery: trio.Nursery) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        expected = b"".join([rig.offer(publication(30_000)) for _ in range(40)])
        reply = text_frame(b'{"type":"pong"}')
        rig.run_writer_in(nursery)
        nursery.start_soon(rig.outbound.send_all, reply)
        await trio.testing.wait_all_tasks_blocked()
        assert await receive_exactly(theirs, len(expected + reply)) == expected + reply


async def test_three_full_outboxes_in_a_row_evict() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, capacity=4)
    for _ in range(4 + 2):
        rig.offer(publication())
    assert rig.owner.reasons == []
    rig.offer(publication())
    assert rig.owner.reasons == [CloseReason.OUTBOX_FULL]
    assert rig.ledger.deliveries.dropped == {Dropped.OUTBOX_FULL: 3, Dropped.CLOSING: 4}
    rig.check_the_end()


async def test_an_envelope_that_fits_in_between_restarts_the_count(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, capacity=1)
    rig.run_writer_in(nursery)
    for _ in range(4):
        rig.offer(publication())
        rig.offer(publication())
        rig.offer(publication())
        await receive_exactly(theirs, len(publication().frame(1)))
        await trio.testing.wait_all_tasks_blocked()
    assert rig.owner.reasons == []
    assert rig.ledger.deliveries.dropped[Dropped.OUTBOX_FULL] > 3


@pytest.mark.parametrize("policy", SlowPolicy)
async def test_a_write_without_progress_for_its_deadline_evicts(
    policy: SlowPolicy, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, policy=policy)
    rig.offer(publication())
    started = trio.current_time()
    await rig.outbound.run_writer()
    assert rig.owner.reasons == [CloseReason.WRITE_DEADLINE]
    assert trio.current_time() - started == pytest.approx(5)
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}
    assert rig.outbound.report()["events"][-1] == "5.000s write stalled"
    rig.check_the_end()


async def test_a_slow_reader_that_makes_progress_is_not_evicted(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours)
    expected = b"".join([rig.offer(publication(10_000)) for _ in range(20)])
    rig.run_writer_in(nursery)
    received = b""
    while len(received) < len(expected):
        await trio.sleep(4)
        received += await theirs.receive_some(16 * 1024)
    assert received == expected
    assert rig.owner.reasons == []


async def test_a_reset_peer_is_noticed_by_the_fan_out_and_counted() -> None:
    ours, theirs = await socket_pair()
    await theirs.aclose()
    rig = Rig(ours)
    rig.offer(publication())
    rig.offer(publication())
    assert set(rig.owner.reasons) == {CloseReason.PEER_GONE}
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 2}
    await ours.aclose()


async def test_a_stopped_outbound_no_longer_knows_its_file_number() -> None:
    """Another connection may have the number by now, and must not get these bytes."""
    ours, theirs = await socket_pair()
    rig = Rig(ours)
    await rig.outbound.aclose()
    heir, heirs_peer = await socket_pair()
    rig.offer(publication())
    rig.outbound.ping()
    with pytest.raises(trio.BrokenResourceError):
        await rig.outbound.send_all(b"x")
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}
    with trio.move_on_after(0.01) as nothing_came:
        await heirs_peer.receive_some()
    assert nothing_came.cancelled_caught
    for stream in (theirs, heir, heirs_peer):
        await stream.aclose()


async def test_the_farewell_goes_out_between_frames_but_not_into_one() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        rig.outbound.stop(b"farewell")
        assert await theirs.receive_some() == b"farewell"
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        frame = rig.offer(publication(2_000_000))  # more than the socket takes: torn
        assert rig.ledger.deliveries.queued == 1
        taken = await theirs.receive_some(1000)  # room again
        rig.outbound.stop(b"farewell")
        await ours.aclose()
        while chunk := await theirs.receive_some():
            taken += chunk
        assert frame.startswith(taken)


async def test_a_ping_is_skipped_while_something_waits() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours)
    rig.offer(publication())
    rig.outbound.ping()
    assert rig.ledger.deliveries.queued == 1
    assert rig.ledger.traffic.bytes_sent == 0


class StutteringWrite:
    """Writes a random number of bytes each time, as a socket with little room does."""

    def __init__(self, sink: bytearray, choose: random.Random) -> None:
        self._sink = sink
        self._choose = choose

    def __call__(self, file: int, data: bytes | memoryview) -> int:
        room = self._choose.choice([0, 1, 2, len(data) // 2, len(data), len(data) + 9])
        if not room:
            raise BlockingIOError
        self._sink += data[:room]
        return min(room, len(data))


class Always(random.Random):
    """Always chooses the same number."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self._number = number

    def choice(self, seq: Any) -> Any:
        return seq[self._number]


class StutteringStream(trio.abc.Stream):
    """The waiting side of the same socket."""

    def __init__(self, sink: bytearray) -> None:
        self._sink = sink

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for start in range(0, len(data), 7):
            await trio.lowlevel.checkpoint()
            self._sink += data[start : start + 7]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@given(
    steps=st.lists(
        st.sampled_from(["offer", "defer", "flush", "reply", "resend", "ping", "run"]), max_size=80
    ),
    seed=st.integers(0, 2**32),
    is_left=st.booleans(),
)
@settings(max_examples=200)
def test_no_frame_ever_interrupts_another(steps: list[str], seed: int, *, is_left: bool) -> None:
    sink = bytearray()
    frames: list[bytes] = []

    async def scenario() -> None:
        rig = Rig(StutteringStream(sink))
        rig.outbound.socket.write_now = StutteringWrite(sink, random.Random(seed))
        async with trio.open_nursery() as nursery:
            rig.run_writer_in(nursery)
            for number, step in enumerate(steps):
                if step == "offer":
                    rig.outbound.flush()  # as the hub does at the end of a round
                    frames.append(rig.offer(publication(number)))
                elif step == "defer":
                    frames.append(rig.defer(publication(number)))
                elif step == "flush":
                    rig.outbound.flush()
                elif step == "reply":
                    reply = text_frame(b'{"reply":%d}' % number)
                    frames.append(reply)
                    nursery.start_soon(rig.outbound.send_all, reply)
                    # A reply is queued when its task first runs; keep the model's order.
                    await trio.testing.wait_all_tasks_blocked()
                elif step == "resend":
                    rig.outbound.flush()  # as the connection does before a command
                    again = resend(rig, number % 7)
                    frames.extend([ACK, *(one.frame(seq) for seq, one in again.messages)])
                    frames.append(text_frame(b'{"sent":%d}' % (number % 7)))
                    await rig.outbound.answer([ACK, again])
                elif step == "ping":
                    rig.outbound.ping()
                else:
                    await trio.lowlevel.checkpoint()
            if is_left:
                assert rig.outbound.close(close_frame(1001, "bye"))
                frames.append(close_frame(1001, "bye"))
                rig.offer(publication())  # too late: it is dropped
                await trio.testing.wait_all_tasks_blocked()
                assert rig.owner.close_frame_is_out
            rig.outbound.flush()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the test is over")
        assert rig.ledger.deliveries.imbalance() == 0
        assert rig.ledger.deliveries.dropped.total() == is_left
        assert rig.ledger.deliveries.queued == 0
        assert rig.budget.used_bytes == 0
        rig.check_the_end()

    trio.run(scenario)
    assert without_pings(bytes(sink), frames) == b"".join(frames)


def without_pings(wire: bytes, frames: list[bytes]) -> bytes:
    """Remove each ping between two of `frames`; nothing else may be there."""
    rest, kept = wire, b""
    for frame in frames:
        while rest.startswith(PING):
            rest = rest[len(PING) :]
        assert rest.startswith(frame)
        rest, kept = rest[len(frame) :], kept + frame
    while rest.startswith(PING):
        rest = rest[len(PING) :]
    return kept + rest


async def test_deferred_envelopes_go_out_in_one_write() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        writes: list[bytes] = []

        def write(file: int, data: bytes | memoryview) -> int:
            writes.append(bytes(data))
            return os.write(file, data)

        rig.outbound.socket.write_now = write
        frames = [rig.defer(publication(size)) for size in range(5)]
        rig.outbound.flush()
        rig.outbound.flush()
        assert writes == [b"".join(frames)]
        assert rig.ledger.deliveries.written == 5
        assert rig.ledger.traffic.bytes_sent == len(writes[0])
        assert await receive_exactly(theirs, len(writes[0])) == writes[0]


async def test_a_joined_write_is_bounded() -> None:
    """Sixty-four events of a megabyte each must not be put together in memory."""
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        sizes: list[int] = []

        def write(file: int, data: bytes | memoryview) -> int:
            sizes.append(len(data))
            return len(data)

        rig.outbound.socket.write_now = write
        frames = [rig.defer(publication(30_000)) for _ in range(10)]
        rig.outbound.flush()
        assert sum(sizes) == sum(map(len, frames))
        assert max(sizes) < 64 * 1024 + 31_000
        assert rig.ledger.deliveries.written == 10


async def test_one_flush_counts_as_one_full_outbox() -> None:
    """The writer had no turn in between, so it is not three failures in a row."""
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, capacity=2)
    for number in range(1, 4):
        for _ in range(10):
            rig.defer(publication())
        assert not rig.owner.reasons
        rig.outbound.flush()
        assert bool(rig.owner.reasons) == (number == 3)
    assert rig.owner.reasons == [CloseReason.OUTBOX_FULL]
    assert rig.ledger.deliveries.imbalance() == 0


async def test_a_place_in_the_queue_is_kept_until_the_turn_comes() -> None:
    """Else a connection that is often flushed early would have many places."""
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        for _ in range(3):
            rig.defer(publication())
            rig.outbound.flush()
            assert rig.turns == 1
        rig.outbound.take_turn()
        rig.defer(publication())
        assert rig.turns == 2
        rig.check_the_end()


async def test_envelopes_deferred_at_the_end_are_counted_as_dropped() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        rig.defer(publication())
        rig.outbound.stop()
        rig.outbound.flush()
        assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}
        assert rig.ledger.deliveries.imbalance() == 0
        rig.defer(publication())
        rig.defer(publication())
        assert rig.outbound.take_turn() == 2
        assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 3}
        assert rig.ledger.deliveries.imbalance() == 0


async def test_closing_now_closes_a_socket_and_leaves_another_stream() -> None:
    ours, theirs = await socket_pair()
    async with theirs:
        assert Rig(ours).outbound.close_now()
        assert ours.socket.fileno() == -1
        assert await theirs.receive_some() == b""
    near, far = trio.testing.memory_stream_pair()
    outbound = Rig(near).outbound
    assert not outbound.close_now()
    assert outbound.state is State.STOPPED
    await outbound.aclose()
    assert await far.receive_some() == b""


def test_the_stutter_can_tear_a_frame() -> None:
    """The property above means something only if frames do get torn."""
    sink = bytearray()
    write: Callable[[int, bytes], int] = StutteringWrite(sink, random.Random(1))
    outcomes = set()
    for _ in range(100):
        try:
            outcomes.add(write(-1, b"0123456789"))
        except BlockingIOError:
            outcomes.add(0)
    assert outcomes == {0, 1, 2, 5, 10}


async def test_a_full_outbox_keeps_the_newest_of_each_channel(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE, capacity=4)
    for number in range(100):
        rig.offer(publication(number, f"A{number % 3}.a"))
    assert rig.ledger.deliveries.queued == 3
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    messages = envelopes_of(bytes(await theirs.receive_some()))
    assert [(e["seq"], e["channel"], e["skipped"]) for e in messages] == [
        (98, "A1.a", 32), (99, "A2.a", 32), (100, "A0.a", 33),
    ]  # fmt: skip
    assert not rig.owner.reasons
    assert [seq for seq, _ in rig.replay_buffer.between(1, 100).kept] == list(range(1, 101))
    rig.check_the_end()


async def test_more_channels_than_places_evict_under_conflation() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE, capacity=4)
    for number in range(7):
        rig.offer(publication(channel=f"A{number}.a"))
    assert rig.owner.reasons == [CloseReason.OUTBOX_FULL]
    rig.check_the_end()


async def test_a_client_that_may_miss_events_sees_a_gap_and_stays(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.DROP, capacity=4)
    for _ in range(100):
        rig.offer(publication())
    assert rig.ledger.deliveries.dropped == {Dropped.OUTBOX_FULL: 96}
    assert rig.replay_buffer.dropped == rig.replay_buffer.seq == 100
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    rig.offer(publication())
    assert (rig.replay_buffer.dropped, rig.replay_buffer.seq) == (100, 101)
    await trio.testing.wait_all_tasks_blocked()
    messages = envelopes_of(bytes(await theirs.receive_some()))
    assert [e["seq"] for e in messages] == [1, 2, 3, 4, 101]
    assert not rig.owner.reasons
    rig.check_the_end()


async def test_a_reply_that_waits_for_a_place_keeps_its_turn(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE, capacity=3)
    for channel in ("A.a", "A.a", "B.b"):
        rig.offer(publication(channel=channel))
    nursery.start_soon(rig.outbound.send_all, text_frame(b'{"type":"pong"}'))
    await trio.testing.wait_all_tasks_blocked()  # it waits: the outbox is full
    rig.offer(publication(channel="C.c"))  # the only free place is the reply's
    assert rig.ledger.deliveries.dropped == {Dropped.OUTBOX_FULL: 1}
    rig.offer(publication(channel="B.b"))
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    messages = envelopes_of(bytes(await theirs.receive_some()))
    assert [m.get("seq", m["type"]) for m in messages] == [2, "pong", 5]
    rig.check_the_end()


async def test_an_envelope_that_is_being_written_is_never_superseded(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE, capacity=2)
    rig.run_writer_in(nursery)
    rig.offer(publication(channel="A.a"))
    await trio.testing.wait_all_tasks_blocked()
    for channel in ("B.b", "A.a", "C.c"):  # the writer has the first one
        rig.offer(publication(channel=channel))
    assert rig.ledger.deliveries.dropped == {Dropped.OUTBOX_FULL: 1}
    wire = b""
    while rig.ledger.deliveries.queued:
        wire += await theirs.receive_some()
        await trio.testing.wait_all_tasks_blocked()
    assert [e["seq"] for e in envelopes_of(wire)] == [1, 2, 3]
    rig.check_the_end()


async def test_a_reply_cancelled_while_it_waits_is_sent_and_frees_its_bytes(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, capacity=1)
    frame, reply = rig.offer(publication()), text_frame(b"{}")
    with trio.move_on_after(0.01) as waiting:
        await rig.outbound.send_all(reply)
    assert waiting.cancelled_caught
    assert rig.budget.used_bytes == len(frame + reply), "it is in the outbox"
    rig.run_writer_in(nursery)
    assert await receive_exactly(theirs, len(frame + reply)) == frame + reply
    await trio.testing.wait_all_tasks_blocked()
    assert rig.budget.used_bytes == 0
    rig.check_the_end()


async def test_waiting_bytes_are_bounded_per_connection_and_in_all() -> None:
    size = len(publication().frame(1))
    ours, _theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, max_bytes=2 * size)
    for _ in range(5):
        rig.offer(publication())
    assert rig.ledger.deliveries.dropped[Dropped.OUTBOX_BYTES] == 3
    assert rig.owner.reasons == [CloseReason.OUTBOX_FULL]
    rig.check_the_end()
    rig = Rig(ours, policy=SlowPolicy.DROP, total_bytes=3 * size)
    for _ in range(5):
        rig.offer(publication())
    assert rig.ledger.deliveries.dropped == {Dropped.TOTAL_OUTBOX_BYTES: 2}
    assert rig.budget.used_bytes == 3 * size
    rig.check_the_end()


@pytest.mark.parametrize(
    "limit", [{"capacity": 8}, {"max_bytes": 1000}, {"total_bytes": 1000}], ids=str
)
async def test_notices_obey_the_event_limits_and_a_close_frame_has_a_place(
    limit: dict[str, Any],
) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, **limit)
    told = [rig.outbound.send_soon(text_frame(b"x" * 118)) for _ in range(100)]
    assert told == [True] * 8 + [False] * 92
    assert rig.budget.used_bytes == 8 * 120
    assert rig.outbound.close(close_frame(1001, "bye")) == ("capacity" not in limit)
    rig.check_the_end()


async def test_an_envelope_over_the_limit_of_bytes_is_delivered(nursery: trio.Nursery) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours, max_bytes=1000, total_bytes=1000)
        rig.run_writer_in(nursery)
        for size in (2_000_000, 10):
            frame = rig.offer(publication(size))
            with trio.fail_after(5):
                assert await receive_exactly(theirs, len(frame)) == frame
            await trio.testing.wait_all_tasks_blocked()
        assert rig.budget.used_bytes == rig.ledger.deliveries.dropped.total() == 0


async def test_the_history_of_a_slow_client_is_recorded(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE, capacity=32)
    assert rig.outbound.report()["events"] == []
    await trio.sleep(1)
    rig.outbound.ping()
    for number in range(20):
        rig.offer(publication(channel=f"A{number % 18}.a"))
    await trio.sleep(1)
    rig.run_writer_in(nursery)
    with trio.move_on_after(3):
        while True:
            await trio.sleep(1.5)
            await theirs.receive_some(200)
    assert rig.outbound.report() == {
        "seconds": 5.0,
        "silent_seconds": 5.0,
        "seq": 20,
        "dropped": 0,
        "conflated": 2,
        "queued": 18,
        "queued_bytes": rig.budget.used_bytes,
        "events": [
            "1.000s ping skipped",
            "1.000s outbox began to fill",
            "1.000s messages waiting x16",
            "2.000s conflated x2",
        ],
    }


def resend(rig: Rig, count: int, size: int = 20, channel: str = "BTC.trade") -> Resend:
    """A resend as a session makes it for a resume; its end has the number sent."""
    events = [publication(size, channel) for _ in range(count)]

    def finish(sent: int) -> list[bytes]:
        for one in events[:sent]:
            rig.replay_buffer.append(one)
        return [text_frame(b'{"sent":%d}' % sent)]

    return Resend(list(enumerate(events, rig.replay_buffer.seq + 1)), finish)


ACK = text_frame(b'{"type":"subscription_ack"}')


async def test_resent_events_go_out_between_the_ack_and_their_end() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        with trio.testing.assert_no_checkpoints():
            await rig.outbound.answer([ACK, resend(rig, 10), ACK])
        got = envelopes_of(bytes(await theirs.receive_some()))
        assert [m.get("seq", m.get("sent", "ack")) for m in got] == [
            "ack",
            *range(1, 11),
            10,
            "ack",
        ]
        assert (rig.ledger.deliveries.matched, rig.ledger.deliveries.written) == (10, 10)
        rig.check_the_end()


@pytest.mark.parametrize("policy", SlowPolicy)
@pytest.mark.parametrize(
    "limit", [{"capacity": 8}, {"max_bytes": 250_000}, {"total_bytes": 250_000}], ids=str
)
async def test_resent_events_obey_the_limits_of_all_events(
    policy: SlowPolicy, limit: dict[str, Any], nursery: trio.Nursery
) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours, policy=policy, **limit)
        answers: list[Answer] = [ACK, resend(rig, 100, 30_000)]
        nursery.start_soon(rig.outbound.answer, answers)
        await trio.testing.wait_all_tasks_blocked()
        assert 7 <= rig.ledger.deliveries.queued <= 9
        assert rig.budget.used_bytes < 300_000
        seq = rig.replay_buffer.seq
        assert rig.ledger.deliveries.matched == seq < 100, "what does not fit has no number"
        assert rig.ledger.deliveries.imbalance() == rig.ledger.deliveries.dropped.total() == 0
        assert not rig.owner.reasons, "it is no slow client for asking"
        rig.run_writer_in(nursery)
        wire = b""
        while b'{"sent":' not in wire:
            wire += await theirs.receive_some()
        got = [m.get("seq", m.get("sent", "ack")) for m in envelopes_of(wire)]
        assert got == ["ack", *range(1, seq + 1), seq]
        await trio.testing.wait_all_tasks_blocked()
        assert rig.ledger.deliveries.written == seq
        rig.offer(publication())
        assert rig.replay_buffer.seq == seq + 1
        rig.check_the_end()


async def test_an_answer_is_out_before_the_next_command_is_read(nursery: trio.Nursery) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        rig.run_writer_in(nursery)
        events = Resend(resend(rig, 50, 30_000).messages, lambda _: [])
        with trio.move_on_after(0.01) as early:
            await rig.outbound.answer([events])
        assert early.cancelled_caught
        with trio.fail_after(5):
            async with trio.open_nursery() as reading:
                reading.start_soon(receive_exactly, theirs, 50 * 30_000)
                await rig.outbound.answer([b""])
        assert rig.ledger.deliveries.queued == 0
        rig.check_the_end()


async def test_an_answer_has_its_place_in_a_full_outbox(nursery: trio.Nursery) -> None:
    """Events published meanwhile come after it, so it cannot wait for a place."""
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.DROP, capacity=3)
    for _ in range(5):
        rig.offer(publication())
    answers: list[Answer] = [ACK, resend(rig, 2), ACK]
    nursery.start_soon(rig.outbound.answer, answers)
    await trio.testing.wait_all_tasks_blocked()
    rig.offer(publication())
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    got = envelopes_of(bytes(await theirs.receive_some()))
    assert [m.get("seq", m.get("sent", "ack")) for m in got] == [1, 2, 3, "ack", 0, "ack"]
    rig.check_the_end()


async def test_a_resent_event_is_neither_superseded_nor_supersedes(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE)
    for _ in range(2):
        rig.offer(publication())
    nursery.start_soon(rig.outbound.answer, [resend(rig, 3)])
    await trio.testing.wait_all_tasks_blocked()
    rig.offer(publication())
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    got = [m for m in envelopes_of(bytes(await theirs.receive_some())) if "seq" in m]
    assert [(m["seq"], m.get("skipped", 0)) for m in got] == [(3, 0), (4, 0), (5, 0), (6, 2)]
    rig.check_the_end()


async def test_replayed_events_do_not_count_as_skipped(nursery: trio.Nursery) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    rig = Rig(ours, policy=SlowPolicy.CONFLATE)
    for channel in ("A.a", "A.a", "B.b", "B.b", "B.b"):
        rig.offer(publication(channel=channel))
    again = Resend(
        rig.replay_buffer.between(1, 3).kept, lambda sent: [text_frame(b'{"sent":%d}' % sent)]
    )
    nursery.start_soon(rig.outbound.answer, [again])
    await trio.testing.wait_all_tasks_blocked()
    rig.offer(publication(channel="A.a"))
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    rig.offer(publication(channel="C.c"))
    for _ in range(2):
        rig.offer(publication(channel="D.d"))
    await trio.testing.wait_all_tasks_blocked()
    got = envelopes_of(bytes(await theirs.receive_some()))
    told = [(m.get("seq", "end"), m.get("skipped", 0), m.get("skipped_total")) for m in got]
    assert told == [
        (5, 2, 4), (1, 0, None), (2, 0, None), (3, 0, None), ("end", 0, None),
        (6, 2, None), (7, 0, None), (9, 1, 5),
    ]  # fmt: skip
    rig.check_the_end()


async def test_a_replayed_event_in_two_writes_does_not_count_as_skipped(
    nursery: trio.Nursery,
) -> None:
    sink = bytearray()
    rig = Rig(StutteringStream(sink), policy=SlowPolicy.CONFLATE)
    rig.outbound.socket.write_now = whole = StutteringWrite(sink, Always(4))
    for _ in range(10):
        rig.offer(publication())
    rig.outbound.socket.write_now = StutteringWrite(sink, Always(3))  # a half of it
    again = Resend(rig.replay_buffer.between(3, 4).kept, lambda _: [])
    nursery.start_soon(rig.outbound.answer, [again])
    await trio.testing.wait_all_tasks_blocked()
    rig.outbound.socket.write_now = whole
    rig.offer(publication())
    rig.run_writer_in(nursery)
    await trio.testing.wait_all_tasks_blocked()
    got = envelopes_of(bytes(sink))
    assert [m["seq"] for m in got] == [*range(1, 11), 3, 4, 11]
    assert [m for m in got if "skipped_total" in m] == []
    rig.check_the_end()


async def test_a_connection_that_ends_during_an_answer_owes_nothing(nursery: trio.Nursery) -> None:
    ours, theirs = await socket_pair()
    rig = Rig(ours)
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await rig.outbound.answer([resend(rig, 3), ACK])
    assert rig.owner.reasons == [CloseReason.PEER_GONE]
    rig.check_the_end()
    with pytest.raises(trio.BrokenResourceError):
        await rig.outbound.answer([resend(rig, 3), ACK])
    assert not rig.outbound.send_soon(ACK)
    rig.check_the_end()
    await ours.aclose()


def envelopes_of(wire: bytes) -> list[dict[str, Any]]:
    """The messages on the wire, without pings."""
    frames = [frame for frame in frames_of(wire) if frame.opcode is not Opcode.PING]
    return [json.loads(str(frame.payload)) for frame in frames]


@given(
    policy=st.sampled_from([SlowPolicy.CONFLATE, SlowPolicy.DROP]),
    steps=st.lists(
        st.sampled_from(["offer"] * 3 + ["round", "reply", "resend", "ping", "read", "read all"]),
        max_size=60,
    ),
    seed=st.integers(0, 2**32),
    max_bytes=st.sampled_from([400, 10**9]),
    capacity=st.integers(4, 12),
)
@settings(max_examples=200)
def test_a_slow_client_can_tell_what_it_missed(
    policy: SlowPolicy, steps: list[str], seed: int, max_bytes: int, capacity: int
) -> None:
    sink = bytearray()
    choose = random.Random(seed)
    matched: Counter[str] = Counter()
    replies = 0
    is_answering = False

    async def answer(rig: Rig, again: Resend) -> None:
        nonlocal is_answering
        is_answering = True
        await rig.outbound.answer([again])
        is_answering = False

    async def scenario() -> None:
        nonlocal replies
        stream = GatedStream(sink)
        rig = Rig(stream, policy=policy, capacity=capacity, max_bytes=max_bytes)
        rig.owner.outbound = None  # an eviction is noted, but the queue stays visible
        rig.outbound.socket.write_now = StutteringWrite(sink, choose)
        async with trio.open_nursery() as nursery:
            rig.run_writer_in(nursery)
            for number, step in enumerate(steps):
                if step in ("offer", "round"):
                    rig.outbound.flush()
                    offer = rig.offer if step == "offer" else rig.defer
                    for _ in range(choose.randint(1, 6)):
                        channel = f"{choose.choice('ABCDE')}.a"
                        matched[channel] += 1
                        offer(publication(number, channel))
                    rig.outbound.flush()
                elif step == "reply":
                    replies += 1
                    reply = text_frame(b'{"reply":%d}' % replies)
                    nursery.start_soon(rig.outbound.send_all, reply)
                    await trio.testing.wait_all_tasks_blocked()
                elif step == "resend" and not is_answering:
                    before, channel = rig.replay_buffer.seq, f"{choose.choice('ABCDE')}.a"
                    nursery.start_soon(answer, rig, resend(rig, choose.randint(0, 9), 5, channel))
                    await trio.testing.wait_all_tasks_blocked()
                    matched[channel] += rig.replay_buffer.seq - before
                elif step == "ping":
                    rig.outbound.ping()
                else:
                    stream.bytes_allowed += choose.randint(1, 300) if step == "read" else 10**6
                    stream.reading.unpark_all()
                    await trio.testing.wait_all_tasks_blocked()
                    if step == "read":
                        stream.bytes_allowed = 0
                assert rig.ledger.deliveries.imbalance() == 0
            stream.bytes_allowed = 10**9
            stream.reading.unpark_all()
            await trio.testing.wait_all_tasks_blocked()
            matched["LAST.a"] += 1
            rig.offer(publication(1, "LAST.a"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the test is over")
        assert rig.budget.used_bytes == rig.ledger.deliveries.queued == 0
        messages = envelopes_of(bytes(sink))
        assert [m["reply"] for m in messages if "reply" in m] == list(range(1, replies + 1))
        messages = [m for m in messages if "seq" in m]
        check_what_was_received(messages, matched, rig)

    trio.run(scenario)


def check_what_was_received(
    messages: list[dict[str, Any]], matched: Counter[str], rig: Rig
) -> None:
    seqs = [e["seq"] for e in messages]
    assert seqs == sorted(set(seqs))
    received: Counter[str] = Counter()
    for message in messages:
        received[message["channel"]] += 1 + message.get("skipped", 0)
    deliveries = rig.ledger.deliveries
    assert not received - matched
    assert (matched - received).total() == deliveries.dropped.total()
    assert sum(e.get("skipped", 0) for e in messages) == deliveries.conflated
    assert deliveries.written == len(messages)
    rule = LossRule()
    lost = [rule.lost(message) for message in messages]
    assert lost == sorted(lost)
    assert (lost[0] >= 0, lost[-1]) == (True, deliveries.dropped.total())


class GatedStream(StutteringStream):
    """The waiting side of a socket whose peer reads only on request."""

    def __init__(self, sink: bytearray) -> None:
        super().__init__(sink)
        self.bytes_allowed = 0
        self.reading = trio.lowlevel.ParkingLot()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        while len(data):
            while not self.bytes_allowed:
                await self.reading.park()
            taken = data[: self.bytes_allowed]
            self._sink += taken
            self.bytes_allowed -= len(taken)
            data = data[len(taken) :]


@pytest.mark.parametrize("seed", range(20))
async def test_conflation_during_a_write_never_runs_out_of_places(
    seed: int, nursery: trio.Nursery
) -> None:
    """With few places, each envelope may be superseded between two steps of the writer."""
    choose = random.Random(seed)
    sink = bytearray()
    rig = Rig(StutteringStream(sink), policy=SlowPolicy.CONFLATE, capacity=2)
    rig.outbound.socket.write_now = StutteringWrite(sink, choose)
    rig.run_writer_in(nursery)
    for _ in range(300):
        rig.offer(publication(choose.randrange(40), choose.choice(["A.x", "B.x", "C.x"])))
        for _ in range(choose.randrange(3)):
            await trio.lowlevel.checkpoint()
        if rig.owner.reasons:
            break
    nursery.cancel_scope.cancel(reason="the test is over")
    rig.check_the_end()


async def tcp_pair(
    *, send_bytes: int, receive_bytes: int
) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a connection, with buffers of twice this size, as the kernel doubles it.

    Segments are small, as on the Internet; otherwise the window opens in large steps.
    """
    theirs = trio.socket.socket()
    with trio.socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        await theirs.connect(listener.getsockname())
        ours, _ = await listener.accept()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def test_a_slow_but_steady_reader_makes_progress(nursery: trio.Nursery) -> None:
    """Before the kernel takes more, 170 KB must be read, which takes longer."""
    ours, theirs = await tcp_pair(send_bytes=256 * 1024, receive_bytes=4096)
    async with ours, theirs:
        rig = Rig(ours, write_deadline=2)
        rig.offer(publication(2_000_000))
        begun = rig.outbound.heard_at
        rig.run_writer_in(nursery)
        with trio.fail_after(30):
            for _ in range(40):
                await trio.sleep(0.1)
                assert await theirs.receive_some(1000)
        assert not rig.owner.reasons
        assert rig.outbound.heard_at > begun + 2, "it is alive"
        assert rig.ledger.deliveries.queued == 1
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_client_that_does_not_read_makes_no_progress() -> None:
    ours, theirs = await tcp_pair(send_bytes=256 * 1024, receive_bytes=4096)
    async with ours, theirs:
        rig = Rig(ours, write_deadline=0.2)
        rig.offer(publication(2_000_000))
        with trio.fail_after(20):
            await rig.outbound.run_writer()
        assert rig.owner.reasons == [CloseReason.WRITE_DEADLINE]
        assert rig.outbound.report()["events"][-1].endswith("write stalled")
        rig.check_the_end()


async def test_a_large_event_is_not_copied_for_each_waiting_client(
    nursery: trio.Nursery,
) -> None:
    rigs, readers = [], []
    large = publication(1_000_000)
    for _ in range(20):
        ours, theirs = await tcp_pair(send_bytes=16 * 1024, receive_bytes=16 * 1024)
        rigs.append(Rig(ours))
        readers.append(theirs)
        rigs[-1].run_writer_in(nursery)
    tracemalloc.start()
    try:
        for rig in rigs:
            rig.offer(publication(5))
            frame = rig.offer(large)
        await trio.testing.wait_all_tasks_blocked(0.01)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 3_000_000, "one frame is that of the test"
    for rig, theirs in zip(rigs, readers, strict=True):
        with trio.fail_after(30):
            first = publication(5).frame(1)
            assert await receive_exactly(theirs, len(first + frame)) == first + frame
        assert rig.ledger.deliveries.queued == 0 or await settled(rig)
        rig.check_the_end()
        await theirs.aclose()
        await rig.outbound.aclose()


async def settled(rig: Rig) -> bool:
    await trio.testing.wait_all_tasks_blocked(0.01)
    return rig.ledger.deliveries.written == 2


async def test_an_answer_to_a_peer_that_goes_meanwhile_ends_as_broken() -> None:
    """The first event of the resume finds the peer gone, and nothing is left to be sent."""
    ours, theirs = await socket_pair()
    async with ours:
        rig = Rig(ours)
        await theirs.aclose()
        rig.outbound.socket.write_now = broken_pipe
        with pytest.raises(trio.BrokenResourceError):
            await rig.outbound.answer([Resend(resend(rig, 3).messages, lambda _: [])])
        assert rig.owner.reasons == [CloseReason.PEER_GONE]
        rig.check_the_end()


def broken_pipe(file: int, data: bytes | memoryview) -> int:
    raise BrokenPipeError


# --- batches of ticks


Ends: TypeAlias = tuple[trio.SocketStream, trio.SocketStream]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        yield ours, theirs


def batch(size: int = 20, skipped: int = 2) -> Batch:
    updates = Updates()
    for number in range(skipped + 1):
        payload = b'"%d%b"' % (number, b"x" * size)
        updates.add("A.x", NatsMessage("odin.token.A.x", payload, number, 0.0, 1), None)
    return Batch.of([(update, 0) for update in updates.after(0).updates.values()])


async def test_a_batch_is_counted_by_its_events(ends: Ends) -> None:
    left, right = ends
    rig = Rig(left)
    assert rig.outbound.take_batch(batch(), {})
    frame = batch().frame(1)
    assert await receive_exactly(right, len(frame)) == frame
    deliveries = rig.ledger.deliveries
    assert (deliveries.matched, deliveries.written, deliveries.skipped) == (3, 1, 2)
    assert deliveries.batches == 1
    assert rig.ledger.traffic.bytes_sent == len(frame)
    rig.check_the_end()


async def test_members_at_the_same_number_share_the_frame_of_a_batch() -> None:
    frames: dict[Any, bytes] = {}
    for _ in range(3):
        left, right = await socket_pair()
        async with left, right:
            assert Rig(left).outbound.take_batch(batch(), frames)
    assert list(frames) == [(PLAIN, 1)]


async def test_a_batch_that_the_socket_does_not_take_has_no_number(
    ends: Ends, nursery: trio.Nursery
) -> None:
    left, right = ends
    rig = Rig(left)
    taken = 0
    while rig.outbound.take_batch(batch(50_000), {}):
        taken += 1
    counts = attrs.asdict(rig.ledger.deliveries)
    assert not rig.outbound.take_batch(batch(), {}), "not even a small one"
    assert attrs.asdict(rig.ledger.deliveries) == counts
    assert rig.replay_buffer.seq == taken
    assert not rig.owner.reasons, "nobody is evicted for it"
    rig.run_writer_in(nursery)
    wire = b"".join(batch(50_000).frame(seq) for seq in range(1, taken + 1))
    assert await receive_exactly(right, len(wire)) == wire, "what was taken is whole"
    with trio.fail_after(5):
        while rig.ledger.deliveries.queued:
            await trio.sleep(0.01)
    assert rig.ledger.deliveries.written == taken
    assert rig.outbound.take_batch(batch(), {}), "and the next one goes out"
    rig.check_the_end()


async def test_a_batch_to_a_peer_that_has_gone_evicts_it(ends: Ends) -> None:
    left, right = ends
    rig = Rig(left)
    await right.aclose()
    assert not rig.outbound.take_batch(batch(), {})
    assert rig.owner.reasons == [CloseReason.PEER_GONE]
    assert rig.ledger.deliveries.matched == 0
    rig.check_the_end()


async def test_deferred_events_come_before_a_batch(ends: Ends) -> None:
    left, right = ends
    rig = Rig(left)
    first = rig.defer(publication())
    assert rig.outbound.take_batch(batch(), {})
    wire = first + batch().frame(2)
    assert await receive_exactly(right, len(wire)) == wire
    rig.check_the_end()


async def test_a_batch_that_is_due_waits_behind_what_waits(
    ends: Ends, nursery: trio.Nursery
) -> None:
    left, right = ends
    rig = Rig(left)
    wire = b""
    while rig.ledger.deliveries.queued == 0:
        wire += rig.offer(publication(50_000))
    last = rig.replay_buffer.seq
    rig.outbound.send_batch(batch())
    assert rig.ledger.deliveries.queued == 2
    wire += batch().frame(last + 1)
    rig.run_writer_in(nursery)
    assert await receive_exactly(right, len(wire)) == wire
    rig.check_the_end()


async def test_a_batch_without_room_is_counted_as_dropped(ends: Ends) -> None:
    left, _ = ends
    rig = Rig(left, capacity=1)
    while rig.ledger.deliveries.queued == 0:
        rig.offer(publication(50_000))
    rig.outbound.send_batch(batch())
    rig.outbound.send_batch(batch())
    deliveries = rig.ledger.deliveries
    assert deliveries.dropped[Dropped.OUTBOX_FULL] == 2
    assert deliveries.skipped == deliveries.batches == 0, "nobody was told of any"
    assert deliveries.imbalance() == 0
    rig.check_the_end()


async def test_batches_do_not_replace_each_other(ends: Ends, nursery: trio.Nursery) -> None:
    left, right = ends
    rig = Rig(left, policy=SlowPolicy.CONFLATE)
    wire = b""
    while rig.ledger.deliveries.queued == 0:
        wire += rig.offer(publication(50_000))
    last = rig.replay_buffer.seq
    rig.outbound.send_batch(batch())
    rig.outbound.send_batch(batch(30))
    assert rig.ledger.deliveries.conflated == 0
    wire += batch().frame(last + 1) + batch(30).frame(last + 2)
    rig.run_writer_in(nursery)
    assert await receive_exactly(right, len(wire)) == wire
    with trio.fail_after(5):
        while rig.ledger.deliveries.queued:
            await trio.sleep(0.01)
    assert rig.ledger.deliveries.imbalance() == 0
    rig.check_the_end()


async def test_a_socket_that_took_nothing_is_asked_before_the_next_batch(ends: Ends) -> None:
    left, right = ends
    rig = Rig(left)
    assert rig.outbound.may_take()
    with suppress(BlockingIOError):
        while True:
            os.write(left.socket.fileno(), b"x" * 50_000)
    assert rig.outbound.may_take(), "it did not take nothing yet"
    assert not rig.outbound.take_batch(batch(), {})
    assert not rig.outbound.may_take()
    heard_at = rig.outbound.heard_at
    await trio.sleep(0.01)
    assert not rig.outbound.may_take()
    assert rig.outbound.heard_at == heard_at, "nothing was read"
    os.set_blocking(right.socket.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            os.read(right.socket.fileno(), 1_000_000)
    assert rig.outbound.may_take()
    assert rig.outbound.heard_at > heard_at, "reading is a sign of life"
    rig.check_the_end()


async def test_a_batch_in_an_answer_has_its_place(ends: Ends) -> None:
    left, right = ends
    rig = Rig(left)
    await rig.outbound.answer([text_frame(b"1"), batch(), text_frame(b"2")])
    wire = text_frame(b"1") + batch().frame(1) + text_frame(b"2")
    assert await receive_exactly(right, len(wire)) == wire
    rig.outbound.stop()
    rig.outbound.send_batch(batch())
    assert rig.ledger.deliveries.batches == 1, "nothing is due to who has gone"
    rig.check_the_end()
