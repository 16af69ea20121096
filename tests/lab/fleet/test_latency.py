from __future__ import annotations

from collections import Counter

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_odin.lab.fleet.latency import (
    LAST_BUCKET,
    durations,
    fairness,
    p99_step,
    percentile_ms,
    step_of_bucket,
)

TENTHS = st.lists(st.integers(0, 300), max_size=60)
LONG_TENTHS = st.lists(st.integers(0, 3_600_000) | st.integers(0, 500), min_size=1, max_size=60)
# Each example makes a histogram or three.
few_examples = settings(max_examples=20)
FRACTIONS = st.sampled_from([0.0, 0.001, 0.07, 0.5, 0.9, 0.99, 0.999, 1.0]) | st.floats(0, 1)


def brute_force(values: list[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of all do not exceed."""
    return min(
        (v for v in values if sum(w <= v for w in values) >= fraction * len(values)), default=0.0
    )


@given(TENTHS, FRACTIONS)
def test_a_percentile_is_the_smallest_sufficient_latency(
    tenths: list[int], fraction: float
) -> None:
    expected = brute_force([t / 10 for t in tenths], fraction)
    assert percentile_ms(Counter(tenths), fraction) == expected


@pytest.mark.parametrize(
    ("fraction", "ms"), [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (0.01, 1.0), (1.0, 100.0)]
)
def test_percentiles_of_a_hundred_values(fraction: float, ms: float) -> None:
    assert percentile_ms({10 * n: 1 for n in range(100, 0, -1)}, fraction) == ms


def test_a_percentile_weighs_the_buckets_and_is_0_without_any() -> None:
    assert percentile_ms({5: 99, 2000: 1}, 0.99) == 0.5
    assert percentile_ms({5: 98, 2000: 2}, 0.99) == 200.0
    assert percentile_ms({}, 0.5) == 0.0


@few_examples
@given(LONG_TENTHS)
def test_the_durations_are_those_of_the_sorted_values(tenths: list[int]) -> None:
    found = durations(Counter(tenths))
    assert found is not None
    ordered = sorted(tenths)
    for ms, fraction in ((found.p50_ms, 0.5), (found.p90_ms, 0.9), (found.p99_ms, 0.99),
                         (found.p999_ms, 0.999), (found.max_ms, 1.0)):  # fmt: skip
        # HdrHistogram takes the nearest rank, and no value is less than a microsecond.
        rank = max(1, int(fraction * len(ordered) + 0.5))
        assert ms == pytest.approx(ordered[rank - 1] / 10, rel=0.001, abs=0.001)
    assert found.count == len(tenths)


def test_a_duration_beyond_an_hour_counts_as_an_hour() -> None:
    found = durations({10**9: 1})
    assert found is not None
    assert found.max_ms == pytest.approx(3_600_000, rel=0.001)


def test_empty_buckets_have_no_durations() -> None:
    assert durations({}) is None


@few_examples
@given(LONG_TENTHS)
def test_the_histogram_is_readable_by_other_tools(tenths: list[int]) -> None:
    found = durations(Counter(tenths))
    assert found is not None
    histogram = HdrHistogram.decode(found.hdr.encode())
    assert histogram.get_total_count() == len(tenths)
    for percent, ms in ((50, found.p50_ms), (99, found.p99_ms), (100, found.max_ms)):
        assert histogram.get_value_at_percentile(percent) / 1000 == ms
    assert histogram.get_count_at_value(max(1, tenths[0] * 100)) >= 1


@few_examples
@given(LONG_TENTHS, LONG_TENTHS)
def test_the_histograms_of_two_runs_add_up(one: list[int], two: list[int]) -> None:
    parts = [durations(Counter(part)) for part in (one, two)]
    both = durations(Counter(one) + Counter(two))
    assert both is not None
    merged = HdrHistogram(1, 3600 * 10**6, 3)
    for part in parts:
        assert part is not None
        merged.decode_and_add(part.hdr.encode())
    assert merged.get_total_count() == both.count
    assert merged.get_value_at_percentile(99.0) / 1000 == both.p99_ms


@given(st.integers(200, LAST_BUCKET - 1))
def test_a_step_of_a_single_connection_is_right_to_a_twentieth(tenths: int) -> None:
    found = fairness([step_of_bucket()[tenths]])
    assert found is not None
    assert found.median_p99_ms == pytest.approx(tenths / 10, rel=0.03)


def test_steps_never_go_down_and_cover_half_a_minute() -> None:
    assert sorted(step_of_bucket()) == list(step_of_bucket())
    assert LAST_BUCKET / 10_000 > 20
    assert step_of_bucket()[LAST_BUCKET] == 255


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300))
def test_the_p99_of_a_connection_is_not_exceeded_by_99_of_100(steps: list[int]) -> None:
    p99 = p99_step(bytes(steps))
    assert p99 == brute_force([float(step) for step in steps], 0.99)


def test_the_worst_hundred_are_compared_with_the_median_one() -> None:
    early, late = step_of_bucket()[200], step_of_bucket()[800]
    found = fairness([early] * 9_900 + [late] * 100)
    assert found is not None
    assert found.ratio == pytest.approx(4, rel=0.1)
    alike = fairness([early] * 300)
    assert alike is not None
    assert alike.ratio == 1
    assert fairness([]) is None
