"""The accounts of ticks: rule by rule, and against a plain model of each connection."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.fleet.wire import NS_PER_MS, Sent, batch
from trio_odin.lab.fleet import books as books_module
from trio_odin.lab.fleet.batches import tallies
from trio_odin.lab.fleet.books import Books, Received, Subscriber
from trio_odin.lab.fleet.dialects import DIALECTS
from trio_odin.lab.fleet.events import KINDS

BTC, ETH, SOL = "BTC.trade", "ETH.trade", "SOL.trade"


@pytest.fixture(params=KINDS)
def books(request: pytest.FixtureRequest) -> Books:
    return Books(DIALECTS["odin"], KINDS[request.param])


def take(books: Books, subscriber: Subscriber, *units: bytes) -> None:
    for unit in units:
        assert books.take_known(subscriber, unit, 0) or books.take(subscriber, unit, 0)


def figures(books: Books) -> dict[str, Any]:
    found = attrs.asdict(books.collect(), recurse=False)
    del found["buckets"]
    found["deliveries"] = {(e.channel, e.number): e.times for e in found["deliveries"]}
    return {name: value for name, value in found.items() if value}


def tallies_of(books: Books, *subscribers: Subscriber) -> list[tuple[str, int, int, int]]:
    return sorted((*tally,) for tally in tallies(map(books.standing_of, subscribers)))


def test_each_event_of_a_batch_is_received_and_the_batch_is_one_message(books: Books) -> None:
    subscriber = Subscriber([BTC, ETH])
    take(books, subscriber, batch(1, Sent(4, BTC), Sent(2, ETH)), batch(2, Sent(5, BTC, 4)))
    assert figures(books) == {
        "received": 3,
        "frames": 2,
        "deliveries": {(BTC, 4): 1, (ETH, 2): 1, (BTC, 5): 1},
    }
    assert tallies_of(books, subscriber) == [(BTC, 2, 0, 1), (ETH, 1, 0, 1)]


def test_skipped_events_are_accounted_for(books: Books) -> None:
    subscriber = Subscriber([BTC])
    take(books, subscriber, batch(1, Sent(4, BTC, 3, 2)), batch(2, Sent(9, BTC, 8, 4)))
    assert books.skipped == 6
    assert figures(books)["skipped"] == 6
    assert books.skipped == 6
    assert tallies_of(books, subscriber) == [(BTC, 2, 6, 1)]


def test_a_break_of_the_chain_is_unexplained_unless_something_was_skipped(books: Books) -> None:
    subscriber = Subscriber([BTC])
    take(books, subscriber, batch(1, Sent(4, BTC, 3)), batch(2, Sent(9, BTC, 8)))
    assert figures(books)["unexplained"] == 1
    take(books, subscriber, batch(3, Sent(12, BTC, 11, 2)), batch(4, Sent(13, BTC, 12)))
    assert "unexplained" not in figures(books)


def test_the_order_is_that_of_each_channel(books: Books) -> None:
    subscriber = Subscriber([BTC, ETH])
    take(books, subscriber, batch(1, Sent(9, BTC)), batch(2, Sent(3, ETH)))
    assert "repeated" not in figures(books)
    take(books, subscriber, batch(3, Sent(9, BTC), Sent(2, ETH), Sent(4, ETH)))
    found = figures(books)
    assert (found["repeated"], found["received"]) == (2, 3)
    assert found["deliveries"] == {(BTC, 9): 0, (ETH, 2): 0, (ETH, 4): 1}


def test_a_batch_of_a_repeated_number_is_repeated_whole(books: Books) -> None:
    subscriber = Subscriber([BTC, ETH])
    take(books, subscriber, batch(3, Sent(1, BTC)), batch(3, Sent(2, BTC), Sent(3, ETH)))
    found = figures(books)
    assert (found["gaps"], found["repeated"]) == (2, 2)
    assert found["deliveries"] == {(BTC, 1): 1, (BTC, 2): 0, (ETH, 3): 0}


def test_an_event_of_an_unsubscribed_channel_is_foreign(books: Books) -> None:
    take(books, Subscriber([BTC]), batch(1, Sent(1, BTC), Sent(2, SOL)))
    assert figures(books)["foreign"] == 1


def test_a_single_event_before_which_others_gave_way_is_accounted_for(books: Books) -> None:
    unit = (
        b'{"seq":1,"ts":5,"type":"price:update","data":{"n":7,"t":5,"c":"BTC.trade","pad":""},'
        b'"channel":"BTC.trade","offset":7,"skipped":3}'
    )
    subscriber = Subscriber([BTC])
    take(books, subscriber, unit)
    assert figures(books)["skipped"] == 3
    assert tallies_of(books, subscriber) == [(BTC, 1, 3, 1)]


def test_members_share_a_standing_and_a_latecomer_has_its_own(books: Books) -> None:
    one, two, late = Subscriber([BTC]), Subscriber([BTC]), Subscriber([BTC])
    for member in (one, two):
        take(books, member, batch(1, Sent(1, BTC)))
    for number, member in ((2, one), (2, two), (1, late)):
        take(books, member, batch(number, Sent(3, BTC, 2, 1)))
    assert one.standing is two.standing is not late.standing
    assert tallies_of(books, one, two, late) == [(BTC, 1, 1, 1), (BTC, 2, 1, 2)]


def test_a_connection_without_any_batch_accounts_for_nothing(books: Books) -> None:
    silent, uncounted = Subscriber([BTC, ETH]), Subscriber([SOL])
    uncounted.is_counted = False
    assert tallies_of(books, silent, uncounted) == [(BTC, 0, 0, 1), (ETH, 0, 0, 1)]


def test_after_a_reconnect_the_order_holds_but_not_the_chain(books: Books) -> None:
    subscriber = Subscriber([BTC])
    take(books, subscriber, batch(1, Sent(4, BTC)))
    subscriber.standing = books.standing_of(subscriber).after_a_break()
    subscriber.seq = 0
    take(books, subscriber, batch(1, Sent(4, BTC), Sent(9, BTC, 8)))
    found = figures(books)
    assert (found["repeated"], "unexplained" in found) == (1, False)


def test_latencies_are_those_of_every_event_and_connection() -> None:
    books = Books(DIALECTS["odin"], KINDS["bench"])
    unit = batch(1, Sent(1, BTC, due_ms=10), Sent(2, ETH, due_ms=30))
    for late_ms in (40, 40, 50):
        subscriber = Subscriber([BTC, ETH])
        subscriber.steps = bytearray()
        assert books.take(subscriber, unit, late_ms * NS_PER_MS)
        assert len(subscriber.steps) == 1
    assert books.collect().buckets == {300: 2, 100: 2, 400: 1, 200: 1}


@pytest.mark.parametrize(
    "unit",
    [
        b'{"seq":1,"ts":1,"type":"price:batch","events":[]}',
        b'{"seq":1,"ts":1,"type":"price:batch","events":{}}',
        b'{"seq":1,"ts":1,"type":"price:batch","events":[{"channel":"BTC.trade"}]}',
        b'{"seq":1,"ts":1,"type":"price:batch"}',
        batch(1, Sent(1, BTC))[:-1],
    ],
)
def test_a_batch_that_cannot_be_read_changes_nothing(books: Books, unit: bytes) -> None:
    subscriber = Subscriber([BTC])
    assert not books.take_known(subscriber, unit, 0)
    assert not books.take(subscriber, unit, 0)
    assert (subscriber.seq, figures(books)) == (0, {})


# --- against a plain model


@attrs.frozen
class Tick:
    """One batch, received by some of the subscribers, the others never get it."""

    events: list[Sent]
    receivers: list[int]
    is_collected: bool


SENT = st.builds(
    Sent,
    number=st.integers(1, 12),
    channel=st.sampled_from([BTC, ETH, SOL]),
    prev=st.integers(0, 12),
    skipped=st.integers(0, 3),
    due_ms=st.just(10),
)
TICKS = st.lists(
    st.builds(
        Tick,
        events=st.lists(SENT, min_size=1, max_size=5, unique_by=lambda sent: sent),
        receivers=st.lists(st.integers(0, 3), max_size=5),
        is_collected=st.booleans(),
    ),
    max_size=12,
)
SUBSCRIPTIONS = [{BTC, ETH}, {BTC, ETH}, {BTC}, {BTC, ETH, SOL}]  # the last one is not counted


class Model:
    """One connection, event by event."""

    def __init__(self, channels: set[str]) -> None:
        self.channels = channels
        self.last = dict.fromkeys([BTC, ETH, SOL], 0)
        self.received: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def take(self, sent: Sent, totals: Counter[str]) -> bool:
        totals["received"] += 1
        if sent.channel not in self.channels:
            totals["foreign"] += 1
            return False
        last = self.last[sent.channel]
        if sent.number <= last:
            totals["repeated"] += 1
            return False
        if not sent.skipped and sent.prev and last and sent.prev != last:
            totals["unexplained"] += 1
        self.last[sent.channel] = sent.number
        self.received[sent.channel] += 1
        self.skipped[sent.channel] += sent.skipped
        totals["skipped"] += sent.skipped
        return True


class Found:
    """The sums of several collects."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.times: Counter[tuple[str, int]] = Counter()

    def add(self, collected: Received) -> None:
        for name in ("received", "foreign", "repeated", "unexplained", "skipped", "frames"):
            self.totals[name] += getattr(collected, name)
        for entry in collected.deliveries:
            self.times[entry.channel, entry.number] += entry.times
        assert collected.gaps == 0


