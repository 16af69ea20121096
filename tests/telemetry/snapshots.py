"""A server at one moment, as a test wants it."""

from __future__ import annotations

from typing import Any

import attrs

from trio_odin.core.ledger import Ledger
from trio_odin.telemetry.snapshot import Snapshot, Workers


def snapshot(**changes: Any) -> Snapshot:
    """A healthy, idle server with limits, but for `changes`."""
    idle = Snapshot(
        ledger=Ledger(),
        uptime_seconds=12.3456,
        is_draining=False,
        connections=0,
        max_connections=100,
        subscription_counts=[],
        channels=0,
        is_nats_connected=True,
        was_nats_connected=True,
        nats_mode="jetstream",
        nats_reconnects=0,
        feed_waiting=0,
        feed_capacity=8192,
        tasks=10,
        max_tasks=0,
        cpu_percent=0.0,
        cpu_reject_percent=75.0,
        cpu_pause_percent=80.0,
        is_overloaded=False,
        memory_bytes=64 * 1024 * 1024,
        memory_limit_bytes=1024 * 1024 * 1024,
        max_nats_rate=0.0,
        max_broadcast_rate=0.0,
        cpu_seconds=1.5,
        workers=Workers.alone(0),
    )
    return attrs.evolve(idle, **changes)
