"""What a load cost: differences between samples, per second, per delivery, per connection."""

from __future__ import annotations

import attrs

from trio_odin.lab.load.report import KIB, ServerFigures
from trio_odin.lab.load.scrape import CONNECTIONS, CPU_SECONDS, RSS_BYTES, SENT, Sample


@attrs.frozen
class Hold:
    """The hold as our own side saw it."""

    seconds: float = 0.0
    received: int = 0
    client_cpu: float = 0.0

    @classmethod
    def between(cls, first: Sample | None, last: Sample | None) -> Hold:
        """What happened between two samples; nothing if one of them was never taken."""
        if first is None or last is None:
            return cls()
        return cls(
            last.at - first.at, last.received - first.received, last.client_cpu - first.client_cpu
        )


def ratio(amount: float | None, divisor: float) -> float | None:
    """`amount` for each of `divisor`; None where one of them is missing."""
    return None if amount is None or not divisor else amount / divisor


def micros(seconds: float | None, divisor: float) -> float | None:
    """Microseconds for each of `divisor`."""
    return ratio(None if seconds is None else seconds * 1e6, divisor)


def server_figures(
    before: Sample | None,
    held_from: Sample | None,
    held_until: Sample | None,
    *,
    connected: int,
    subscribed: int,
) -> ServerFigures:
    """The server's cost, from samples before the connects and at both ends of the hold."""
    if before is None or held_from is None or held_until is None:
        return ServerFigures()
    hold = Hold.between(held_from, held_until)
    grown = held_from.since(before, RSS_BYTES)
    hold_cpu = held_until.since(held_from, CPU_SECONDS)
    # The server's own count if it has one: it may serve others besides us.
    deliveries = held_until.since(held_from, SENT) or hold.received
    return ServerFigures(
        cpu_us_per_connect=micros(held_from.since(before, CPU_SECONDS), subscribed),
        cpu_cores=ratio(hold_cpu, hold.seconds),
        cpu_us_per_delivery=micros(hold_cpu, deliveries),
        rss_before_bytes=before.metrics.get(RSS_BYTES),
        rss_after_bytes=held_from.metrics.get(RSS_BYTES),
        rss_held_bytes=held_until.metrics.get(RSS_BYTES),
        kib_per_connection=ratio(None if grown is None else grown / KIB, connected),
        connections=held_from.metrics.get(CONNECTIONS),
    )
