from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_odin.core.pacing import AcceptPace, Pace

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


# --- accepts


def test_without_a_rate_all_that_come_are_accepted() -> None:
    pace = AcceptPace(0)
    for _ in range(100):
        assert pace.room(1.0, 64) == 64
        pace.accepted(64)


def test_a_tenth_of_a_second_may_come_at_once_and_the_rest_waits_its_turn() -> None:
    pace = AcceptPace(2000)
    assert [pace.room(5.0, 64), pace.room(5.0, 1000)] == [64, 200]
    pace.accepted(200)
    assert pace.room(5.0, 64) == 0
    assert pace.delay() == 0.025
    assert pace.room(5.0 + pace.delay(), 64) == 50


@given(st.floats(0.01, 10_000), st.integers(0, 1000))
def test_after_the_delay_there_is_room_for_one(per_second: float, accepted: int) -> None:
    pace = AcceptPace(per_second)
    room = pace.room(0.0, accepted)
    assert 0 <= room <= accepted
    pace.accepted(room)
    assert pace.room(pace.delay() * 1.001, 64) >= 1


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 64)), min_size=1, max_size=60),
)
def test_no_stretch_of_time_has_more_accepts_than_the_rate_and_one_burst(
    per_second: int, turns: list[tuple[float, int]]
) -> None:
    pace = AcceptPace(per_second)
    now, total = 0.0, 0
    for seconds, come in turns:
        now += seconds
        accepted = pace.room(now, come)
        pace.accepted(accepted)
        total += accepted
        assert total <= max(1.0, per_second * 0.1) + per_second * now + 1e-6
