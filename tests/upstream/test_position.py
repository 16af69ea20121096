from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap
from trio_odin.upstream.position import Arrival, StreamPosition, StreamState

WINDOW, STREAM, CORE = GapReason.WINDOW, GapReason.STREAM, GapReason.CORE


def state(first: int, last: int, *, epoch: str = "e", is_ours: bool = True) -> StreamState:
    return StreamState("S", epoch, first, last, is_ours)


def at(offset: int, *, is_ours: bool = True) -> StreamPosition:
    """A position that was entered when the stream ended there."""
    position = StreamPosition()
    assert position.enter(state(1, offset, is_ours=is_ours)) == []
    return position


def arrived(position: StreamPosition, offset: int) -> Arrival:
    arrival = position.arrived(offset)
    assert arrival is not None
    return arrival


def test_at_start_up_old_events_are_not_a_gap() -> None:
    position = StreamPosition()
    assert position.enter(state(501, 900)) == []
    assert (position.offset, position.stream, position.epoch) == (900, "S", "e")


def test_events_still_in_the_window_are_not_a_gap() -> None:
    position = at(10)
    assert position.enter(state(11, 20)) == []
    assert position.offset == 10


def test_events_dropped_by_the_window_are_a_gap_with_their_count() -> None:
    position = at(10)
    assert position.enter(state(14, 20)) == [Gap(WINDOW, 3, 11, 13)]
    assert position.offset == 13
    assert arrived(position, 14).gap is None, "it is declared once"


def test_a_window_that_has_run_empty_is_a_gap_before_any_event() -> None:
    assert at(10).enter(state(21, 20)) == [Gap(WINDOW, 10, 11, 20)]


def test_numbers_that_may_be_foreign_are_a_gap_of_unknown_size() -> None:
    position = at(10, is_ours=False)
    assert position.enter(state(14, 20, is_ours=False)) == [Gap(WINDOW, None, 11, 13)]
    assert arrived(position, 18).gap is None, "a jump alone proves nothing"


def test_a_jump_in_our_own_stream_is_a_gap() -> None:
    position = at(10)
    assert arrived(position, 11).gap is None
    assert arrived(position, 15).gap == Gap(WINDOW, 3, 12, 14)
    assert arrived(position, 16).gap is None


def test_a_stream_made_anew_is_a_gap_and_is_read_from_its_start() -> None:
    position = at(10)
    assert position.enter(state(1, 99, epoch="f")) == [Gap(STREAM)]
    assert (position.offset, position.epoch) == (0, "f")


def test_a_stream_that_became_shorter_is_another_one() -> None:
    position = at(10)
    assert position.is_lost_in(state(0, 9))
    assert not position.is_lost_in(state(0, 10))
    assert position.enter(state(0, 0)) == [Gap(STREAM)]
    assert position.offset == 0


def test_events_dropped_by_a_new_stream_are_counted_too() -> None:
    assert at(10).enter(state(5, 99, epoch="f")) == [Gap(STREAM), Gap(WINDOW, 4, 1, 4)]


@given(st.data(), st.booleans())
def test_every_offset_is_either_taken_or_in_a_gap(data: st.DataObject, away: bool) -> None:
    """This holds for any mixture of losses on the way, drops and reconnects."""
    position = at(0)
    accounted: list[int] = []
    last = 0
    for _ in range(data.draw(st.integers(1, 30))):
        step = data.draw(st.sampled_from(["come", "drop", "expire", "reconnect"]))
        last += 1
        if step == "come":
            gap = arrived(position, last).gap
            accounted += [*offsets_of(gap), last]
        elif step == "reconnect" and away:
            first = data.draw(st.integers(position.offset + 1, last + 1))
            for gap in position.enter(state(first, last)):
                accounted += offsets_of(gap)
            last = position.offset
    last += 1
    accounted += [*offsets_of(arrived(position, last).gap), last]
    assert accounted == list(range(1, last + 1))


def offsets_of(gap: Gap | None) -> list[int]:
    if gap is None:
        return []
    assert gap.first is not None
    assert gap.last is not None
    assert gap.missed == gap.last - gap.first + 1
    return list(range(gap.first, gap.last + 1))


