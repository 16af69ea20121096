"""The state of a server at one moment, as metrics and health need it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from trio_odin.core.ledger import Ledger


@attrs.frozen
class Snapshot:
    """Figures of one server. `ledger` is live; everything else is a copy."""

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
