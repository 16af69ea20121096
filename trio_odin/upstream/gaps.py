"""Gaps: events that the clients of this server can never get, and how far they can be counted.

A sequence of the stream that is jumped over is proof of a loss only if every subject of the stream
is ours: else it may be the number of somebody else's message, and the count is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

import attrs

from trio_odin.ledger.reasons import GapReason

# Each comes once in the life of a connection to NATS, and changes what offsets mean.
_RARE = {GapReason.START, GapReason.STREAM, GapReason.CORE}


@attrs.frozen
class Gap:
    """A loss: `missed` events, None if unknown, with offsets from `first` to `last` if known."""

    reason: GapReason
    missed: int | None = None
    first: int | None = None
    last: int | None = None

    def joined(self, later: Gap) -> Gap:
        """Make one of this and a `later` one of the same reason."""
        is_counted = self.missed is not None and later.missed is not None
        return Gap(
            self.reason,
            (self.missed or 0) + (later.missed or 0) if is_counted else None,
            None if later.first is None else self.first,
            later.last,
        )


# At most one of each reason, so what waits to be told never grows.
Gaps: TypeAlias = dict[GapReason, Gap]


def joined(gaps: Gaps, later: Iterable[Gap]) -> Gaps:
    """`gaps` and `later` ones, those of the same reason as one. Neither is changed.

    Another stream comes first, as it begins another epoch. What was lost before it loses its
    offsets: they mean other events now.
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
    """Gaps that nobody has been told of yet: at most one telling a second, or it would be a flood.

    Time enters as monotonic seconds.
    """

    TELL_SECONDS: Final = 1.0

    def __init__(self) -> None:
        self._untold: Gaps = {}
        self._told_at = float("-inf")

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._untold)

    def declare(self, gaps: Iterable[Gap]) -> None:
        """Events were lost."""
        self._untold = joined(self._untold, gaps)

    def are_due(self, now: float) -> bool:
        """Whether to tell of them `now`: they come before the next event."""
        is_time = now - self._told_at >= self.TELL_SECONDS
        return bool(self._untold) and (is_time or not _RARE.isdisjoint(self._untold))

    def take(self, now: float) -> Gaps:
        """All of them, to be told `now`."""
        gaps, self._untold = self._untold, {}
        self._told_at = now
        return gaps


class Mark(NamedTuple):
    """What the hub has to know of the stream between two messages; it comes in order with them.

    Attributes:
        epoch: which numbering the offsets belong to; None where there are no offsets.
        reached: everything up to this offset has come, or is in `gaps`; None without offsets.
        past: everything up to this offset is older than the server's start, and news to nobody.
        gaps: what was lost between the message before and the one after.
        is_broken: something older than the start is missing there. It is no loss to tell of, but
            who resumes from before it may have missed it.
    """

    epoch: str | None
    reached: int | None
    backfill_end: int = 0
    gaps: tuple[Gap, ...] = ()
    is_broken: bool = False


@attrs.frozen
class StreamState:
    """A stream when it was asked: the offsets `first` to `last` are in it, none if it is empty.

    `epoch` tells it from another one of the same name. `is_ours`: no subject in it but ours.
    `witness` is the time of the message at the offset of our own witness, None if there is none.
    `may_be_emptied`: it can come back without its messages, under the same epoch; see `Position`.
    """

    name: str
    epoch: str
    first: int
    last: int
    is_ours: bool
    witness: int | None = None
    may_be_emptied: bool = False


@attrs.define
class StreamPosition:
    """How far in which stream the bridge is: up to `offset` all was taken, or declared missing.

    Args:
        recall: how many messages from before the start to take, for clients that come back.
        past: up to here all was published before the start, and is news to nobody.
        witness: offset and time of a message that we know, in nanoseconds of NATS' clock. A stream
            in memory can come back empty with its name and the date of its creation; once it has
            grown past the position, only the time of a message tells it from the one before.

    Attributes:
        is_broken: something of the past was missing, or may have been; see `Mark`. Stays until
            whoever has told the hub makes it False.
    """

    stream: str = ""
    epoch: str = ""
    offset: int = 0
    backfill: int = 0
    backfill_end: int = attrs.field(default=0, init=False)
    witness: tuple[int, int] | None = attrs.field(default=None, init=False)
    is_broken: bool = attrs.field(default=False, init=False)
    _is_ours: bool = True

    def is_lost_in(self, state: StreamState) -> bool:
        """Whether this is not the stream we were in: made anew, or emptied."""
        return state.epoch != self.epoch or self.was_emptied(state)

    def was_emptied(self, state: StreamState) -> bool:
        """Whether the stream has lost its messages since we were there, and counts anew."""
        is_other = (
            self.witness is not None
            and state.witness is not None
            and state.witness != self.witness[1]
        )
        return state.last < self.offset or is_other

    def enter(self, state: StreamState) -> list[Gap]:
        """Find the place behind which to go on in the stream; returns what cannot be had any more.

        At start-up that is the end of the stream, less what is to be recalled. A stream that was
        made anew, or emptied (as one in memory is when its server restarts), is read from its
        beginning: all that is in it is new.
        """
        gaps = []
        if not self.epoch:
            self.backfill_end = state.last
            self.offset = max(0, state.first - 1, state.last - self.backfill)
        elif self.is_lost_in(state):
            gaps.append(Gap(GapReason.STREAM))
            self.offset = self.backfill_end = 0
            self.witness = None
        self.stream, self.epoch, self._is_ours = state.name, state.epoch, state.is_ours
        if state.first > self.offset + 1:
            self.is_broken = True
            if state.first > self.backfill_end + 1:  # else all of it was before the start
                first = max(self.offset, self.backfill_end) + 1
                missed = state.first - first if state.is_ours else None
                if state.may_be_emptied and self.witness is not None:
                    # What would tell is gone: these offsets may have been given anew from 1 on.
                    first, missed = 1, None
                gaps.append(Gap(GapReason.WINDOW, missed, first, state.first - 1))
            self.offset = state.first - 1
        return gaps

    @property
    def is_backfill(self) -> bool:
        """Whether what was taken last was published before the start."""
        return self.offset <= self.backfill_end

    def step_over(self, offset: int) -> Gap:
        """Go to `offset`, which is ahead and cannot be read; returns that it is missing."""
        self.offset = offset
        return Gap(GapReason.UNREADABLE, 1, offset, offset)

    def settle(self) -> None:
        """Nothing more of ours from before the start will come."""
        self._leave_past(self.backfill_end)
        self.offset = max(self.offset, self.backfill_end)

    def move(self, offset: int, unix_ns: int | None = None) -> Gap | None:
        """Go to `offset`, which is ahead; returns what was between and is gone.

        `unix_ns` is when NATS stored the message there.
        """
        self._leave_past(offset - 1)
        first, self.offset = max(self.offset, self.backfill_end) + 1, offset
        if unix_ns is not None:
            self.witness = (offset, unix_ns)
        if offset <= first or not self._is_ours:
            return None
        return Gap(GapReason.WINDOW, offset - first, first, offset - 1)

    def _leave_past(self, reached: int) -> None:
        """What is behind the position up to `reached` did not come."""
        is_jump = self.offset < min(reached, self.backfill_end)
        self.is_broken = self.is_broken or (is_jump and self._is_ours)
