from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Arrival, Gap, Losses, StreamPosition, StreamState, joined

WINDOW, STREAM, CORE = GapReason.WINDOW, GapReason.STREAM, GapReason.CORE
SHED = GapReason.SHED


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


counts = st.none() | st.integers(0, 100)
gaps = st.builds(Gap, st.sampled_from(GapReason), counts, counts, counts)


@given(st.lists(gaps, max_size=20), st.integers(0, 20))
def test_gaps_are_summed_up_by_reason_in_any_order(several: list[Gap], cut: int) -> None:
    sums = joined({}, several)
    assert joined(joined({}, several[:cut]), several[cut:]) == sums
    assert set(sums) == {gap.reason for gap in several}
    for reason, one in sums.items():
        numbers = [gap.missed for gap in several if gap.reason is reason]
        known = [number for number in numbers if number is not None]
        assert one.missed == (sum(known) if len(known) == len(numbers) else None)


def test_a_sum_of_gaps_spans_from_the_first_to_the_last() -> None:
    several = [Gap(WINDOW, 2, 5, 6), Gap(CORE), Gap(WINDOW, 1, 9, 9)]
    assert joined({}, several) == {WINDOW: Gap(WINDOW, 3, 5, 9), CORE: Gap(CORE)}


def test_gaps_of_two_streams_are_not_summed_up() -> None:
    """A notice names one epoch, and a sum from 1000 to 3 covers nothing."""
    before = joined({}, [Gap(SHED, 2, 999, 1000), Gap(WINDOW, 1, 7, 7)])
    sums = joined(before, [Gap(STREAM), Gap(SHED, 2, 2, 3), Gap(SHED, 1, 9, 9)])
    assert sums == {STREAM: Gap(STREAM), SHED: Gap(SHED, 5, None, 9), WINDOW: Gap(WINDOW, 1)}
    assert next(iter(sums)) is STREAM, "it says where the position starts anew"


def test_summing_up_leaves_the_parts_unchanged() -> None:
    one = {WINDOW: Gap(WINDOW, 2, 5, 6)}
    joined(one, [Gap(WINDOW, 1, 9, 9)])
    assert one == {WINDOW: Gap(WINDOW, 2, 5, 6)}


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


def test_a_loss_is_reported_at_once_and_those_after_it_are_summed_up() -> None:
    losses = Losses()
    assert not losses.are_due(5.0)
    losses.declare([Gap(WINDOW, 1, 3, 3)])
    assert losses.are_due(5.0)
    assert losses.take(5.0) == {WINDOW: Gap(WINDOW, 1, 3, 3)}
    losses.declare([Gap(WINDOW, 1, 5, 5)])
    losses.declare([Gap(WINDOW, 2, 8, 9)])
    assert not losses.are_due(5.9)
    assert losses.are_due(6.0)
    assert losses.take(6.0) == {WINDOW: Gap(WINDOW, 3, 5, 9)}
    assert not losses


@pytest.mark.parametrize("reason", [GapReason.START, STREAM, CORE])
def test_a_change_of_the_epoch_is_never_delayed(reason: GapReason) -> None:
    losses = Losses()
    losses.declare([Gap(WINDOW, 1, 3, 3)])
    losses.take(5.0)
    losses.declare([Gap(reason)])
    assert losses.are_due(5.0)


def test_a_message_that_came_before_is_recognised() -> None:
    position = at(10)
    assert position.arrived(10) is None
    assert position.arrived(9) is None
    assert position.offset == 10
