from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.ledger.durations import Durations

SECONDS = st.floats(0, 100) | st.sampled_from(Durations.BOUNDS)


def of(*seconds: float) -> Durations:
    durations = Durations()
    for one in seconds:
        durations.add(one)
    return durations


def test_the_bounds_are_ascending() -> None:
    assert all(low < high for low, high in pairwise(Durations.BOUNDS))


@pytest.mark.parametrize(("place", "bound"), list(enumerate(Durations.BOUNDS)))
def test_a_bound_belongs_to_the_bucket_below_it(place: int, bound: float) -> None:
    counts = of(bound, bound * 1.000001).counts
    assert [number for number, count in enumerate(counts) if count] == [place, place + 1]


def test_a_duration_above_every_bound_is_counted() -> None:
    assert of(Durations.BOUNDS[-1] + 1, 1e9).counts == [0] * len(Durations.BOUNDS) + [2]


def test_a_duration_of_zero_is_in_the_first_bucket() -> None:
    assert of(0.0).counts[0] == 1


def test_the_labels_are_the_bounds_and_infinity() -> None:
    labels = [label for label, _ in Durations().cumulative()]
    assert labels[:3] == ["0.001", "0.0025", "0.005"]
    assert [float(label) for label in labels] == [*Durations.BOUNDS, float("inf")]


def test_two_histograms_count_on_their_own() -> None:
    one, two = of(0.5), Durations()
    assert one != two
    assert two.counts == [0] * (len(Durations.BOUNDS) + 1)


@given(st.lists(SECONDS, max_size=50))
def test_cumulative_counts_equal_those_of_a_plain_loop(seconds: list[float]) -> None:
    found = [count for _, count in of(*seconds).cumulative()]
    assert found == [
        sum(one <= bound for one in seconds) for bound in (*Durations.BOUNDS, float("inf"))
    ]
    assert found == sorted(found)
    assert found[-1] == len(seconds)


@given(st.lists(SECONDS, max_size=50))
def test_the_total_is_the_sum_of_all_durations(seconds: list[float]) -> None:
    assert of(*seconds).total_seconds == pytest.approx(sum(seconds))
