from __future__ import annotations

from trio_odin.lab.fleet.books import Deliveries
from trio_odin.lab.load.events import Completeness, Events

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
