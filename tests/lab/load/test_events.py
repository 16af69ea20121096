from __future__ import annotations

import pytest

from trio_odin.lab.fleet.batches import Tally
from trio_odin.lab.fleet.books import Deliveries
from trio_odin.lab.load.events import Completeness, Events, with_rates

SUBSCRIBERS = {"BTC.trade": 3, "ETH.trade": 2}


def events_of(*entries: tuple[str, int, int, int]) -> Events:
    """Events from channel, number, due time and number of deliveries."""
    events = Events()
    events.take(Deliveries(number, due, channel, times) for channel, number, due, times in entries)
    return events


def test_an_event_within_a_window_is_due_to_all_its_subscribers() -> None:
    events = events_of(
        ("BTC.trade", 1, 9, 1), ("BTC.trade", 2, 10, 2), ("ETH.trade", 3, 20, 2), ("X.y", 4, 15, 0)
    )
    assert events.completeness(SUBSCRIBERS, [(10, 20)], None) == Completeness(2, 5, 4, 1)
    assert (len(events), events.channels) == (4, {"BTC.trade", "ETH.trade", "X.y"})


def test_the_deliveries_of_an_event_to_several_fleets_add_up() -> None:
    events = events_of(("BTC.trade", 1, 15, 2), ("BTC.trade", 1, 15, 1))
    assert events.completeness(SUBSCRIBERS, [(10, 20)], None) == Completeness(1, 3, 3, 0)


def test_an_extra_delivery_does_not_make_up_for_a_lost_one() -> None:
    events = events_of(("BTC.trade", 1, 15, 4), ("BTC.trade", 2, 15, 2))
    assert events.completeness(SUBSCRIBERS, [(10, 20)], None) == Completeness(2, 6, 5, 1)


def test_a_published_event_that_reached_nobody_is_lost() -> None:
    events = events_of(("BTC.trade", 1, 99, 3))
    published = [("BTC.trade", 1), ("ETH.trade", 2)]
    assert events.completeness(SUBSCRIBERS, [], published) == Completeness(2, 5, 3, 2)


# --- with rates

BTC_EVENTS = [("BTC.trade", number) for number in range(10)]


@pytest.mark.parametrize(
    ("tallies", "expected"),
    [
        ([Tally("BTC.trade", 3, 7, 2), Tally("BTC.trade", 10, 0, 1)], (30, 16, 0, 14)),
        # One event was neither received nor skipped.
        ([Tally("BTC.trade", 3, 6, 2), Tally("BTC.trade", 10, 0, 1)], (30, 16, 2, 12)),
        # One was reported although it did not exist.
        ([Tally("BTC.trade", 3, 8, 3)], (30, 9, 3, 24)),
        # A connection has gone.
        ([Tally("BTC.trade", 3, 7, 2)], (30, 6, 10, 14)),
        ([], (30, 0, 30, 0)),
    ],
)
def test_each_connection_has_received_or_skipped_every_event_of_its_channels(
    tallies: list[Tally], expected: tuple[int, ...]
) -> None:
    assert with_rates(SUBSCRIBERS, tallies, BTC_EVENTS) == Completeness(10, *expected)


def test_without_a_list_the_most_that_a_connection_accounts_for_was_published() -> None:
    tallies = [
        *(Tally("BTC.trade", 3, 7, 2), Tally("BTC.trade", 4, 5, 1)),
        *(Tally("ETH.trade", 1, 1, 2), Tally("SOL.trade", 0, 0, 4)),
    ]
    subscribers = SUBSCRIBERS | {"SOL.trade": 4}
    assert with_rates(subscribers, tallies, None) == Completeness(12, 34, 12, 1, 21)


def test_events_without_a_subscriber_are_not_expected() -> None:
    assert with_rates(SUBSCRIBERS, [], [("X.y", 1)]) == Completeness(0, 0, 0, 0)
