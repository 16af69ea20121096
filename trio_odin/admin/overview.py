"""The overview: the state of the whole server in one page of JSON."""

from __future__ import annotations

from typing import Any

from trio_odin import __version__
from trio_odin.ledger.reasons import Rejection
from trio_odin.ledger.snapshot import Snapshot


def overview(snapshot: Snapshot) -> dict[str, Any]:
    """Return what `GET /overview` shows. Counters count from the start of the server."""
    ledger, load, fan_out = snapshot.ledger, snapshot.load, snapshot.fan_out
    publications, deliveries, traffic = ledger.publications, ledger.deliveries, ledger.traffic
    trouble = snapshot.nats.trouble
    causes = (
        (Rejection.MEMORY, load.is_memory_short),
        (Rejection.OVERLOADED, load.is_overloaded),
        (Rejection.LAG, load.is_lagging),
    )
    refusing_for = [rejection.label for rejection, is_so in causes if is_so]
    return {
        "version": __version__,
        "uptime_seconds": round(snapshot.uptime_seconds, 1),
        "is_draining": snapshot.is_draining,
        "connections": fan_out.connections,
        "max_connections": snapshot.limits.max_connections,
        "channels": fan_out.channels,
        "workers": {
            "configured": snapshot.workers.configured,
            "alive": snapshot.workers.alive,
            "restarts": snapshot.workers.restarts,
            "connections": list(snapshot.workers.connections),
        },
        "nats": {
            "is_connected": snapshot.nats.is_connected,
            "mode": snapshot.nats.mode,
            "age_seconds": _rounded(snapshot.nats.age_seconds),
            "reconnects": snapshot.nats.reconnects,
            "trouble": None if trouble is None else trouble.sentence,
        },
        "load": {
            "cpu_percent": round(load.cpu_percent, 1),
            "loop_busy_percent": round(load.loop_busy_percent, 1),
            "lag_ms": round(load.lag_seconds * 1000, 1),
            "memory_bytes": snapshot.used_memory_bytes,
            "memory_limit_bytes": load.memory_limit_bytes,
            "shed_percent": load.paused_percent,
            "is_refusing": bool(refusing_for),
            "refusing_for": refusing_for,
        },
        "waiting": {
            "inbound": fan_out.inbound_waiting,
            "inbound_limit": fan_out.inbound_capacity,
            "outbox_bytes": fan_out.outbox_bytes,
            "outbox_bytes_limit": fan_out.outbox_bytes_limit,
            "pending_handshakes": snapshot.listener.pending_handshakes,
        },
        "events": {
            "received": publications.received,
            "fanned_out": publications.fanned_out,
            "unmatched": publications.unmatched,
            "missed": publications.missed,
            "invalid": {reason.value: n for reason, n in publications.invalid.items()},
            "shed": {reason.value: n for reason, n in publications.shed.items()},
        },
        "deliveries": {
            "matched": deliveries.matched,
            "written": deliveries.written,
            "queued": deliveries.queued,
            "conflated": deliveries.conflated,
            "skipped": deliveries.skipped,
            "dropped": {reason.value: n for reason, n in deliveries.dropped.items()},
        },
        "log": {"lines_dropped": snapshot.process.log_lines_dropped},
        "clients": {
            "accepted": traffic.accepted,
            "rejected": dict(traffic.rejected),
            "closed": dict(traffic.closed),
            "messages_received": traffic.messages_received,
            "bytes_received": traffic.bytes_received,
            "bytes_sent": traffic.bytes_sent,
            "rate_limited": traffic.rate_limited,
        },
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
