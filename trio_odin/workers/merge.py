"""Several workers as one server: merge their snapshots, and the counters of workers that ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from trio_odin.ledger.counters import Ledger, total
from trio_odin.ledger.merging import Among, counters_of, merge_stats
from trio_odin.ledger.reasons import CloseReason, Dropped, Shed
from trio_odin.ledger.snapshot import Snapshot, Workers

if TYPE_CHECKING:
    from trio_odin.workers.slot import WorkerSlot


@attrs.frozen
class Past:
    """The counters of workers that have ended. They hold nothing and count nothing any longer."""

    counters: Mapping[str, Any] = attrs.field(factory=lambda: {"ledger": Ledger()})

    @property
    def ledger(self) -> Ledger:
        """Their ledger. The supervisor counts in it, too."""
        ledger: Ledger = self.counters["ledger"]
        return ledger

    def with_ended(self, last: Snapshot) -> Past:
        """Return the past with one more worker, whose last known snapshot is `last`."""
        closed = counters_of(attrs.evolve(last, ledger=_final_ledger(last)))
        ledger = total([self.ledger, closed["ledger"]])
        sums = {
            path: self.counters.get(path, 0) + closed[path] for path in closed.keys() - {"ledger"}
        }
        return Past({**sums, "ledger": ledger})


def _final_ledger(last: Snapshot) -> Ledger:
    """Return the ledger with nothing open: what the worker held counts as lost, so it balances."""
    ledger = total([last.ledger])
    ledger.publications.shed[Shed.WORKER_LOST] += last.fan_out.inbound_waiting
    ledger.deliveries.dropped[Dropped.WORKER_LOST] += ledger.deliveries.queued
    ledger.deliveries.queued = 0
    ledger.traffic.closed[CloseReason.WORKER_LOST.label] += last.fan_out.connections
    return ledger


def merge(parts: Sequence[Snapshot], *, past: Past, workers: Workers) -> Snapshot:
    """Merge the workers `parts`, at least one, and the `past` of those before, into one server."""
    staying = [part for part in parts if not part.is_draining] or parts
    taking = [part for part in staying if part.is_open] or staying
    groups = {Among.EVERYBODY: parts, Among.STAYING: staying, Among.TAKING: taking}
    return attrs.evolve(merge_stats(groups, past.counters), workers=workers)


def workers_stats(
    workers: Sequence[WorkerSlot],
    *,
    configured: int,
    past_restarts: int,
    rollings: int,
    now: float,
) -> Workers:
    """Return how many of the `configured` workers take clients, and since when one is missing."""
    slots_by_number = [
        [worker for worker in workers if worker.number == number]
        for number in range(1, configured + 1)
    ]
    missing = [
        now - max(worker.missing_since or now for worker in slots)
        for slots in slots_by_number
        if all(worker.missing_since is not None for worker in slots)
    ]
    return Workers(
        configured=configured,
        alive=configured - len(missing),
        restarts=past_restarts + sum(worker.restarts for worker in workers),
        connections=[sum(worker.connections for worker in slots) for slots in slots_by_number],
        missing_seconds=max(missing, default=0.0),
        rollings=rollings,
        trouble=next(filter(None, map(_trouble, slots_by_number)), None),
    )


def _trouble(slots: Sequence[WorkerSlot]) -> str | None:
    """Return what keeps the slots of one number from taking clients, if that is NATS."""
    lasts = [worker.last for worker in slots if worker.last is not None]
    if any(last.is_open for last in lasts):
        return None
    return next((last.nats.trouble.sentence for last in lasts if last.nats.trouble), None)