def test_at_start_up_the_configured_backfill_is_read() -> None:
    position = StreamPosition(backfill=3)
    assert position.enter(state(1, 10)) == []
    taken = []
    for offset in (8, 9, 10, 11):
        arrival = arrived(position, offset)
        assert arrival.gap is None
        taken.append(arrival.is_backfill)
    assert taken == [True, True, True, False]


def test_the_backfill_is_at_most_the_whole_stream() -> None:
    position = StreamPosition(backfill=100)
    position.enter(state(9, 10))
    assert position.offset == 8
    position = StreamPosition(backfill=100)
    position.enter(state(0, 0))
    assert position.offset == 0


def test_a_loss_in_the_backfill_is_not_a_gap_but_a_later_one_is() -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10))
    assert arrived(position, 8).gap is None
    assert arrived(position, 13).gap == Gap(WINDOW, 2, 11, 12)


def test_all_events_of_a_stream_made_anew_are_new() -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10))
    assert position.enter(state(1, 4, epoch="other")) == [Gap(STREAM)]
    assert not arrived(position, 1).is_backfill


def at_its_message(offset: int, stored: int) -> StreamPosition:
    """A position that took the message at `offset`, stored at that time."""
    position = at(offset - 1)
    position.arrived(offset, stored)
    return position


def test_an_emptied_stream_is_recognised_by_the_time_of_a_message() -> None:
    """In a cluster, a stream in memory comes back with its date of creation."""
    position = at_its_message(10, stored=77)
    emptied = StreamState("S", "e", 1, 60, True, witness=99)
    assert position.is_lost_in(emptied)
    assert not position.is_lost_in(StreamState("S", "e", 1, 60, True, witness=77))
    assert not position.is_lost_in(StreamState("S", "e", 11, 60, True, witness=None))
    assert position.enter(StreamState("S", "e-1", 1, 60, True)) == [Gap(STREAM)]
    assert (position.offset, position.epoch, position.witness) == (0, "e-1", None)


def test_a_stream_possibly_emptied_unnoticed_is_a_gap_from_its_start() -> None:
    for may_be_emptied, gap in (
        (False, Gap(WINDOW, 4, 51, 54)),
        (True, Gap(WINDOW, None, 1, 54)),
    ):
        position = StreamPosition()
        position.enter(StreamState("S", "e", 1, 40, True))
        position.arrived(50, 77)
        state = StreamState("S", "e", 55, 60, True, may_be_emptied=may_be_emptied)
        assert position.enter(state) == [gap]
        assert position.offset == 54


def test_the_backfill_may_end_with_a_foreign_message() -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10, is_ours=False))
    position.arrived(7)
    position.settle()
    assert position.offset == 10
    assert arrived(position, 14) == Arrival(None, is_backfill=False)


def test_backfill_that_the_window_drops_meanwhile_is_not_a_gap() -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10))
    position.arrived(6)
    assert position.enter(state(9, 12)) == []
    assert position.offset == 8
    position.arrived(9)
    assert position.enter(state(14, 15)) == [Gap(WINDOW, 3, 11, 13)]


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_loss_in_the_backfill_makes_resumes_incomplete(is_ours: bool) -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10, is_ours=is_ours))
    position.arrived(6)
    assert not position.is_broken
    position.enter(state(9, 10, is_ours=is_ours))
    assert position.is_broken, "7 and 8 are gone, or may be"
    position.is_broken = False
    position.arrived(9)
    assert not position.is_broken
    position.arrived(11)
    assert position.is_broken == is_ours, "a jump alone proves nothing"


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_missing_end_of_the_backfill_makes_resumes_incomplete(is_ours: bool) -> None:
    position = StreamPosition(backfill=5)
    position.enter(state(1, 10, is_ours=is_ours))
    position.arrived(6)
    position.settle()
    assert position.is_broken == is_ours
    position.is_broken = False
    position.settle()
    assert not position.is_broken


def test_a_message_that_came_before_is_recognised() -> None:
    position = at(10)
    assert position.arrived(10) is None
    assert position.arrived(9) is None
    assert position.offset == 10
