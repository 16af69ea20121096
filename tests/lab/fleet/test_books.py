from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.lab.fleet import books as books_module
from trio_odin.lab.fleet.books import Books, Deliveries, Subscriber
from trio_odin.lab.fleet.dialects import DIALECTS
from trio_odin.lab.fleet.events import KINDS, Event, payload_of

BTC, ETH, SOL = "BTC.trade", "ETH.trade", "SOL.trade"
NS_PER_MS = 1_000_000


def unit_of(seq: int, number: int, channel: str = BTC, *, due_ms: int = 0) -> bytes:
    """An envelope around an event of the bench; without `seq` if that is 0."""
    payload = payload_of(Event(number, due_ms * NS_PER_MS, channel), 60)
    return numbered(seq, b'"channel":"%b","data":%b' % (channel.encode(), payload))


def market_unit(seq: int, number: int, channel: str, *, has_offset: bool, due_ms: int = 0) -> bytes:
    """An envelope around an event of the market; `number` is its offset, or a price."""
    named = b',"channel":"%b"' % channel.encode() if channel else b""
    offset = b',"offset":%d' % number if has_offset else b""
    data = b'{"price":%d,"timestamp":%d}' % (number, due_ms) if due_ms else b"[%d]" % number
    return numbered(seq, b'"ts":%d,"data":%b%b%b' % (1000 + seq, data, named, offset))


def numbered(seq: int, rest: bytes) -> bytes:
    return b'{"seq":%d,%b}' % (seq, rest) if seq else b"{%b}" % rest


def books_of(kind: str = "bench") -> Books:
    return Books(DIALECTS["odin"], KINDS[kind])


@pytest.fixture
def books() -> Books:
    return books_of()


def figures(books: Books) -> dict[str, Any]:
    """The collected figures, with the times of deliveries by number and channel."""
    collected = attrs.asdict(books.collect(), recurse=False)
    collected["deliveries"] = {(e.number, e.channel): e.times for e in collected["deliveries"]}
    return collected


def of_numbers(books: Books) -> dict[str, Any]:
    """The same by number only, without the latencies, and without what only batches have."""
    found = figures(books)
    assert found.pop("frames") == found["received"]
    assert (found.pop("skipped"), found.pop("unexplained")) == (0, 0)
    del found["buckets"]
    found["deliveries"] = {number: times for (number, _), times in found["deliveries"].items()}
    return found


def expected(**changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "received": 0,
        "deliveries": {},
        "gaps": 0,
        "repeated": 0,
        "foreign": 0,
    }
    return nothing | changes


def take(books: Books, subscriber: Subscriber, *units: bytes) -> None:
    for unit in units:
        assert books.take(subscriber, unit, 0)


# --- rule by rule


def test_events_in_order_are_received_and_nothing_else(books: Books) -> None:
    take(books, Subscriber([BTC, ETH]), *(unit_of(n, n, (BTC, ETH)[n % 2]) for n in (1, 2, 3)))
    assert of_numbers(books) == expected(received=3, deliveries={1: 1, 2: 1, 3: 1})


def test_a_jump_of_the_number_is_a_gap_of_that_length(books: Books) -> None:
    take(books, Subscriber([BTC]), unit_of(2, 1), unit_of(3, 2), unit_of(7, 3))
    assert of_numbers(books)["gaps"] == 1 + 3


def test_events_without_numbers_have_no_gaps(books: Books) -> None:
    take(books, Subscriber([BTC]), unit_of(0, 5), unit_of(0, 9))
    assert of_numbers(books) == expected(received=2, deliveries={5: 1, 9: 1})


def test_a_repeated_or_late_number_is_counted_as_repeated(books: Books) -> None:
    take(books, Subscriber([BTC]), unit_of(3, 1), unit_of(3, 2), unit_of(2, 3), unit_of(4, 4))
    assert of_numbers(books) == expected(
        received=4, gaps=2, repeated=2, deliveries={1: 1, 2: 0, 3: 0, 4: 1}
    )


def test_a_repeated_or_late_event_is_counted_as_repeated(books: Books) -> None:
    take(books, Subscriber([BTC]), *(unit_of(s, n) for s, n in ((1, 4), (2, 4), (3, 3), (4, 5))))
    assert of_numbers(books) == expected(received=4, repeated=2, deliveries={3: 0, 4: 1, 5: 1})