@settings(max_examples=150)
@given(TICKS, st.sampled_from(sorted(KINDS)), st.sampled_from([1, 10**6]))
def test_the_accounts_agree_with_those_of_each_connection_alone(
    ticks: list[Tick], kind: str, known_max_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(books_module, "_KNOWN_MAX_BYTES", known_max_bytes)
        books = Books(DIALECTS["odin"], KINDS[kind])
        subscribers = [Subscriber(channels) for channels in SUBSCRIPTIONS]
        subscribers[3].is_counted = False
        models = [Model(channels) for channels in SUBSCRIPTIONS]
        totals: Counter[str] = Counter()
        times: Counter[tuple[str, int]] = Counter()
        found = Found()
        for tick in ticks:
            for number in tick.receivers:
                subscriber = subscribers[number]
                take(books, subscriber, batch(subscriber.seq + 1, *tick.events))
                totals["frames"] += 1
                for sent in tick.events:
                    if models[number].take(sent, totals) and subscriber.is_counted:
                        times[sent.channel, sent.number] += 1
            if tick.is_collected:
                found.add(books.collect())
        found.add(books.collect())
    assert (+found.totals, +found.times) == (+totals, +times)
    expected: Counter[tuple[str, int, int]] = Counter()
    for model in models[:3]:
        for channel in model.channels:
            expected[channel, model.received[channel], model.skipped[channel]] += 1
    assert {key[:3]: key[3] for key in tallies_of(books, *subscribers)} == expected
