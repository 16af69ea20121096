"""A histogram of durations, as Prometheus expects it: cheap to fill, summed up when read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import ClassVar

import attrs


@attrs.define
class Durations:
    """Counts by upper bound. `counts` has one entry more than `BOUNDS`, for longer durations."""

    BOUNDS: ClassVar = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

    counts: list[int] = attrs.field(factory=lambda: [0] * (len(Durations.BOUNDS) + 1))
    total_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.BOUNDS, seconds)] += 1
        self.total_seconds += seconds

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """For each bound, how many were at most as long; the last bound is `+Inf`."""
        bounds = [*map(str, self.BOUNDS), "+Inf"]
        return zip(bounds, accumulate(self.counts), strict=True)