def test_an_event_of_an_unsubscribed_channel_is_foreign(books: Books) -> None:
    take(books, Subscriber([BTC]), unit_of(1, 1, BTC), unit_of(2, 2, SOL), unit_of(3, 3, ETH))
    assert of_numbers(books) == expected(received=3, foreign=2, deliveries={1: 1, 2: 0, 3: 0})


def test_an_event_of_a_server_that_names_no_channel_is_not_foreign() -> None:
    books = books_of("market")
    take(books, Subscriber([BTC]), market_unit(1, 7, "", has_offset=False))
    found = figures(books)
    assert (found["received"], found["foreign"]) == (1, 0)
    assert sum(found["buckets"].values()) == 1


def test_each_connection_has_its_own_order_and_counts_for_an_event(books: Books) -> None:
    one, two = Subscriber([BTC]), Subscriber([BTC])
    take(books, one, unit_of(1, 1), unit_of(2, 2))
    take(books, two, unit_of(1, 1), unit_of(3, 2))
    assert of_numbers(books) == expected(received=4, gaps=1, deliveries={1: 2, 2: 2})


def test_an_uncounted_subscriber_is_in_all_figures_but_deliveries(books: Books) -> None:
    subscriber = Subscriber([BTC])
    subscriber.is_counted = False
    take(books, subscriber, unit_of(1, 1), unit_of(4, 2), unit_of(4, 2), unit_of(5, 3, SOL))
    found = figures(books)
    assert (found["received"], found["gaps"], found["repeated"], found["foreign"]) == (4, 2, 1, 1)
    assert sum(found["buckets"].values()) == 2
    assert set(found["deliveries"].values()) == {0}


def test_a_collect_restarts_the_figures_but_not_the_order(books: Books) -> None:
    subscriber = Subscriber([BTC])
    take(books, subscriber, unit_of(1, 1), unit_of(3, 2))
    figures(books)
    assert of_numbers(books) == expected()
    take(books, subscriber, unit_of(4, 2), unit_of(5, 3))
    assert of_numbers(books) == expected(received=2, repeated=1, deliveries={2: 0, 3: 1})
    assert books.total == 4


def test_events_of_the_same_number_are_distinguished_by_channel(books: Books) -> None:
    one, two = Subscriber([BTC]), Subscriber([ETH])
    take(books, one, unit_of(1, 1, BTC))
    take(books, two, unit_of(1, 1, ETH))
    assert figures(books)["deliveries"] == {(1, BTC): 1, (1, ETH): 1}


def test_a_delivery_has_the_due_time_of_its_event(books: Books) -> None:
    take(books, Subscriber([BTC]), unit_of(1, 5, due_ms=3))
    assert books.collect().deliveries == [Deliveries(5, 3 * NS_PER_MS, BTC, 1)]


def test_a_latency_is_counted_from_the_planned_moment(books: Books) -> None:
    subscriber = Subscriber([BTC])
    for number, late_ns in enumerate((0, 100_000, 99_999, 50_000_000), start=1):
        unit = unit_of(number, number, due_ms=1)
        assert books.take(subscriber, unit, NS_PER_MS + late_ns)
    assert books.collect().buckets == {0: 2, 1: 1, 500: 1}


def test_a_clock_set_back_makes_no_latency_negative(books: Books) -> None:
    books.take(Subscriber([BTC]), unit_of(1, 1, due_ms=60_000), 0)
    assert books.collect().buckets == {0: 1}


def test_the_bytes_after_the_number_are_known_the_second_time(books: Books) -> None:
    one, two = Subscriber([BTC]), Subscriber([BTC])
    assert not books.take_known(one, unit_of(1, 1), 0)
    assert books.total == 0
    assert books.take(one, unit_of(1, 1), 0)
    assert books.take_known(two, unit_of(8, 1), 0)
    assert not books.take_known(two, unit_of(9, 2), 0)
    assert of_numbers(books) == expected(received=2, gaps=7, deliveries={1: 2})


def test_the_bytes_of_an_event_may_differ_between_its_subscribers() -> None:
    """On older servers they do, as their time stamp is made per connection."""
    books = books_of("market")
    for seq in (1, 2, 3):
        unit = market_unit(seq, 7, BTC, has_offset=True)
        assert not books.take_known(Subscriber([BTC]), unit, 0)
        take(books, Subscriber([BTC]), unit)
    assert of_numbers(books) == expected(received=3, gaps=0 + 1 + 2, deliveries={7: 3})


