"""The stream position: up to which offset of which stream the bridge has taken all events.

A jump in the stream's offsets proves a loss only if every subject of the stream is ours. Otherwise
an offset may be that of somebody else's message, and the count is not known.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs

from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Gap


class Arrival(NamedTuple):
    """What is known once a message has come.

    Attributes:
        gap: events before it that are missing; None if none are.
        is_backfill: whether the message was published before the start.
    """

    gap: Gap | None
    is_backfill: bool


@attrs.frozen
class StreamState:
    """A stream as NATS described it: the offsets `first` to `last` are in it, none if it is empty.

    Attributes:
        epoch: tells it from another stream of the same name.
        is_ours: whether it has no subjects but ours.
        witness: the time of the message at the offset of our own witness; None if there is none.
        may_be_emptied: whether it can come back without its messages under the same epoch; see
            `StreamPosition`.
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
    """The bridge's position in the stream: all up to `offset` was taken or declared missing.

    Args:
        backfill: how many messages from before the start to take, for clients that resume.

    Attributes:
        backfill_end: everything up to this offset was published before the start.
        witness: offset and time of a message that we know, in nanoseconds of NATS' clock. A stream
            in memory can come back empty with the same name and creation time; once it has grown
            beyond the position, only the time of a message tells it from the one before.
        is_broken: whether some of the backfill was missing, or may have been; see `Mark`. It stays
            True until the bridge has put that into a mark for the hub, and resets it.
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
        """Whether this is not the stream that we were in: it was made anew or emptied."""
        return state.epoch != self.epoch or self.was_emptied(state)

    def was_emptied(self, state: StreamState) -> bool:
        """Whether the stream has lost its messages since we were in it, and counts anew."""
        is_other = (
            self.witness is not None
            and state.witness is not None
            and state.witness != self.witness[1]
        )
        return state.last < self.offset or is_other

    def was_emptied_in_place(self, state: StreamState) -> bool:
        """Whether the stream counts anew under the epoch that we know, so needs another one."""
        return state.epoch == self.epoch and self.was_emptied(state)

    def enter(self, state: StreamState) -> list[Gap]:
        """Find the position after which to go on in the stream; returns what was lost.

        At the start that is the end of the stream, less the backfill. A stream that was made anew
        or emptied (as one in memory is when its server restarts) is read from its beginning: all
        that is in it is new.
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
            if state.first > self.backfill_end + 1:  # else all of it is older than the start
                first = max(self.offset, self.backfill_end) + 1
                missed = state.first - first if state.is_ours else None
                if state.may_be_emptied and self.witness is not None:
                    # The message of the witness is gone: offsets may have been given anew from 1.
                    first, missed = 1, None
                gaps.append(Gap(GapReason.WINDOW, missed, first, state.first - 1))
            self.offset = state.first - 1
        return gaps

    def step_over(self, offset: int) -> Gap:
        """Move to `offset`, which is ahead and cannot be read; returns the gap."""
        self.offset = offset
        return Gap(GapReason.UNREADABLE, 1, offset, offset)

    def settle(self) -> None:
        """End the backfill: nothing more of ours from before the start will come."""
        self._leave_past(self.backfill_end)
        self.offset = max(self.offset, self.backfill_end)

    def arrived(self, offset: int, unix_ns: int | None = None) -> Arrival | None:
        """Take in that the message at `offset` has come. None: it has come before.

        `unix_ns`: when NATS stored the message.
        """
        if offset <= self.offset:
            return None
        self._leave_past(offset - 1)
        first, self.offset = max(self.offset, self.backfill_end) + 1, offset
        if unix_ns is not None:
            self.witness = (offset, unix_ns)
        is_jump = offset > first and self._is_ours
        gap = Gap(GapReason.WINDOW, offset - first, first, offset - 1) if is_jump else None
        return Arrival(gap, offset <= self.backfill_end)

    def _leave_past(self, reached: int) -> None:
        """Note that nothing came between the position and `reached`."""
        is_jump = self.offset < min(reached, self.backfill_end)
        self.is_broken = self.is_broken or (is_jump and self._is_ours)
