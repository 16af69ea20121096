"""The counters: what became of each publication, each delivery, each connection and each command.

They are plain integers: the hot path pays for an addition, and telemetry reads them when it is
asked. Two balances hold at any moment between two fan-outs:

    received  = fanned_out + unmatched + backfilled + Σ invalid + Σ shed + (in the inbound queue)
    matched   = written + queued + conflated + skipped + Σ dropped
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from trio_odin.ledger.durations import Durations
from trio_odin.ledger.reasons import Dropped, GapReason, Invalid, Shed


def _counter() -> Counter[str]:
    return Counter()


@attrs.define
class Publications:
    """The way in: messages from NATS until they are fanned out.

    Attributes:
        repeated: messages that NATS sent a second time; they are not `received` again.
        backfilled: messages from before the start, kept for clients that resume.
        gaps: losses that were reported.
        missed: events in these losses, as far as they can be counted.
    """

    received: int = 0
    fanned_out: int = 0
    unmatched: int = 0
    invalid: Counter[Invalid] = attrs.field(factory=Counter)
    shed: Counter[Shed] = attrs.field(factory=Counter)
    repeated: int = 0
    backfilled: int = 0
    gaps: Counter[GapReason] = attrs.field(factory=Counter)
    missed: int = 0

    def outcomes(self, waiting: int) -> dict[str, int]:
        """What became of the received messages, of which `waiting` are in the inbound queue.

        The values add up to `received`. docs/metrics.md takes its balance from here.
        """
        return {
            "fanned_out": self.fanned_out,
            "unmatched": self.unmatched,
            "recalled": self.backfilled,
            "invalid": self.invalid.total(),
            "shed": self.shed.total(),
            "waiting": waiting,
        }

    def imbalance(self, waiting: int) -> int:
        """Messages unaccounted for, with `waiting` in the inbound queue. Always 0."""
        return self.received - sum(self.outcomes(waiting).values())


@attrs.define
class Deliveries:
    """The way out: a delivery is one event for one connection.

    An event of a resume or a replay is a delivery too, once it is written or may wait. An event for
    a connection with a rate is one at the tick that has it, or a newer one of its channel.

    Attributes:
        queued: in an outbox, or half written, at this moment.
        conflated: gave way to a newer event of the same channel because the client read too slowly.
        skipped: gave way to a newer one because the client has a rate.
        batches: messages of ticks, of which each has some of the events.
    """

    matched: int = 0
    written: int = 0
    queued: int = 0
    conflated: int = 0
    skipped: int = 0
    batches: int = 0
    dropped: Counter[Dropped] = attrs.field(factory=Counter)

    def outcomes(self) -> dict[str, int]:
        """What became of the matched ones, adding up to `matched`; docs/metrics.md uses it too."""
        return {
            "written": self.written,
            "queued": self.queued,
            "conflated": self.conflated,
            "skipped": self.skipped,
            "dropped": self.dropped.total(),
        }

    def imbalance(self) -> int:
        """Deliveries unaccounted for. Always 0."""
        return self.matched - sum(self.outcomes().values())


@attrs.define
class Traffic:
    """Connections, and what clients sent.

    Attributes:
        accepts_paced: how often accepting paused because there was no time for more clients.
        reloads: reloads of the settings, by result.
    """

    accepted: int = 0
    rejected: Counter[str] = attrs.field(factory=_counter)
    closed: Counter[str] = attrs.field(factory=_counter)
    accept_errors: int = 0
    accepts_paced: int = 0
    messages_received: int = 0
    binary_ignored: int = 0
    commands: Counter[str] = attrs.field(factory=_counter)
    errors: Counter[str] = attrs.field(factory=_counter)
    rate_limited: int = 0
    replayed: int = 0
    resumed: int = 0
    resumed_incompletely: int = 0
    snapshots: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    reloads: Counter[str] = attrs.field(factory=_counter)


@attrs.define
class TraceCounters:
    """Traced events, and the spans that show them.

    Attributes:
        events: events that were traced.
        over_limit: events that were not, as they were too many.
        spans_exported: spans that the collector has taken.
        spans_failed: spans that it has not.
        spans_dropped: spans that had no room while others were exported.
    """

    events: int = 0
    over_limit: int = 0
    spans_exported: int = 0
    spans_failed: int = 0
    spans_dropped: int = 0


@attrs.define
class Ledger:
    """All counters of one server.

    Attributes:
        fan_out: from the arrival of a message to the last write of its fan-out. Joined writes are
            included, and queued ones until they are in the outbox.
        lag: how late the scheduler runs what is due.
    """

    publications: Publications = attrs.field(factory=Publications)
    deliveries: Deliveries = attrs.field(factory=Deliveries)
    traffic: Traffic = attrs.field(factory=Traffic)
    traces: TraceCounters = attrs.field(factory=TraceCounters)
    fan_out: Durations = attrs.field(factory=Durations)
    lag: Durations = attrs.field(factory=Durations)

    def imbalance(self, waiting: int) -> int:
        """All that is unaccounted for, with `waiting` messages in the inbound queue. Always 0."""
        return abs(self.deliveries.imbalance()) + abs(self.publications.imbalance(waiting))


def total(ledgers: Iterable[Ledger]) -> Ledger:
    """Add up the ledgers of several servers, counter by counter, in a new one."""
    sums = Ledger()
    for ledger in ledgers:
        for part in attrs.fields(Ledger):
            into, of = getattr(sums, part.name), getattr(ledger, part.name)
            for counter in attrs.fields(type(into)):
                _add(into, counter.name, getattr(of, counter.name))
    return sums


def _add(sums: Any, counter: str, value: Any) -> None:
    present = getattr(sums, counter)
    if isinstance(value, Counter):
        present.update(value)
    elif isinstance(value, list):
        present[:] = map(operator.add, present, value)
    else:
        setattr(sums, counter, present + value)
