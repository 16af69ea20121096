"""What the stream held, of what was seen."""

from __future__ import annotations

from tests.oracle.truth import START, Evidence, Place, Sent, Truth


def evidence(*seen: tuple[int, int, int]) -> Evidence:
    """Events of one channel, seen as (number, offset, stored_ms); sent at the same time."""
    content = Evidence()
    for number, offset, ms in seen:
        content.sent[number] = Sent("A.b", "{}", ms)
        content.saw(number, offset, ms)
    return content


def test_another_life_begins_where_offsets_fall() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 2, 20), (3, 1, 30), (4, 3, 40)))
    assert truth.lives == 2
    assert truth.places[2] == Place(0, 2)
    assert truth.places[3] == Place(1, 1)
    assert truth.between("A.b", Place(0, 1), Place(1, 2)) == [Place(0, 2), Place(1, 1)]
    assert truth.behind("A.b", START)[-1] == Place(1, 3)


def test_an_event_that_nats_held_back_makes_no_other_life() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 4, 40), (3, 2, 20), (4, 3, 30)))
    assert truth.lives == 1
    assert truth.places[2] == Place(0, 4)


def test_an_event_seen_at_two_offsets_is_left_out() -> None:
    content = evidence((1, 1, 10), (2, 2, 20))
    content.saw(1, 2, 20)
    truth = Truth(content)
    assert truth.undecided == [1]
    assert list(truth.places) == [2]


def test_what_only_its_publisher_knows_of_is_put_into_its_life() -> None:
    content = evidence((1, 1, 10), (2, 2, 20), (3, 1, 100))
    for number, offset, sent_ms, acked_ms in ((4, 3, 30, 35), (5, 9, 90, 110), (6, 2, 40, 45)):
        content.sent[number] = Sent("A.b", "{}", sent_ms)
        content.acknowledged[number] = (offset, acked_ms)
    truth = Truth(content)
    assert truth.places[4] == Place(0, 3)
    assert truth.undecided == [5, 6], "either life is possible; the place is taken"


def test_an_epoch_is_the_life_whose_events_came_under_it() -> None:
    content = evidence((1, 1, 10), (2, 1, 20), (3, 1, 30))
    content.epochs.update({"a": {1}, "b": {2, 3}})
    truth = Truth(content)
    assert truth.locate("a", 7, 99) == Place(0, 7)
    assert truth.lives_of("b") == [1, 2]
    assert truth.locate("b", 7, 25) == Place(1, 7), "the one that had begun"
    content.heard["new"] = 22
    assert truth.locate("new", 0, 35) == Place(1, 0)
    assert truth.locate("unheard of", 0, 35) == Place(2, 0)


def test_a_time_has_the_last_event_before_it() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 2, 20)))
    assert truth.place_at(5) == START
    assert truth.place_at(15) == Place(0, 1)
    assert truth.place_at(25) == Place(0, 2)
