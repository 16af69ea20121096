from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.lab.report.thin import Point, thin

figures = st.one_of(st.none(), st.floats(-1e9, 1e9))
series = st.lists(figures, max_size=400).map(lambda ys: [(float(x), y) for x, y in enumerate(ys)])


@given(series, st.integers(4, 300))
def test_thinning_keeps_the_ends_the_extremes_and_the_order(points: list[Point], most: int) -> None:
    thinned = thin(points, most)
    assert len(thinned) <= most
    assert thinned[:1] == points[:1]
    assert thinned[-1:] == points[-1:]
    positions = [points.index(point) for point in thinned]
    assert positions == sorted(set(positions))
    known = [y for _, y in points if y is not None]
    kept = [y for _, y in thinned if y is not None]
    assert (min(kept), max(kept)) == (min(known), max(known)) if known else not kept


@given(series)
def test_what_is_short_enough_stays_as_it_is(points: list[Point]) -> None:
    assert thin(points, max(4, len(points))) == points


def test_a_long_silence_stays_a_gap() -> None:
    points: list[Point] = [(float(x), None if 300 <= x < 400 else 1.0) for x in range(1000)]
    assert any(300 < x < 400 and y is None for x, y in thin(points, 100))


@pytest.mark.parametrize("spike", [1, 499, 998])
def test_a_spike_of_one_second_is_as_high_as_it_was(spike: int) -> None:
    points: list[Point] = [(float(x), 90.0 if x == spike else 1.0) for x in range(1000)]
    assert (float(spike), 90.0) in thin(points, 40)
