"""Chains: for each channel the offset of its newest event, which is the next one's `prev`.

A client compares `prev` with the offset of the last event that it has of the channel: if they are
the same, it has missed none. So a chain has the events, too, that the server sheds, and where it
does not know for certain it says nothing.
"""

from __future__ import annotations

from trio_odin.ledger.reasons import GapReason
from trio_odin.upstream.gaps import Mark


class Chains:
    """The newest offset of each channel, of those that had an event last.

    Args:
        channels_max: how many channels to know; publishers may make up names.
    """

    def __init__(self, channels_max: int) -> None:
        self._channels_max = channels_max
        self._newest: dict[str, int] = {}  # the channel with the newest event is the last one
        self._learned: dict[str, int] = {}
        self._lost_at = -1

    def link(self, channel: str, offset: int) -> int | None:
        """Add an event of `channel`; returns the offset of the one before it, if that is known.

        Offsets have to grow.
        """
        newest = self._newest
        prev = newest.pop(channel, None)
        newest[channel] = offset
        if prev is None:
            if (learned := self._learned.pop(channel, offset)) < offset:
                prev = learned
            if len(newest) > self._channels_max:
                quietest = next(iter(newest))
                # What is learned of it later may be older.
                self._lost_at = max(self._lost_at, newest.pop(quietest))
        return prev

    def learn(self, channel: str, offset: int, *, position: int) -> None:
        """Take the newest offset of a channel, as it was at `position`, from the stream itself."""
        if channel not in self._newest and position >= self._lost_at:
            self._learned[channel] = offset

    def unlearn(self, channel: str) -> None:
        """What was learned of `channel` may not be its newest event."""
        self._learned.pop(channel, None)

    def note(self, mark: Mark, *, is_new_epoch: bool) -> None:
        """Take in what happened to the stream: messages may be lost, of channels that are known."""
        if mark.reached is None:
            self._forget(-1)
        elif is_new_epoch or mark.is_broken or mark.is_shed_unknown or _is_unknown(mark):
            self._forget(mark.reached)
        for channel, offset in mark.shed.items():
            self.link(channel, offset)

    def _forget(self, reached: int) -> None:
        self._newest.clear()
        self._learned.clear()
        self._lost_at = reached


def _is_unknown(mark: Mark) -> bool:
    return any(gap.reason is not GapReason.SHED for gap in mark.gaps)
