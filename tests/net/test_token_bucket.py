from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from trio_odin.net.token_bucket import TokenBucket

# Quarters of a second and whole rates are exact in binary, so no test needs a margin.
WAITS = st.lists(st.sampled_from([0.0] * 4 + [0.25, 0.5, 1.0, 3.0, 60.0]), max_size=60)
BURSTS = st.integers(1, 6)
RATES = st.integers(1, 5)


@given(burst=BURSTS, rate=RATES, waits=WAITS, start=st.sampled_from([0.0, 1000.25]))
def test_no_interval_has_more_events_than_burst_and_rate_allow(
    burst: int, rate: int, waits: list[float], start: float
) -> None:
    bucket = TokenBucket(burst=burst, per_second=rate, now=start)
    moments = list(accumulate(waits, initial=start))
    taken = [now for now in moments if bucket.take(now)]
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            assert end - begin + 1 <= burst + rate * (taken[end] - taken[begin])


@given(burst=BURSTS, rate=RATES, waits=WAITS)
def test_an_event_is_refused_only_when_the_bucket_is_empty(
    burst: int, rate: int, waits: list[float]
) -> None:
    bucket = TokenBucket(burst=burst, per_second=rate, now=0.0)
    tokens = Fraction(burst)
    for before, now in pairwise(accumulate(waits, initial=0.0)):
        tokens = min(Fraction(burst), tokens + Fraction(now - before) * rate)
        assert bucket.take(now) == (tokens >= 1)
        tokens -= tokens >= 1


@given(
    burst=st.floats(1, 1e6),
    rate=st.floats(0.001, 1e6),
    waits=st.lists(st.floats(0, 1e4), max_size=60),
)
def test_the_limit_holds_for_any_rate_up_to_rounding(
    burst: float, rate: float, waits: list[float]
) -> None:
    bucket = TokenBucket(burst=burst, per_second=rate, now=0.0)
    moments = list(accumulate(waits, initial=0.0))
    taken = sum(bucket.take(now) for now in moments)
    assert taken <= (burst + rate * moments[-1]) * (1 + 1e-9)


@given(WAITS)
def test_a_rate_of_0_is_no_limit(waits: list[float]) -> None:
    bucket = TokenBucket(burst=1, per_second=0, now=0.0)
    assert all(bucket.take(now) for now in accumulate(waits, initial=0.0))


def test_a_pause_does_not_save_up_more_than_the_burst() -> None:
    bucket = TokenBucket(burst=3, per_second=10, now=0.0)
    assert [bucket.take(3600.0) for _ in range(5)] == [True, True, True, False, False]


def test_refused_events_cost_nothing() -> None:
    bucket = TokenBucket(burst=1, per_second=1, now=0.0)
    assert bucket.take(0.0)
    assert not any(bucket.take(step / 16) for step in range(16))
    assert bucket.take(1.0)
