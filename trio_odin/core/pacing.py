"""When the next round of writes may begin, so that under load they can be joined."""

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
