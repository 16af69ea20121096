"""The state of a server at one moment, as metrics and health need it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from trio_odin.core.ledger import Ledger


@attrs.frozen
class Workers:
    """The processes of a server; a server without workers is one that serves alone.

    Attributes:
        configured: how many there should be.
        alive: how many serve and answer.
        restarts: how often one was started again.
        connections: how many each holds, in the order of their numbers.
        missing_seconds: for how long the one that is missing longest has been; 0: all are there.
    """

    configured: int
    alive: int
    restarts: int
    connections: Sequence[int]
    missing_seconds: float = 0.0

    @classmethod
    def alone(cls, connections: int) -> Workers:
        """The one process of a server without workers."""
        return cls(configured=1, alive=1, restarts=0, connections=[connections])


@attrs.frozen
class Snapshot:
    """Figures of one server. `ledger` may be live; everything else is a copy."""

    ledger: Ledger
    uptime_seconds: float
    is_draining: bool
    connections: int
    max_connections: int
    subscription_counts: Sequence[int]
    channels: int
    is_nats_connected: bool
    was_nats_connected: bool
    nats_mode: str
    nats_reconnects: int
    feed_waiting: int
    feed_capacity: int
    tasks: int
    max_tasks: int
    cpu_percent: float
    cpu_reject_percent: float
    cpu_pause_percent: float
    is_overloaded: bool
    memory_bytes: int
    memory_limit_bytes: int
    max_nats_rate: float
    max_broadcast_rate: float
    cpu_seconds: float
    workers: Workers
