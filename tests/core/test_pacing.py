from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.pacing import Pace

SECONDS = st.floats(0, 100, allow_subnormal=False)
MAXIMA = st.floats(0, 1)
ROUNDS = st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=20)


def test_before_the_first_round_nothing_waits() -> None:
    assert Pace(0.1).delay(0.0) == 0


@pytest.mark.parametrize(
    ("asked_at", "wait"),
    [(10.04, 0.02), (10.05, 0.01), (10.0585, 0.0015), (10.0595, 0), (10.06, 0), (11, 0)],
)
def test_after_a_round_there_is_a_rest_of_half_of_it(asked_at: float, wait: float) -> None:
    pace = Pace(0.1)
    pace.worked(10.0, 10.04)
    assert pace.delay(asked_at) == pytest.approx(wait)


def test_a_long_round_earns_no_more_than_the_longest_rest() -> None:
    pace = Pace(0.1)
    pace.worked(10.0, 15.0)
    assert pace.delay(15.0) == pytest.approx(0.1)
    assert pace.delay(15.08) == pytest.approx(0.02)
    assert pace.delay(15.2) == 0


def test_only_the_last_round_counts() -> None:
    pace = Pace(0.1)
    pace.worked(10.0, 10.2)
    pace.worked(10.2, 10.21)
    assert pace.delay(10.21) == pytest.approx(0.005)


def test_a_clock_that_stands_still_is_not_waited_for_longer_than_the_longest_rest() -> None:
    pace = Pace(0.1)
    pace.worked(10.0, 15.0)
    assert pace.delay(10.0) == pytest.approx(0.1)


@given(MAXIMA, ROUNDS)
def test_a_wait_is_never_negative_and_never_longer_than_the_maximum(
    maximum: float, rounds: list[tuple[float, float, float]]
) -> None:
    pace = Pace(maximum)
    now = 0.0
    for idle, work, later in rounds:
        started = now + idle
        pace.worked(started, started + work)
        now = started + work + later
        for asked_at in (started, started + work, now):
            assert 0 <= pace.delay(asked_at) <= maximum


@given(MAXIMA, ROUNDS)
def test_after_its_wait_a_round_may_begin(
    maximum: float, rounds: list[tuple[float, float, float]]
) -> None:
    pace = Pace(maximum)
    now = 0.0
    for idle, work, _ in rounds:
        started = now + idle
        now = started + work
        pace.worked(started, now)
        now += pace.delay(now)
        assert pace.delay(now) == 0


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 0.002), st.floats(0.001, 10)), min_size=1, max_size=20),
)
def test_short_rounds_far_apart_never_wait(
    maximum: float, rounds: list[tuple[float, float]]
) -> None:
    pace = Pace(maximum)
    now = 0.0
    for work, idle in rounds:
        assert pace.delay(now) == 0
        pace.worked(now, now + work)
        now += work + idle


@given(ROUNDS)
def test_without_a_maximum_nothing_ever_waits(rounds: list[tuple[float, float, float]]) -> None:
    pace = Pace(0)
    now = 0.0
    for idle, work, later in rounds:
        pace.worked(now + idle, now + idle + work)
        assert pace.delay(now + idle + work) == 0
        now += idle + work + later
