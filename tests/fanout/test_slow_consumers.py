from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.connection.client import LossRule, objects_of
from trio_odin.fanout.publication import Publication
from trio_odin.fanout.slow_consumers import (
    FULL_OUTBOXES_IN_A_ROW,
    Backlog,
    OutboxRules,
    QueuedMessage,
    SlowConsumerWatch,
    SlowPolicy,
)
from trio_odin.ledger.counters import Deliveries
from trio_odin.ledger.reasons import Dropped
from trio_odin.overload.byte_budget import ByteBudget


def test_the_third_full_outbox_in_a_row_evicts() -> None:
    watch = SlowConsumerWatch()
    assert [watch.outbox_full() for _ in range(4)] == [False, False, True, True]
    assert FULL_OUTBOXES_IN_A_ROW == 3


def test_a_delivery_that_fits_starts_the_count_anew() -> None:
    watch = SlowConsumerWatch()
    assert not any([watch.outbox_full(), watch.outbox_full()])
    watch.outbox_accepted()
    assert [watch.outbox_full() for _ in range(3)] == [False, False, True]


@given(st.text(st.sampled_from("f.")))
def test_eviction_is_due_exactly_when_the_last_three_found_it_full(deliveries: str) -> None:
    watch = SlowConsumerWatch()
    for end, delivery in enumerate(deliveries, start=1):
        if delivery == ".":
            watch.outbox_accepted()
        else:
            assert watch.outbox_full() == deliveries[:end].endswith("fff")


def test_watches_do_not_count_for_each_other() -> None:
    first, second = SlowConsumerWatch(), SlowConsumerWatch()
    assert not any([first.outbox_full(), first.outbox_full()])
    assert not second.outbox_full()


class Client:
    """A connection's outbox and its reader, without a socket: it reads only on request."""

    def __init__(self, rules: OutboxRules, deliveries: Deliveries) -> None:
        self.capacity = rules.capacity
        self.backlog = Backlog(rules, deliveries)
        self.deliveries = deliveries
        self.outbox: deque[QueuedMessage] = deque()
        self.seq = 0
        self.moved = 0  # envelopes put back: the cost of removing superseded ones
        self.matched: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.received: list[tuple[int, str, int]] = []  # seq, channel, skipped
        self.dropped_seqs: list[int] = []
        self.rule = LossRule()

    def offer(self, channel: str = "BTC.trade", size: int = 1, *, sent: int = 0) -> Dropped | None:
        self.seq += 1
        self.matched[channel] += 1
        self.deliveries.matched += 1
        room = self.capacity - len(self.outbox)
        message = QueuedMessage(publication(channel, size), self.seq, sent)
        refusal = self.backlog.admit(message, room=room)
        if refusal is not None:
            self.dropped[channel] += 1
            self.dropped_seqs.append(self.seq)
            return refusal
        if room < 1:
            kept = self.backlog.without_superseded(self.outbox)
            self.moved += len(kept)
            self.outbox = deque(kept)
        self.outbox.append(message)
        assert len(self.outbox) <= self.capacity
        return None

    def read(self, most: int = 1) -> None:
        """Take, write and count some envelopes, as the writer does."""
        batch: list[QueuedMessage] = []
        while self.outbox and len(batch) < most:
            message = self.outbox.popleft()
            if self.backlog.take(message):
                batch.append(message)
        self.backlog.written(len(batch), len(batch), sum(message.size for message in batch))
        for message in batch:
            message.sent = 0  # its earlier part is written as well
            (content,) = objects_of([b"".join(message.pieces())])
            skipped = content.get("skipped", 0)
            self.received.append((content["seq"], content["channel"], skipped))
            lost = sum(seq < content["seq"] for seq in self.dropped_seqs)
            assert self.rule.lost(content) == lost, "a gap is explained when it is seen"

    def check_what_was_received(self) -> None:
        """With an empty outbox: each event was received, reported as skipped, or dropped."""
        seqs = [seq for seq, _, _ in self.received]
        assert seqs == sorted(set(seqs))
        became = Counter(self.dropped)
        for _, channel, skipped in self.received:
            became[channel] += 1 + skipped
        assert became == self.matched
        gaps = self.seq - len(self.received)
        assert gaps == sum(skipped for _, _, skipped in self.received) + self.dropped.total()


