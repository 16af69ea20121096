"""Gaps: events that the clients of this server can never get, and how far they can be counted.

A sequence of the stream that is jumped over is proof of a loss only if every subject of the stream
is ours: else it may be the number of somebody else's message, and the count is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TypeAlias

import attrs


class GapReason(Enum):
    """How events got lost before the fan-out."""

    WINDOW = "window"  # the stream's limits had dropped them before we could take them
    STREAM = "stream"  # the stream is another one now
    CORE = "core"  # the connection was away, and core NATS keeps nothing
    UNREADABLE = "unreadable"  # the connection ended twice at one of them, which was stepped over
    SHED = "shed"  # they came, and the server gave them up; see `Shed`


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
            self.first if self.first is not None else later.first,
            later.last if later.last is not None else self.last,
        )


# At most one of each reason, so what waits to be told never grows.
Gaps: TypeAlias = dict[GapReason, Gap]


def joined(gaps: Gaps, later: Iterable[Gap]) -> Gaps:
    """`gaps` and `later` ones, those of the same reason as one. Neither is changed."""
    sums = dict(gaps)
    for gap in later:
        sums[gap.reason] = sums[gap.reason].joined(gap) if gap.reason in sums else gap
    return sums


@attrs.frozen
class StreamState:
    """A stream when it was asked: the offsets `first` to `last` are in it, none if it is empty.

    `epoch` tells it from another one of the same name. `is_ours`: no subject in it but ours.
    """

    name: str
    epoch: str
    first: int
    last: int
    is_ours: bool


@attrs.define
class Position:
    """How far in which stream we are: everything up to `offset` was taken, or declared missing.

    Args:
        recall: how many messages from before the start to take, for clients that come back.
        before: the offset of ours before the last one, or of what did not come between them.
        past: up to here all was published before the start, and is news to nobody.
    """

    stream: str = ""
    epoch: str = ""
    offset: int = 0
    recall: int = 0
    before: int = attrs.field(default=0, init=False)
    past: int = attrs.field(default=0, init=False)
    _is_ours: bool = True
    _dropped: int = 0  # ahead of the position, and booked already

    def is_lost_in(self, state: StreamState) -> bool:
        """Whether this is not the stream we were in: made anew, or back but shorter."""
        return state.epoch != self.epoch or state.last < self.offset

    def enter(self, state: StreamState) -> list[Gap]:
        """Find the place behind which to go on in the stream; returns what cannot be had any more.

        At start-up that is the end of the stream, less what is to be recalled. A stream that was
        made anew, or that came back shorter than it was (as one in memory does when its server
        restarts), is read from its beginning: all that is in it is new.
        """
        gaps = []
        if not self.epoch:
            self.past = state.last
            self.offset = max(0, state.first - 1, state.last - self.recall)
        elif self.is_lost_in(state):
            gaps.append(Gap(GapReason.STREAM))
            self.offset = self.past = 0
        self.stream, self.epoch, self._is_ours = state.name, state.epoch, state.is_ours
        self._dropped = 0
        if state.first > self.offset + 1:
            missed = state.first - self.offset - 1 if state.is_ours else None
            gaps.append(Gap(GapReason.WINDOW, missed, self.offset + 1, state.first - 1))
            self.offset = state.first - 1
        return gaps

    @property
    def is_past(self) -> bool:
        """Whether what was taken last was published before the start."""
        return self.offset <= self.past

    def step_over(self, offset: int) -> Gap:
        """Go to `offset`, which is ahead and cannot be read; returns that it is missing."""
        self.before, self.offset = self.offset, offset
        return Gap(GapReason.UNREADABLE, 1, offset, offset)

    def drop(self) -> None:
        """A message ahead will not come, which is booked: no gap besides."""
        self._dropped += 1

    def move(self, offset: int) -> Gap | None:
        """Go to `offset`, which is ahead; returns what was between and is gone."""
        self.before = self.offset
        if offset > self.before + 1 and (self._is_ours or self._dropped):
            self.before = offset - 1  # which did not come
        first, self.offset = max(self.offset, self.past) + 1, offset
        if offset <= first:
            return None
        booked = min(self._dropped, offset - first)
        self._dropped -= booked
        missed = offset - first - booked
        if not missed or not self._is_ours:
            return None
        return Gap(GapReason.WINDOW, missed, first, offset - 1)
