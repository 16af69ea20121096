"""Pacing: how many connections may be accepted now."""

from __future__ import annotations

import math
from typing import Final


class AcceptPace:
    """Decides how many connections may be accepted now: as many as the loop has time for.

    It is a feedback control, computed every tenth of a second from what the loop did:

        others = 1 - idle - accepting    what the rest takes of the loop's time, smoothed
        share  = 1 - RESERVE - others    what accepting may take of it, never less than FLOOR
        rate   = share / cost            from TRICKLE to `per_second`; the cost is measured too

    So accepting gets the time that is left and is the first to give way. Connections that wait cost
    nothing. At most a `SLICE` of this work is done at a time; everything else runs in between,
    delayed by at most that. docs/decisions/0019-accepting.md has the reasons and figures.

    Times are monotonic seconds. Without `observe`, only `per_second` counts (0: no limit).
    """

    RESERVE: Final = 0.2
    FLOOR: Final = 0.1
    SLICE_SECONDS: Final = 0.005
    TRICKLE_PER_SECOND: Final = 50.0
    _WINDOW_SECONDS: Final = 0.1
    _SMOOTHING_SECONDS: Final = 0.3
    # This many accepts move the estimate of their cost by two thirds; one moves it by a tenth.
    _SMOOTHING_ACCEPTS: Final = 50
    _WEIGHT_MIN: Final = 0.1
    _COST_SECONDS: Final = 0.0005  # a guess, until the first accepts are measured
    _BURST_SECONDS: Final = 0.1  # what `per_second` allows in this time may come at once
    _UNLIMITED: Final = 1e9

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._others = 0.0
        self._cost = self._COST_SECONDS
        self._rate = self._limit()
        self._room = float("inf")
        self._updated = float("-inf")
        self._accepted = 0
        self._observed: tuple[float, float, float] | None = None  # when, and what

    def set_limit(self, per_second: float) -> None:
        """Accept at most `per_second` from now on; 0 means as many as there is time for."""
        self._rate = min(self._rate, per_second) if per_second else self._rate
        self._per_second = per_second

    def observe(self, now: float, idle_seconds: float, accepting_seconds: float) -> None:
        """Take in the total time that the loop has been idle, and has spent on accepting."""
        if self._observed is None:
            self._observed = (now, idle_seconds, accepting_seconds)
            return
        then, idle_then, accepting_then = self._observed
        seconds = now - then
        if seconds < self._WINDOW_SECONDS:
            return
        self._observed = (now, idle_seconds, accepting_seconds)
        accepting = accepting_seconds - accepting_then
        others = 1 - (idle_seconds - idle_then + accepting) / seconds
        weight = 1 - math.exp(-seconds / self._SMOOTHING_SECONDS)
        self._others += (min(max(others, 0.0), 1.0) - self._others) * weight
        self._learn_cost(accepting)
        share = max(1 - self.RESERVE - self._others, self.FLOOR)
        self._rate = min(max(share / self._cost, self.TRICKLE_PER_SECOND), self._limit())

    def _learn_cost(self, seconds: float) -> None:
        if not self._accepted:
            return
        # A request may come long after its accept, so its work may fall into a later window.
        cost = min(max(seconds / self._accepted, self._cost / 4), self._cost * 4)
        weight = max(1 - math.exp(-self._accepted / self._SMOOTHING_ACCEPTS), self._WEIGHT_MIN)
        self._cost += (cost - self._cost) * weight
        self._accepted = 0

    def _limit(self) -> float:
        return self._per_second or self._UNLIMITED

    @property
    def per_second(self) -> float:
        """The rate now."""
        return self._rate

    def room(self, now: float, most: int) -> int:
        """Return how many connections may be accepted `now`, at most `most`."""
        burst = max(1.0, min(self.SLICE_SECONDS / self._cost, self._limit() * self._BURST_SECONDS))
        self._room = min(self._room + (now - self._updated) * self._rate, burst)
        self._updated = now
        return int(min(self._room, most))

    def accepted(self, count: int) -> None:
        """Record that `count` connections were accepted."""
        self._room -= count
        self._accepted += count

    def delay(self) -> float:
        """Return the seconds to wait for room: for one connection, or for a few at a high rate."""
        return max(1.0 / self._rate, self.SLICE_SECONDS / 2)