def publication(channel: str = "BTC.trade", size: int = 1) -> Publication:
    return Publication(channel, b'"%b"' % (b"x" * size), offset=None, unix_ms=1)


def client(policy: str, *, capacity: int = 4, max_bytes: int = 10**9, total: int = 0) -> Client:
    rules = OutboxRules(SlowPolicy(policy), capacity, max_bytes, budget=ByteBudget(total))
    return Client(rules, Deliveries())


def seqs_waiting(client: Client) -> list[int]:
    return [message.seq for message in client.outbox if not message.is_superseded]


@pytest.mark.parametrize("policy", ["evict", "drop"])
def test_without_conflation_a_full_outbox_drops_the_newest(policy: str) -> None:
    slow = client(policy)
    assert [slow.offer() for _ in range(6)] == [None] * 4 + [Dropped.OUTBOX_FULL] * 2
    assert seqs_waiting(slow) == [1, 2, 3, 4]
    assert slow.deliveries.dropped == {Dropped.OUTBOX_FULL: 2}


def test_conflation_keeps_the_newest_envelope_of_each_channel() -> None:
    slow = client("conflate")
    for channel in ("A.a", "B.b", "A.a", "C.c", "A.a", "B.b", "A.a"):
        assert slow.offer(channel) is None
    assert seqs_waiting(slow) == [4, 6, 7]
    slow.read(9)
    assert slow.received == [(4, "C.c", 0), (6, "B.b", 1), (7, "A.a", 3)]
    assert (slow.deliveries.conflated, slow.deliveries.queued) == (4, 0)


def test_an_event_after_a_gap_has_the_number_of_skipped_events() -> None:
    slow = client("conflate")
    for channel in ("A.a", "B.b", "A.a", "C.c", "A.a", "B.b", "A.a", "C.c", "D.d"):
        assert slow.offer(channel) is None
    taken = [message for message in slow.outbox if slow.backlog.take(message)]
    told = [
        {key: event[key] for key in ("seq", "skipped", "skipped_total") if key in event}
        for event in objects_of(b"".join(message.pieces()) for message in taken)
    ]
    assert told == [
        {"seq": 6, "skipped": 1, "skipped_total": 5},
        {"seq": 7, "skipped": 3},
        {"seq": 8, "skipped": 1},
        {"seq": 9},
    ]


def test_conflation_begins_before_the_outbox_is_full() -> None:
    slow = client("conflate", capacity=100)
    for _ in range(3):
        slow.offer()
    slow.read(9)
    assert slow.received == [(3, "BTC.trade", 2)]


def test_a_half_written_envelope_is_finished_and_not_conflated() -> None:
    slow = client("conflate")
    slow.offer(sent=10)
    slow.offer()
    slow.offer()
    slow.read(9)
    assert slow.received == [(1, "BTC.trade", 0), (3, "BTC.trade", 1)]


def test_an_envelope_taken_by_the_writer_is_never_superseded() -> None:
    slow = client("conflate")
    slow.offer()
    taken = slow.outbox.popleft()
    assert slow.backlog.take(taken)
    slow.offer()
    assert not taken.is_superseded
    assert seqs_waiting(slow) == [2]


def test_more_channels_than_places_fill_the_outbox() -> None:
    slow = client("conflate", capacity=4)
    for channel in ("A.a", "B.b", "C.c", "D.d"):
        assert slow.offer(channel) is None
    assert slow.offer("E.e") is Dropped.OUTBOX_FULL
    assert slow.offer("A.a") is None
    assert seqs_waiting(slow) == [2, 3, 4, 5 + 1]


