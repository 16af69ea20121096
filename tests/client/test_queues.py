from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.client.connection import Position
from trio_odin.client.items import Event, Gap, Refused, State
from trio_odin.client.queues import Item, Policy, queue_of

CHANNELS = ["BTC.trade", "ETH.trade", "SOL.social"]


def event(channel: str, number: int, skipped: int | None = 0) -> Event:
    return Event(channel=channel, data=number, unix_ms=number, skipped=skipped)


@given(
    st.lists(
        st.one_of(
            st.none(),  # take one
            st.tuples(st.sampled_from(CHANNELS), st.integers(0, 3)),
        )
    )
)
def test_newest_counts_what_it_leaves_out(steps: list[tuple[str, int] | None]) -> None:
    queue = queue_of("newest")
    put: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    last: dict[str, int] = {}
    for number, step in enumerate([*steps, *[None] * len(CHANNELS)]):
        if step is not None:
            channel, skipped = step
            put[channel] += 1 + skipped
            queue.put(event(channel, number, skipped))
        elif (item := queue.take()) is not None:
            assert isinstance(item, Event)
            assert item.skipped is not None
            assert item.data > last.get(item.channel, -1)
            last[item.channel] = item.data
            taken[item.channel] += 1 + item.skipped
    assert taken == put
    assert queue.take() is None
    assert not queue.is_full


def test_newest_is_bounded() -> None:
    queue = queue_of("newest")
    queue.put(event("BTC.trade", 1))
    for number in range(1000):
        queue.put(event("ETH.trade", number))
        queue.put(Gap(channels=(CHANNELS[number % 3],), missed=1, reason="shed"))
        queue.put(State(name="live" if number % 2 else "stale"))
        queue.put(Refused(channel="SOL", code="INVALID_CHANNEL"))
    items: list[Item] = []
    while (item := queue.take()) is not None:
        items.append(item)
    assert items == [
        event("BTC.trade", 1),
        event("ETH.trade", 999, 999),
        Gap(channels=("BTC.trade", "ETH.trade", "SOL.social"), missed=1000, reason="shed"),
        Refused(channel="SOL", code="INVALID_CHANNEL"),
        State(name="live"),
    ]


def test_the_busiest_channel_has_its_turn() -> None:
    """Channels in turn, one of which has an event whenever one is taken."""
    queue = queue_of("newest")
    taken: Counter[str] = Counter()
    for number in range(300):
        queue.put(event("BTC.trade", number))
        queue.put(event(CHANNELS[1 + number % 2], number))
        queue.put(Gap(channels=("BTC.trade",), missed=1, reason="shed"))
        item = queue.take()
        taken[item.channel if isinstance(item, Event) else "gap"] += 1
    assert min(taken[one] for one in (*CHANNELS, "gap")) >= 60, taken


def test_a_state_comes_after_what_came_before_it() -> None:
    queue = queue_of("newest")
    queue.put(State(name="connecting"))
    queue.put(event("BTC.trade", 1))
    queue.put(State(name="live"))
    assert [queue.take(), queue.take()] == [event("BTC.trade", 1), State(name="live")]


def test_what_cannot_be_counted_stays_uncounted() -> None:
    queue = queue_of("newest")
    for skipped in (3, None, 4):
        queue.put(event("BTC.trade", 1, skipped))
    for missed in (3, None, 4):
        queue.put(Gap(channels=("BTC.trade",), missed=missed, reason="resume"))
    taken = (queue.take(), queue.take())
    assert [getattr(taken[0], "skipped", 0), getattr(taken[1], "missed", 0)] == [None, None]


def test_in_order_is_full_from_a_thousand_on_and_has_room_from_the_half() -> None:
    queue = queue_of("wait")
    for number in range(1000):
        assert not queue.is_full
        queue.put(event("BTC.trade", number))
    assert queue.is_full
    for number in range(500):
        assert not queue.has_room
        assert queue.take() == event("BTC.trade", number)
    assert queue.has_room
    assert not queue.is_full
    queue.clear()
    assert queue.take() is None


def test_states_that_nobody_takes_do_not_pile_up() -> None:
    queue = queue_of("wait")
    for _ in range(5000):
        queue.put(State(name="offline"))
        queue.put(State(name="connecting"))
    assert not queue.is_full
    assert queue.take() == State(name="connecting")
    assert queue.take() is None


@pytest.mark.parametrize("policy", ["newest", "wait"])
def test_the_oldest_mark_is_that_of_what_waits_longest(policy: Policy) -> None:
    queue = queue_of(policy)
    assert queue.oldest() is None
    queue.put(State(name="live"), (1, None))
    assert queue.oldest() is None, "nobody may ever take it"
    marks = [(number, Position("e", number)) for number in range(6)]
    queue.put(event("BTC.trade", 2), marks[2])
    queue.put(Gap(channels=("BTC.trade",), missed=1, reason="slow"), marks[3])
    queue.put(Gap(channels=("BTC.trade",), missed=1, reason="slow"), marks[4])
    queue.put(event("BTC.trade", 5), marks[5])
    # Of events the newest one is enough, a gap is never given up.
    assert queue.oldest() == (marks[3] if policy == "newest" else marks[2])
    while queue.take() is not None:
        pass
    assert queue.oldest() is None
