"""The verdict on a library finds what it is there for."""

from __future__ import annotations

from typing import Any

from tests.oracle.libraries.verdict import Item, Tally, judge
from tests.oracle.truth import Evidence, Sent, Truth

_A, _B = "A.b", "B.b"


def _truth() -> Truth:
    """Events 1 to 10, of A and B in turn, and 11 to 20 in another life of the stream."""
    evidence = Evidence()
    for number in range(1, 21):
        second, offset = divmod(number - 1, 10)
        channel = _A if number % 2 else _B
        evidence.sent[number] = Sent(channel, "", number * 100)
        evidence.saw(number, offset + 1, number * 100)
        evidence.epochs["two" if second else "one"].add(number)
    return Truth(evidence)


def _event(number: int, **more: Any) -> Item:
    channel = _A if number % 2 else _B
    return Item(at_ms=number * 1000, channels=frozenset([channel]), number=number, **more)


def _gap(at_ms: float, *channels: str) -> Item:
    return Item(at_ms=at_ms, channels=frozenset(channels))


def _judged(*items: Item) -> Tally:
    return judge("it", frozenset([_A, _B]), items, _truth())


def test_all_events_in_order_are_fine() -> None:
    tally = _judged(*[_event(number) for number in range(1, 21)])
    assert (tally.findings, tally.delivered, tally.declared) == ([], 20, 0)


def test_a_missing_event_is_a_silent_loss() -> None:
    tally = _judged(_event(1), _event(5))
    assert tally.count("silent loss of [3]") == 1


def test_a_gap_of_the_channel_declares_it() -> None:
    assert _judged(_event(1), _gap(2000, _A), _event(5)).findings == []
    assert _judged(_event(1), _gap(2000, _B), _event(5)).count("silent") == 1


def test_a_gap_declares_only_what_is_before_the_next_event() -> None:
    tally = _judged(_event(1), _gap(2000, _A), _event(5), _event(9))
    assert tally.count("silent loss of [7]") == 1


def test_a_gap_may_come_a_second_later() -> None:
    assert _judged(_event(1), _event(5), _gap(6000, _A)).findings == []
    assert _judged(_event(1), _event(5), _gap(9000, _A)).count("silent") == 1


def test_skipped_events_are_counted() -> None:
    tally = _judged(_event(1), _event(9, skipped=3))
    assert (tally.findings, tally.skipped) == ([], 3)
    assert _judged(_event(1), _event(9, skipped=2)).count("silent loss of [3, 5, 7]") == 1


def test_an_event_twice_is_a_repeat() -> None:
    assert _judged(_event(1), _event(3), _event(3)).count("repeat of #3") == 1


def test_an_older_event_is_found() -> None:
    assert _judged(_event(5), _event(3)).count("older #3 after #5") == 1
    assert _judged(_event(11), _event(3)).count("older #3 after #11") == 1
