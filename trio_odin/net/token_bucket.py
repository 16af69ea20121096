"""A token bucket."""

from __future__ import annotations


class TokenBucket:
    """Allows `burst` events at once and `per_second` in the long run. Rate 0 means no limit."""

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated")

    def __init__(self, *, burst: float, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._tokens = burst
        self._updated = now

    def take(self, now: float) -> bool:
        """Whether an event at `now` (seconds, monotonic) is allowed. If so, its token is spent."""
        if not self._per_second:
            return True
        refill = (now - self._updated) * self._per_second
        self._tokens = min(self._burst, self._tokens + refill)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def charge(self, tokens: float) -> None:
        """Spend more, for an event that turned out to be costly: later ones have to wait."""
        self._tokens -= tokens
