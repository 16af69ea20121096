"""Percentiles of durations. Fleets count in cheap buckets, which become an HdrHistogram.

Of a single connection there are few durations, but of ten thousand: a byte each, on a scale on
which a step is a twentieth more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import attrs

NS_PER_BUCKET: Final = 100_000
"""Fleets count in tenths of a millisecond."""

_STEP: Final = 1.05
_STEPS: Final = 255
_BUCKETS: Final = int(_STEP**_STEPS) - 1  # 25 s; what is longer counts as that

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


LAST_BUCKET: Final = _BUCKETS


@cache
def step_of_bucket() -> bytes:
    """The step on the scale of a single connection, by `min(bucket, LAST_BUCKET)`."""
    return bytes(round(math.log(bucket + 1, _STEP)) for bucket in range(LAST_BUCKET + 1))


@attrs.frozen(kw_only=True)
class Fairness:
    """Whether all connections are served alike.

    Args:
        median_p99_ms: p99 of the latencies of a connection: that of the median one.
        worst_p99_ms: mean of the highest hundred, or hundredth part, of these.
    """

    median_p99_ms: float
    worst_p99_ms: float

    @property
    def ratio(self) -> float:
        """How much later the worst off get their events."""
        return self.worst_p99_ms / self.median_p99_ms if self.median_p99_ms else 1.0


_WORST_SHARE: Final = 100
_WORST_MAX: Final = 100


def p99_step(steps: bytes | bytearray) -> int:
    """The step that 99 in a hundred of a connection's latencies do not exceed."""
    return sorted(steps)[math.ceil(len(steps) * 0.99) - 1]


def fairness(p99_steps: Sequence[int]) -> Fairness | None:
    """Compare the connections, given the p99 of each; None without any."""
    if not p99_steps:
        return None
    ordered = sorted(p99_steps)
    worst = ordered[-max(1, min(_WORST_MAX, len(ordered) // _WORST_SHARE)) :]
    return Fairness(
        median_p99_ms=_ms_of_step(ordered[len(ordered) // 2]),
        worst_p99_ms=sum(map(_ms_of_step, worst)) / len(worst),
    )


def _ms_of_step(step: int) -> float:
    return float((_STEP**step - 1) * _US_PER_BUCKET / _US_PER_MS)
