"""When the next round of writes may begin, to be joined under load; and how many accepts."""

from __future__ import annotations

from typing import Final

# A wait shorter than this joins nothing that matters and costs a turn of the scheduler.
_WAIT_MIN_SECONDS: Final = 0.001


class Pace:
    """Lets a round of writes rest half as long as it took, at most `max_rest_seconds`.

    While rounds are short against the time between publications, nothing ever waits. The more of
    its time the hub spends writing, the longer is the rest, the more publications are there when it
    ends, and the fewer writes carry them. Time enters as monotonic seconds.
    """

    _REST_SHARE: Final = 0.5

    def __init__(self, max_rest_seconds: float) -> None:
        self._max_rest_seconds = max_rest_seconds
        self._rest_until = float("-inf")

    def delay(self, now: float) -> float:
        """Seconds that a round should wait which could begin `now`; mostly 0."""
        wait = min(self._rest_until - now, self._max_rest_seconds)
        return wait if wait >= _WAIT_MIN_SECONDS else 0.0

    def worked(self, started: float, ended: float) -> None:
        """A round was at work from `started` to `ended`."""
        rest = min((ended - started) * self._REST_SHARE, self._max_rest_seconds)
        self._rest_until = ended + rest


class AcceptPace:
    """Spreads accepts over time: `per_second` in the long run, 0: as many as come.

    What a tenth of a second allows may come at once. Time enters as monotonic seconds.
    """

    _BURST_SECONDS: Final = 0.1

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * self._BURST_SECONDS)
        self._room = self._burst
        self._updated = float("-inf")

    def room(self, now: float, most: int) -> int:
        """How many may be accepted `now`, at most `most`."""
        if not self._per_second:
            return most
        refill = (now - self._updated) * self._per_second
        self._room = min(self._room + refill, self._burst)
        self._updated = now
        return min(int(self._room), most)

    def accepted(self, count: int) -> None:
        """So many were."""
        self._room -= count

    def delay(self) -> float:
        """How long to wait where there is no room: for one accept, or for a few at a high rate."""
        return max(1.0 / self._per_second, self._BURST_SECONDS / 4) if self._per_second else 0.0
