from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.core.closing import CloseReason
from trio_odin.core.frame import PING, close_frame, text_frame
from trio_odin.core.history import History
from trio_odin.core.ledger import Dropped, Ledger
from trio_odin.core.publication import Publication
from trio_odin.server.outlet import Outlet


class OwnerOfOne:
    """Remembers what its outlet told it; evicts as a connection does, by stopping the outlet."""

    def __init__(self) -> None:
        self.reasons: list[CloseReason] = []
        self.closed = False
        self.close_frame_is_out = False
        self.outlet: Outlet | None = None

    def evict(self, reason: CloseReason) -> None:
        self.reasons.append(reason)
        if self.outlet is not None:
            self.outlet.stop()

    def stream_closed(self) -> None:
        self.closed = True

    def close_frame_sent(self) -> None:
        self.close_frame_is_out = True


class Rig:
    """An outlet over `stream`, and its books."""

    def __init__(self, stream: trio.abc.Stream, *, capacity: int = 512) -> None:
        self.owner = OwnerOfOne()
        self.ledger = Ledger()
        self.history = History(100)
        self.outlet = Outlet(
            stream,
            history=self.history,
            capacity=capacity,
            write_deadline_seconds=5,
            ledger=self.ledger,
            owner=self.owner,
        )
        self.owner.outlet = self.outlet

    def offer(self, publication: Publication) -> bytes:
        """Offer the next envelope and keep the books as the hub does. Returns its frame."""
        sent = self.outlet.deliver(publication, {})
        frame = publication.frame(self.history.seq)
        self.ledger.deliveries.matched += 1
        self.ledger.deliveries.written += sent > 0
        self.ledger.traffic.bytes_sent += sent
        assert self.ledger.deliveries.imbalance() == 0
        return frame

    def defer(self, publication: Publication) -> bytes:
        """The same for a round that is joined: the hub flushes at its end."""
        self.outlet.defer(publication)
        self.ledger.deliveries.matched += 1
        self.ledger.deliveries.queued += 1
        assert self.ledger.deliveries.imbalance() == 0
        return publication.frame(self.history.seq)


def publication(size: int = 20) -> Publication:
    return Publication("BTC.trade", b'"%b"' % (b"x" * size), offset=1, unix_ms=1)


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


async def test_offering_is_not_a_checkpoint() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours, capacity=1)
        with trio.testing.assert_no_checkpoints():
            for _ in range(5):
                rig.offer(publication(200_000))


async def test_what_the_socket_does_not_take_waits_and_arrives_in_order(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        expected = b"".join([rig.offer(publication(30_000)) for _ in range(40)])
        assert rig.ledger.deliveries.queued > 0
        nursery.start_soon(rig.outlet.run_writer)
        assert await receive_exactly(theirs, len(expected)) == expected
        await trio.testing.wait_all_tasks_blocked()
        assert rig.ledger.deliveries.queued == 0
        assert rig.ledger.deliveries.written == 40
        assert rig.ledger.traffic.bytes_sent == len(expected)
        # And the direct way is open again.
        frame = rig.offer(publication())
        assert rig.ledger.deliveries.written == 41
        assert await receive_exactly(theirs, len(frame)) == frame


async def test_a_reply_waits_for_its_turn_behind_queued_envelopes(nursery: trio.Nursery) -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        expected = b"".join([rig.offer(publication(30_000)) for _ in range(40)])
        reply = text_frame(b'{"type":"pong"}')
        nursery.start_soon(rig.outlet.run_writer)
        nursery.start_soon(rig.outlet.send_all, reply)
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
    assert rig.ledger.deliveries.queued == 0


async def test_an_envelope_that_fits_between_makes_the_count_start_anew(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, capacity=1)
    nursery.start_soon(rig.outlet.run_writer)
    for _ in range(4):
        rig.offer(publication())
        rig.offer(publication())
        rig.offer(publication())
        await receive_exactly(theirs, len(publication().frame(1)))
        await trio.testing.wait_all_tasks_blocked()
    assert rig.owner.reasons == []
    assert rig.ledger.deliveries.dropped[Dropped.OUTBOX_FULL] > 3


async def test_a_write_without_progress_for_its_deadline_evicts(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours)
    rig.offer(publication())
    started = trio.current_time()
    await rig.outlet.run_writer()
    assert rig.owner.reasons == [CloseReason.WRITE_DEADLINE]
    assert trio.current_time() - started == pytest.approx(5)
    assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}


async def test_a_slow_reader_that_makes_progress_is_not_evicted(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours)
    expected = b"".join([rig.offer(publication(10_000)) for _ in range(20)])
    nursery.start_soon(rig.outlet.run_writer)
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


async def test_a_stopped_outlet_knows_no_file_number_any_more() -> None:
    """The number may belong to another connection by now: its client must not get our bytes."""
    ours, theirs = await socket_pair()
    rig = Rig(ours)
    await rig.outlet.aclose()
    heir, heirs_peer = await socket_pair()
    rig.offer(publication())
    rig.outlet.ping()
    with pytest.raises(trio.BrokenResourceError):
        await rig.outlet.send_all(b"x")
    assert rig.owner.closed
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
        rig.outlet.stop(b"farewell")
        assert await theirs.receive_some() == b"farewell"
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        frame = rig.offer(publication(2_000_000))  # more than the socket takes: torn
        assert rig.ledger.deliveries.queued == 1
        taken = await theirs.receive_some(1000)  # room again
        rig.outlet.stop(b"farewell")
        await ours.aclose()
        while chunk := await theirs.receive_some():
            taken += chunk
        assert frame.startswith(taken)


async def test_a_ping_is_skipped_while_something_waits() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours)
    rig.offer(publication())
    rig.outlet.ping()
    assert rig.ledger.deliveries.queued == 1
    assert rig.ledger.traffic.bytes_sent == 0