def test_superseded_and_skipped_events_make_no_room_later() -> None:
    slow = client("conflate", capacity=2)
    slow.offer("A.a")
    slow.offer("A.a")
    slow.read()
    refusals = [slow.offer(channel) for channel in ("B.b", "C.c", "D.d")]
    assert refusals == [None, None, Dropped.OUTBOX_FULL]


@pytest.mark.parametrize(("policy", "is_evicted"), [("evict", 1), ("conflate", 1), ("drop", 0)])
def test_only_clients_that_may_miss_events_are_never_too_slow(
    policy: str, *, is_evicted: bool
) -> None:
    backlog = client(policy).backlog
    verdicts = [backlog.is_too_slow(had_room=False) for _ in range(3)]
    assert verdicts == [False, False, is_evicted]
    assert not backlog.is_too_slow(had_room=True)
    assert not backlog.is_too_slow(had_room=False)


def test_bytes_over_the_limit_of_a_connection_are_refused() -> None:
    size = publication().frame_bytes(1)
    slow = client("evict", max_bytes=2 * size)
    assert [slow.offer() for _ in range(3)] == [None, None, Dropped.OUTBOX_BYTES]
    slow.read()
    assert slow.offer() is None


def test_an_envelope_over_the_limit_goes_out_if_nothing_else_waits() -> None:
    slow = client("conflate", max_bytes=50, total=50)
    assert slow.offer(size=1000) is None
    assert slow.offer("ETH.trade") is Dropped.OUTBOX_BYTES
    assert slow.offer(size=2000) is None  # in place of the first one
    slow.read()
    assert slow.received == [(3, "BTC.trade", 1)]
    assert slow.backlog.bytes == 0


def test_the_shared_limit_is_named_only_if_it_is_the_sole_reason() -> None:
    size = publication().frame_bytes(1)
    rules = OutboxRules(capacity=3, max_bytes=3 * size, budget=ByteBudget(4 * size))
    one, other = Client(rules, Deliveries()), Client(rules, Deliveries())
    assert [one.offer() for _ in range(4)] == [None] * 3 + [Dropped.OUTBOX_FULL]
    assert [other.offer() for _ in range(2)] == [None, Dropped.TOTAL_OUTBOX_BYTES]
    one.read()
    assert other.offer() is None
    one.backlog.abandon()
    other.backlog.abandon()
    assert rules.budget.used_bytes == 0


def test_a_reply_is_never_refused_but_takes_its_share_of_the_bytes() -> None:
    slow = client("evict", max_bytes=1000)
    slow.backlog.reply_waits(5000)
    assert slow.offer() is Dropped.OUTBOX_BYTES
    slow.backlog.written(0, 0, 5000)
    assert slow.offer() is None


def test_a_replacement_that_is_not_larger_is_never_too_much() -> None:
    slow = client("conflate", max_bytes=1000)
    slow.offer(size=100)
    slow.backlog.reply_waits(5000)
    assert slow.offer(size=101) is Dropped.OUTBOX_BYTES
    assert slow.offer(size=50) is None


def test_an_envelope_abandoned_during_its_write_is_dropped_once() -> None:
    slow = client("evict")
    slow.offer()
    slow.backlog.abandon()
    slow.read()
    assert slow.deliveries.dropped == {Dropped.CLOSING: 1}
    assert slow.deliveries.written == slow.deliveries.imbalance() == slow.backlog.bytes == 0


@pytest.mark.parametrize("channels", [1, 100, 440, 505, 511, 512, 600])
def test_removing_superseded_envelopes_is_cheap_for_each_envelope(channels: int) -> None:
    slow = client("conflate", capacity=512)
    for number in range(20_000):
        slow.offer(f"A{number % channels}.a")
    assert slow.moved <= 8 * 20_000
    assert slow.deliveries.imbalance() == 0


