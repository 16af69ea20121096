"""Several workers as one server: their snapshots merged, and what those that ended leave behind.

Pure functions, so that what a scrape shows of a crash can be tested without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from trio_odin.core.ledger import Ledger, total
from trio_odin.core.reasons import CloseReason, Dropped, Shed
from trio_odin.telemetry.snapshot import Snapshot, Workers


@attrs.frozen
class Past:
    """The counters of workers that have ended: they hold nothing any more, and count nothing."""

    ledger: Ledger = attrs.field(factory=Ledger)
    nats_reconnects: int = 0
    cpu_seconds: float = 0.0
    log_lines_dropped: int = 0

    def with_ended(self, last: Snapshot) -> Past:
        """The past with one more worker in it, whose last known figures are `last`."""
        return Past(
            total([self.ledger, _closed_books(last)]),
            self.nats_reconnects + last.nats_reconnects,
            self.cpu_seconds + last.cpu_seconds,
            self.log_lines_dropped + last.log_lines_dropped,
        )


def _closed_books(last: Snapshot) -> Ledger:
    """Books in which nothing is open: what the worker held is booked as lost, so they balance."""
    ledger = total([last.ledger])
    ledger.publications.shed[Shed.WORKER_LOST] += last.feed_waiting
    ledger.deliveries.dropped[Dropped.WORKER_LOST] += ledger.deliveries.queued
    ledger.deliveries.queued = 0
    ledger.traffic.closed[CloseReason.WORKER_LOST.label] += last.connections
    return ledger


def merge(parts: Sequence[Snapshot], *, past: Past, workers: Workers) -> Snapshot:
    """One server made of the workers `parts`, at least one, and the `past` of those before them.

    Counters and what the workers hold are sums. Each worker judges the CPU of all by what it uses
    itself now and the others did a second ago, so the server's is the mean; how busy one loop is,
    or how late, or what it sheds, is told of the worst. Limits are for the whole server, or the
    same for all. Channels are those of the worker that has most: most are subscribed to in every
    worker, and sending their names would cost what clients care to make of it. The claims are each
    what a client may count on:

    - NATS is, or was, connected if it is, or was, for all that take clients: a client may be with
      the one for which it is not. A worker that leaves to a successor takes no client any more; one
      that has just been started takes none before it has NATS.
    - The server is overloaded, or leaves, if all do: else another one still takes new clients.

    A state of one lasts as long as that of the one that has been in it longest; a state of all
    began with the last one.
    """
    staying = [part for part in parts if not part.is_draining] or parts
    taking = [part for part in staying if part.is_open] or staying
    worst = max(taking, key=lambda part: part.nats_trouble_seconds or 0.0)
    return attrs.evolve(
        parts[0],
        ledger=total([past.ledger, *(part.ledger for part in parts)]),
        uptime_seconds=max(part.uptime_seconds for part in parts),
        is_draining=all(part.is_draining for part in parts),
        draining_seconds=_of_all(part.draining_seconds for part in parts),
        connections=sum(part.connections for part in parts),
        subscription_counts=[count for part in parts for count in part.subscription_counts],
        channels=max(part.channels for part in parts),
        is_nats_connected=all(part.is_nats_connected for part in taking),
        was_nats_connected=all(part.was_nats_connected for part in taking),
        nats_age_seconds=_oldest(part.nats_age_seconds for part in taking),
        nats_trouble=worst.nats_trouble,
        nats_trouble_seconds=worst.nats_trouble_seconds,
        nats_reconnects=past.nats_reconnects + sum(part.nats_reconnects for part in parts),
        feed_waiting=sum(part.feed_waiting for part in parts),
        feed_capacity=sum(part.feed_capacity for part in parts),
        outbox_bytes=sum(part.outbox_bytes for part in parts),
        outbox_bytes_limit=sum(part.outbox_bytes_limit for part in parts),
        replay_bytes=sum(part.replay_bytes for part in parts),
        replay_bytes_limit=sum(part.replay_bytes_limit for part in parts),
        tasks=sum(part.tasks for part in parts),
        cpu_percent=_mean(part.cpu_percent for part in parts),
        loop_busy_percent=max(part.loop_busy_percent for part in parts),
        turnover_percent=max(part.turnover_percent for part in parts),
        lag_seconds=max(part.lag_seconds for part in parts),
        is_overloaded=all(part.is_overloaded for part in staying),
        is_memory_short=all(part.is_memory_short for part in staying),
        is_lagging=all(part.is_lagging for part in staying),
        is_out_of_files=all(part.is_out_of_files for part in staying),
        refusing_seconds=_of_all(part.refusing_seconds for part in staying),
        paused_percent=max(part.paused_percent for part in parts),
        paused_seconds=_of_one(part.paused_seconds for part in parts),
        half_open=sum(part.half_open for part in parts),
        group_memory_bytes=max(part.group_memory_bytes for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
        cpu_seconds=past.cpu_seconds + sum(part.cpu_seconds for part in parts),
        builds=sorted({build for part in parts for build in part.builds}),
        log_lines_dropped=past.log_lines_dropped + sum(part.log_lines_dropped for part in parts),
        workers=workers,
        is_open=any(part.is_open for part in parts),
    )


def _oldest(ages: Iterable[float | None]) -> float | None:
    """The greatest age; that of something that never came is None, and beyond all others."""
    return max(ages, key=lambda age: math.inf if age is None else age)


def _of_one(seconds: Iterable[float | None]) -> float | None:
    """For how long one at least is in a state; None if none is."""
    return max((value for value in seconds if value is not None), default=None)


def _of_all(seconds: Iterable[float | None]) -> float | None:
    """For how long all are in a state; None if one is not."""
    shortest = math.inf
    for value in seconds:
        if value is None:
            return None
        shortest = min(shortest, value)
    return shortest


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