class StutteringWrite:
    """Takes a random number of bytes each time, as a socket with little room does."""

    def __init__(self, sink: bytearray, choose: random.Random) -> None:
        self._sink = sink
        self._choose = choose

    def __call__(self, file: int, data: bytes) -> int:
        room = self._choose.choice([0, 1, 2, len(data) // 2, len(data), len(data) + 9])
        if not room:
            raise BlockingIOError
        self._sink += data[:room]
        return min(room, len(data))


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
        st.sampled_from(["offer", "defer", "flush", "reply", "ping", "run"]), max_size=80
    ),
    seed=st.integers(0, 2**32),
    is_left=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_frame_ever_lands_in_another_whatever_the_socket_takes(
    steps: list[str], seed: int, *, is_left: bool
) -> None:
    sink = bytearray()
    frames: list[bytes] = []

    async def scenario() -> None:
        rig = Rig(StutteringStream(sink))
        rig.outlet._write_now = StutteringWrite(sink, random.Random(seed))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.outlet.run_writer)
            for number, step in enumerate(steps):
                if step == "offer":
                    rig.outlet.flush()  # as the hub does at the end of a round
                    frames.append(rig.offer(publication(number)))
                elif step == "defer":
                    frames.append(rig.defer(publication(number)))
                elif step == "flush":
                    rig.outlet.flush()
                elif step == "reply":
                    reply = text_frame(b'{"reply":%d}' % number)
                    frames.append(reply)
                    nursery.start_soon(rig.outlet.send_all, reply)
                    # A reply takes its place when its task first runs; keep the model's order.
                    await trio.testing.wait_all_tasks_blocked()
                elif step == "ping":
                    rig.outlet.ping()
                else:
                    await trio.lowlevel.checkpoint()
            if is_left:
                assert rig.outlet.close(close_frame(1001, "bye"))
                frames.append(close_frame(1001, "bye"))
                rig.offer(publication())  # too late: it is dropped
                await trio.testing.wait_all_tasks_blocked()
                assert rig.owner.close_frame_is_out
            rig.outlet.flush()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the test is over")
        assert rig.ledger.deliveries.imbalance() == 0
        assert rig.ledger.deliveries.dropped.total() == is_left
        assert rig.ledger.deliveries.queued == 0

    trio.run(scenario)
    assert without_pings(bytes(sink), frames) == b"".join(frames)


def without_pings(wire: bytes, frames: list[bytes]) -> bytes:
    """Take out each ping that stands between two of `frames`; nothing else may be there."""
    rest, kept = wire, b""
    for frame in frames:
        while rest.startswith(PING):
            rest = rest[len(PING) :]
        assert rest.startswith(frame)
        rest, kept = rest[len(frame) :], kept + frame
    while rest.startswith(PING):
        rest = rest[len(PING) :]
    return kept + rest


async def test_what_was_deferred_goes_out_in_one_write() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        writes: list[bytes] = []

        def write(file: int, data: bytes) -> int:
            writes.append(data)
            return os.write(file, data)

        rig.outlet._write_now = write
        frames = [rig.defer(publication(size)) for size in range(5)]
        rig.outlet.flush()
        rig.outlet.flush()
        assert writes == [b"".join(frames)]
        assert rig.ledger.deliveries.written == 5
        assert rig.ledger.traffic.bytes_sent == len(writes[0])
        assert await receive_exactly(theirs, len(writes[0])) == writes[0]


async def test_a_joined_write_has_a_bound_of_its_own() -> None:
    """Sixty-four events of a megabyte each must not be put together in memory."""
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        sizes: list[int] = []

        def write(file: int, data: bytes) -> int:
            sizes.append(len(data))
            return len(data)

        rig.outlet._write_now = write
        frames = [rig.defer(publication(30_000)) for _ in range(10)]
        rig.outlet.flush()
        assert sum(sizes) == sum(map(len, frames))
        assert max(sizes) < 64 * 1024 + 31_000
        assert rig.ledger.deliveries.written == 10


async def test_one_flush_counts_as_one_full_outbox() -> None:
    """The writer had no turn in between: it is not three failures in a row."""
    ours, _theirs = trio.testing.lockstep_stream_pair()
    rig = Rig(ours, capacity=2)
    for number in range(1, 4):
        for _ in range(10):
            rig.defer(publication())
        assert not rig.owner.reasons
        rig.outlet.flush()
        assert bool(rig.owner.reasons) == (number == 3)
    assert rig.owner.reasons == [CloseReason.OUTBOX_FULL]
    assert rig.ledger.deliveries.imbalance() == 0


async def test_deferred_envelopes_are_bounded() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        for _ in range(200):
            rig.defer(publication())
        assert rig.ledger.deliveries.queued < 64
        assert rig.ledger.deliveries.written > 200 - 64


async def test_what_is_deferred_when_the_connection_ends_is_booked_as_dropped() -> None:
    ours, theirs = await socket_pair()
    async with ours, theirs:
        rig = Rig(ours)
        rig.defer(publication())
        rig.outlet.stop()
        rig.outlet.flush()
        assert rig.ledger.deliveries.dropped == {Dropped.CLOSING: 1}
        assert rig.ledger.deliveries.imbalance() == 0


def test_the_stutter_can_tear_a_frame() -> None:
    """The property above is worth something only if frames do get torn."""
    sink = bytearray()
    write: Callable[[int, bytes], int] = StutteringWrite(sink, random.Random(1))
    outcomes = set()
    for _ in range(100):
        try:
            outcomes.add(write(-1, b"0123456789"))
        except BlockingIOError:
            outcomes.add(0)
    assert outcomes == {0, 1, 2, 5, 10}
