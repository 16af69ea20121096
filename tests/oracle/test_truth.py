"""The content of the stream, from observations."""

from __future__ import annotations

from tests.oracle.truth import START, Evidence, Place, Sent, Truth


def evidence(*seen: tuple[int, int, int]) -> Evidence:
    """Observed events of one channel, (number, offset, stored_ms), sent at the same time."""
    content = Evidence()
    for number, offset, ms in seen:
        content.sent[number] = Sent("A.b", "{}", ms)
        content.saw(number, offset, ms)
    return content


def test_another_life_begins_where_offsets_decrease() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 2, 20), (3, 1, 30), (4, 3, 40)))
    assert truth.lives == 2
    assert truth.places[2] == Place(0, 2)
    assert truth.places[3] == Place(1, 1)
    assert truth.between("A.b", Place(0, 1), Place(1, 2)) == [Place(0, 2), Place(1, 1)]
    assert truth.behind("A.b", START)[-1] == Place(1, 3)


def test_an_event_held_back_by_nats_makes_no_other_life() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 4, 40), (3, 2, 20), (4, 3, 30)))
    assert truth.lives == 1
    assert truth.places[2] == Place(0, 4)


def test_events_stored_while_two_places_exist_are_left_out() -> None:
    content = evidence((1, 8, 1000), (2, 9, 2500), (3, 1, 3000), (4, 2, 3900), (5, 13, 5000))
    content.saw(3, 10, 3001)
    truth = Truth(content)
    assert truth.undecided == [2, 3, 4]
    assert truth.places == {1: Place(0, 8), 5: Place(0, 13)}, "there was no other life"


def test_an_event_known_only_to_its_publisher_is_placed_in_its_life() -> None:
    content = evidence((1, 1, 10), (2, 2, 20), (3, 2, 5000), (9, 5, 5200))
    acknowledged = (
        (4, 3, 30, 35),
        (5, 9, 900, 910),
        (6, 2, 40, 45),
        (7, 1, 4995, 4999),
        (8, 4, 5001, 5199),
    )
    for number, offset, sent_ms, acked_ms in acknowledged:
        content.sent[number] = Sent("A.b", "{}", sent_ms)
        content.acknowledged[number] = (offset, acked_ms)
    truth = Truth(content)
    assert truth.places[4] == Place(0, 3), "soon after the last that was seen of the first one"
    assert truth.places[7] == Place(1, 1), "just before the first that was seen of the second one"
    assert truth.places[8] == Place(1, 4), "between two of the second one"
    assert truth.undecided == [5, 6], "long after the first one; its place is taken"


def test_what_was_published_while_nats_hung_may_be_between_two_events_stored_at_once() -> None:
    content = Evidence()
    for number in range(1, 6):
        content.sent[number] = Sent("A.b", "{}", 1000 * number)
    for number in (2, 5):  # all are stored when NATS goes on, and nobody saw the others
        content.saw(number, number, 5001)
    truth = Truth(content)
    assert truth.unplaced("A.b", Place(0, 2), Place(0, 5)) == 2
    assert truth.unplaced("A.b", START, Place(0, 5)) == 3


def test_an_epoch_is_the_life_of_the_events_received_under_it() -> None:
    content = evidence((1, 1, 10), (2, 1, 20), (3, 1, 30))
    content.epochs.update({"a": {1}, "b": {2, 3}})
    content.heard["new"] = 22
    truth = Truth(content)
    assert truth.locate("a", 7, 99) == Place(0, 7)
    assert truth.lives_of("b") == [1, 2]
    assert truth.locate("b", 7, 25) == Place(1, 7), "the one that had begun"
    assert truth.locate("new", 0, 35) == Place(1, 0), "both have names; it was named in this one"
    assert truth.locate("unheard of", 0, 35) == Place(2, 0)
    del content.epochs["a"]
    assert Truth(content).locate("new", 0, 35) == Place(0, 0), "the one that has no name"


def test_a_time_maps_to_the_last_event_before_it() -> None:
    truth = Truth(evidence((1, 1, 10), (2, 2, 20)))
    assert truth.place_at(5) == START
    assert truth.place_at(15) == Place(0, 1)
    assert truth.place_at(25) == Place(0, 2)