def test_forgotten_bytes_are_decoded_again_and_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "_KNOWN_MAX", 2)
    books = books_of()
    for subscriber in (Subscriber([BTC]), Subscriber([BTC])):
        take(books, subscriber, *(unit_of(n, n) for n in range(1, 8)))
    assert of_numbers(books) == expected(received=14, deliveries=dict.fromkeys(range(1, 8), 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "unit", [b"", b"{", b'{"type":"pong"}', b'{"seq":x}', b'{"seq":1}', b'{"seq":2,"no":"event"}']
)
def test_a_message_that_is_not_an_event_changes_nothing(kind: str, unit: bytes) -> None:
    books, subscriber = books_of(kind), Subscriber([BTC])
    assert not books.take_known(subscriber, unit, 0)
    assert not books.take(subscriber, unit, 0)
    assert (subscriber.seq, subscriber.order, books.total) == (0, 0, 0)
    assert of_numbers(books) == expected()


# --- against a plain model


@attrs.frozen
class Step:
    """One subscriber receives one envelope; `is_collected`: a collect follows."""

    subscriber: int
    seq: int
    number: int
    channel: str
    has_offset: bool
    late_tenths: int
    is_collected: bool


STEPS = st.lists(
    st.builds(
        Step,
        subscriber=st.integers(0, 2),
        seq=st.integers(0, 12),
        number=st.integers(1, 9),
        channel=st.sampled_from([BTC, ETH, SOL]),
        has_offset=st.booleans(),
        late_tenths=st.integers(-20, 30),
        is_collected=st.sampled_from([False, False, False, True]),
    ),
    max_size=30,
)
SUBSCRIPTIONS = [{BTC}, {BTC, ETH}, {BTC, ETH, SOL}]  # the last one is not counted


class Model:
    """A simple model of the same counters, at any cost."""

    def __init__(self) -> None:
        self.seqs = [0, 0, 0]
        self.orders = [0, 0, 0]
        self.clear()

    def clear(self) -> None:
        self.received = self.gaps = self.repeated = self.foreign = 0
        self.times: Counter[tuple[str, int, bool]] = Counter()
        self.late: Counter[int] = Counter()

    def take(self, step: Step) -> None:
        who = step.subscriber
        self.received += 1
        self.times[step.channel, step.number, step.has_offset] += 0
        if step.seq:
            if step.seq <= self.seqs[who]:
                self.repeated += 1
                return
            self.gaps += len(range(self.seqs[who] + 1, step.seq))
            self.seqs[who] = step.seq
        if step.has_offset:
            if step.number <= self.orders[who]:
                self.repeated += 1
                return
            self.orders[who] = step.number
        if step.channel not in SUBSCRIPTIONS[who]:
            self.foreign += 1
            return
        self.times[step.channel, step.number, step.has_offset] += who != 2
        self.late[max(0, step.late_tenths)] += 1

    def figures(self) -> tuple[object, ...]:
        times = sorted((channel, count) for (channel, _, _), count in self.times.items())
        found = (self.received, self.gaps, self.repeated, self.foreign, times, dict(self.late))
        self.clear()
        return found


def figures_like_the_model(books: Books) -> tuple[object, ...]:
    found = books.collect()
    times = sorted((entry.channel, entry.times) for entry in found.deliveries)
    return found.received, found.gaps, found.repeated, found.foreign, times, found.buckets


@settings(max_examples=200)
@given(STEPS, st.sampled_from(["bench", "market"]))
def test_the_figures_agree_with_a_plain_model_for_any_input(steps: list[Step], kind: str) -> None:
    books, model = books_of(kind), Model()
    subscribers = [Subscriber(channels) for channels in SUBSCRIPTIONS]
    subscribers[2].is_counted = False
    for step in steps:
        if kind == "bench":
            step = attrs.evolve(step, has_offset=True)
            unit = unit_of(step.seq, step.number, step.channel, due_ms=10)
        else:
            unit = market_unit(
                step.seq, step.number, step.channel, has_offset=step.has_offset, due_ms=10
            )
        subscriber = subscribers[step.subscriber]
        now_ns = 10 * NS_PER_MS + step.late_tenths * NS_PER_MS // 10
        assert books.take_known(subscriber, unit, now_ns) or books.take(subscriber, unit, now_ns)
        model.take(step)
        if step.is_collected:
            assert figures_like_the_model(books) == model.figures()
    assert figures_like_the_model(books) == model.figures()
    assert [subscriber.seq for subscriber in subscribers] == model.seqs
    assert books.total == len(steps)
