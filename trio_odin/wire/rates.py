"""The rates that a client may have: how often it is sent the newest event of a channel."""

from __future__ import annotations

from typing import Final, TypeAlias

# In milliseconds; None is a pause, in which nothing is sent.
Rate: TypeAlias = int | None
EVERY_EVENT: Final = 0
# All other rates that are granted: few, so that many connections have the same one.
RATES_MS: Final = (50, 100, 200, 250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000)
# All of them are multiples of it.
TICK_MS: Final = 50


def granted(every_ms: Rate, *, least_ms: int) -> Rate:
    """The rate for a client that asks for `every_ms`: the next longer one, or the longest."""
    if every_ms is None or every_ms == EVERY_EVENT:
        return every_ms
    asked = max(every_ms, least_ms)
    return next((rate for rate in RATES_MS if rate >= asked), RATES_MS[-1])