@given(seq=st.integers(1, 10**12), skipped=st.integers(0, 10**7), size=st.integers(0, 70_000))
def test_the_length_of_a_frame_is_known_before_it_is_made(
    seq: int, skipped: int, size: int
) -> None:
    message = QueuedMessage(publication(size=size), seq, skipped=skipped)
    assert message.size == len(b"".join(message.pieces()))


@given(
    policy=st.sampled_from(["evict", "conflate", "drop"]),
    capacity=st.integers(1, 12),
    max_bytes=st.sampled_from([100, 400, 10**9]),
    steps=st.lists(
        st.tuples(st.sampled_from(["A.a", "B.b", "C.c", "D.d"]), st.integers(1, 99))
        | st.integers(1, 5),
        max_size=60,
    ),
)
@settings(max_examples=300)
def test_each_event_is_received_or_counted_as_skipped_or_dropped(
    policy: str,
    capacity: int,
    max_bytes: int,
    steps: list[tuple[str, int] | int],
) -> None:
    slow = client(policy, capacity=capacity, max_bytes=max_bytes)
    for step in steps:
        if isinstance(step, int):
            slow.read(step)
        else:
            slow.offer(*step)
    slow.read(10**9)
    slow.check_what_was_received()
    conflated = sum(skipped for _, _, skipped in slow.received)
    assert slow.deliveries.conflated == conflated
    assert not conflated or policy == "conflate"
    assert slow.deliveries.written == len(slow.received)
    assert slow.deliveries.dropped.total() == slow.dropped.total()
    assert slow.backlog.bytes == slow.deliveries.imbalance() == 0


class Outboxes(RuleBasedStateMachine):
    """Two connections with one budget: the counters balance, and the bytes are those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = Deliveries()
        self.all_rules = OutboxRules(SlowPolicy.CONFLATE, 5, 900, budget=ByteBudget(1500))
        self.clients = [Client(self.all_rules, self.deliveries) for _ in range(2)]
        self.replies = [0, 0]

    @rule(who=st.integers(0, 1), channel=st.sampled_from("ABCDEFG"), size=st.integers(1, 200))
    def offer(self, who: int, channel: str, size: int) -> None:
        self.clients[who].offer(f"{channel}.a", size)

    @rule(who=st.integers(0, 1), most=st.integers(1, 4))
    def read(self, who: int, most: int) -> None:
        self.clients[who].read(most)

    @rule(who=st.integers(0, 1), size=st.integers(1, 500))
    def reply(self, who: int, size: int) -> None:
        self.clients[who].backlog.reply_waits(size)
        self.replies[who] += size

    @rule(who=st.integers(0, 1))
    def take_replies(self, who: int) -> None:
        self.clients[who].backlog.written(0, 0, self.replies[who])
        self.replies[who] = 0

    @rule(who=st.integers(0, 1))
    def leave_and_come_back(self, who: int) -> None:
        self.clients[who].backlog.abandon()
        self.clients[who] = Client(self.all_rules, self.deliveries)
        self.replies[who] = 0

    @invariant()
    def bytes_are_those_that_wait(self) -> None:
        for client, replies in zip(self.clients, self.replies, strict=True):
            waiting = [e for e in client.outbox if not e.is_superseded]
            assert client.backlog.bytes == replies + sum(e.size for e in waiting)
            assert client.backlog.messages == len(waiting)
        assert self.all_rules.budget.used_bytes == sum(c.backlog.bytes for c in self.clients)

    @invariant()
    def the_books_balance(self) -> None:
        assert self.deliveries.imbalance() == 0
        assert self.deliveries.queued == sum(c.backlog.messages for c in self.clients)

    def teardown(self) -> None:
        for client in self.clients:
            client.backlog.abandon()
        assert self.all_rules.budget.used_bytes == self.deliveries.queued == 0


TestOutboxes = Outboxes.TestCase
TestOutboxes.settings = settings(max_examples=100, stateful_step_count=40)
