from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap, Losses, joined

WINDOW, STREAM, CORE = GapReason.WINDOW, GapReason.STREAM, GapReason.CORE
SHED = GapReason.SHED


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
