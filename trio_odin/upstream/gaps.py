"""Gaps: events that the clients of this server can never get, and how far they can be counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import attrs

from trio_odin.ledger.reasons import GapReason

# Each comes once in the life of a NATS connection, and changes what offsets mean.
_RARE = {GapReason.START, GapReason.STREAM, GapReason.CORE}


@attrs.frozen
class Gap:
    """A loss of `missed` events, at the offsets `first` to `last`; each None if it is unknown."""

    reason: GapReason
    missed: int | None = None
    first: int | None = None
    last: int | None = None

    def joined(self, later: Gap) -> Gap:
        """Join with a `later` gap of the same reason; returns one gap for both."""
        is_counted = self.missed is not None and later.missed is not None
        return Gap(
            self.reason,
            (self.missed or 0) + (later.missed or 0) if is_counted else None,
            None if later.first is None else self.first,
            later.last,
        )


# At most one per reason, so what waits to be reported never grows.
Gaps: TypeAlias = dict[GapReason, Gap]


def joined(gaps: Gaps, later: Iterable[Gap]) -> Gaps:
    """`gaps` and `later` ones, those of the same reason as one. Neither is changed.

    A gap for another stream comes first, because it begins another epoch. Losses before it lose
    their offsets, which mean other events now.
    """
    sums = dict(gaps)
    for gap in later:
        if gap.reason is GapReason.STREAM:
            sums = {one: attrs.evolve(sums[one], first=None, last=None) for one in sums}
        sums[gap.reason] = sums[gap.reason].joined(gap) if gap.reason in sums else gap
    if GapReason.STREAM in sums:
        sums = {GapReason.STREAM: sums[GapReason.STREAM]} | sums
    return sums


class Losses:
    """Gaps that were not reported yet.

    Reports come at most once a second, or they would be a flood; only gaps that change what offsets
    mean are due at once. Time enters as monotonic seconds.
    """

    TELL_SECONDS: Final = 1.0

    def __init__(self) -> None:
        self._untold: Gaps = {}
        self._told_at = float("-inf")

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._untold)

    def declare(self, gaps: Iterable[Gap]) -> None:
        """Add `gaps`."""
        self._untold = joined(self._untold, gaps)

    def are_due(self, now: float) -> bool:
        """Whether to report them `now`, before the next event."""
        is_time = now - self._told_at >= self.TELL_SECONDS
        return bool(self._untold) and (is_time or not _RARE.isdisjoint(self._untold))

    def take(self, now: float) -> Gaps:
        """Remove and return all of them, to be reported `now`."""
        gaps, self._untold = self._untold, {}
        self._told_at = now
        return gaps


class Mark(NamedTuple):
    """What the hub has to know of the stream between two messages; it comes in order with them.

    Attributes:
        epoch: which numbering the offsets belong to; None where there are no offsets.
        reached: everything up to this offset has come, or is in `gaps`; None without offsets.
        backfill_end: everything up to this offset is older than the server's start, and is not news
            to any client.
        gaps: what was lost between the message before and the one after.
        is_broken: whether something older than the start is missing there. It is not a loss to
            report, but a client that resumes from before it may have missed it.
        is_newest_coming: whether the newest message of each channel will follow, from the stream.
        shed: of each channel the newest message that was shed since the mark before.
        is_shed_unknown: whether more channels than are known had messages shed.
    """

    epoch: str | None
    reached: int | None
    backfill_end: int = 0
    gaps: tuple[Gap, ...] = ()
    is_broken: bool = False
    is_newest_coming: bool = False
    shed: Mapping[str, int] = MappingProxyType({})
    is_shed_unknown: bool = False
