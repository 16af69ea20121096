"""Fewer points for a drawing, without losing what stands out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Point: TypeAlias = tuple[float, float | None]

_EACH = 2  # points that a bucket keeps: its lowest and its highest


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points, in their order; the first, the last and the extremes are kept.

    The rest is cut into buckets of neighbours, and each keeps its lowest and its highest point, so
    a spike of one second is as high as it was. A bucket without any figure stays a gap.

    Args:
        points: time and figure; None where there was none.
        most: at least 4.
    """
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    buckets = (most - 2) // _EACH
    kept = [points[0]]
    for number in range(buckets):
        bucket = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        kept += _extremes(bucket)
    return [*kept, points[-1]]


def _extremes(bucket: Sequence[Point]) -> Iterator[Point]:
    known = [
        (y, index) for index, (_, y) in enumerate(bucket) if y is not None and math.isfinite(y)
    ]
    if not known:
        yield from bucket[:1]
        return
    for index in sorted({min(known)[1], max(known)[1]}):
        yield bucket[index]
