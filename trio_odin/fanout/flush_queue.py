"""The flush queue: who has deferred messages is written to first come, first served.

While one connection waits for its turn, its messages add up, and all of them go out in one write.
So the more there is to do, the less there is to do for each message, without a timer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import trio

from trio_odin.fanout.outbound import Outbound, defer
from trio_odin.fanout.publication import Publication
from trio_odin.ledger.counters import Ledger

# What joins its frames in one write costs about as much as these frames.
_FRAMES_OF_A_WRITE = 8
# The clock costs as much as a fortieth of a write.
_FRAMES_BETWEEN_LOOKS = 8 * (_FRAMES_OF_A_WRITE + 1)


class FlushQueue:
    """The connections with deferred messages, in the order of their first one.

    Args:
        ledger: counts what is deferred, and how long each message took to its last write.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[Outbound] = deque()
        self._served = 0
        # Messages that are not written to all yet: the turn that has to be over, and the arrival.
        self._timed: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        """How many messages are not written to all yet: no connection has more of them deferred."""
        return len(self._timed)

    def defer(self, publication: Publication, subscribers: Iterable[Outbound]) -> None:
        """Like `fan_out`, but each of `subscribers` is written to when its turn comes."""
        defer(publication, subscribers, self._ledger, self._waiting.append)

    def time(self, arrived_at: float) -> None:
        """Note that a message was fanned out which had arrived at this time."""
        self._timed.append((self._served + len(self._waiting), arrived_at))
        self._record()

    def flush(self, seconds: float) -> None:
        """Serve connections for this long. Does not wait."""
        waiting, ends_at = self._waiting, trio.current_time() + seconds
        frames = 0  # since the last look at the clock
        while waiting:
            frames += _FRAMES_OF_A_WRITE + waiting.popleft().take_turn()
            self._served += 1
            if frames >= _FRAMES_BETWEEN_LOOKS:
                frames = 0
                if trio.current_time() >= ends_at:
                    break
        self._record()

    def _record(self) -> None:
        timed = self._timed
        if timed and timed[0][0] <= self._served:
            now = trio.current_time()
            while timed and timed[0][0] <= self._served:
                self._ledger.fan_out.add(now - timed.popleft()[1])
