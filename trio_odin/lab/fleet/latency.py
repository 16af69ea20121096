"""Percentiles of durations. Fleets count in cheap buckets, which become an HdrHistogram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

NS_PER_BUCKET: Final = 100_000
"""Fleets count in tenths of a millisecond."""

_US_PER_BUCKET: Final = 100
_US_PER_MS: Final = 1000
_MAX_US: Final = 3600 * 1_000_000
_DIGITS: Final = 3


@attrs.frozen(kw_only=True)
class Durations:
    """Percentiles of some durations in milliseconds.

    `hdr` is the whole histogram, in microseconds: HdrHistogram V2, compressed, in base64, for the
    tools of hdrhistogram.org.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    hdr: str = ""


def durations(buckets: Mapping[int, int]) -> Durations | None:
    """The percentiles of durations counted in buckets; None if the buckets are empty."""
    from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - of an extra

    if not buckets:
        return None
    histogram = HdrHistogram(1, _MAX_US, _DIGITS)
    for bucket, count in buckets.items():
        histogram.record_value(min(_MAX_US, max(1, bucket * _US_PER_BUCKET)), count)
    p50, p90, p99, p999, most = (
        histogram.get_value_at_percentile(percent) / _US_PER_MS
        for percent in (50.0, 90.0, 99.0, 99.9, 100.0)
    )
    return Durations(
        count=histogram.get_total_count(),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=most,
        hdr=histogram.encode().decode(),
    )


def percentile_ms(buckets: Mapping[int, int], fraction: float) -> float:
    """The smallest latency in ms that at least `fraction` of all do not exceed; 0 without any.

    It serves the line of each second, where a histogram would be made for a single figure.
    """
    rank = fraction * sum(buckets.values())
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return bucket * _US_PER_BUCKET / _US_PER_MS
    return 0.0
