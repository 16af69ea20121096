"""`/health` and `/ready`: the exact shape that the load scripts and dashboards read."""

from __future__ import annotations

from typing import Any

import attrs

from trio_odin.telemetry.snapshot import Snapshot

_NEARLY_FULL_PERCENT = 90.0
_MEGABYTE = 1024 * 1024
# A worker that has ended is back within a second, unless it ends again and again.
_WORKER_MISSING_SECONDS = 5.0


@attrs.frozen
class HealthReport:
    """The HTTP status and the content of the JSON."""

    status: int
    content: dict[str, Any]


def health(snapshot: Snapshot) -> HealthReport:
    """Judge a snapshot: unhealthy (503) if it fails its job, degraded (200) if it may soon."""
    capacity = _percentage(snapshot.connections, snapshot.max_connections)
    memory = _percentage(snapshot.used_memory_bytes, snapshot.memory_limit_bytes)
    tasks = _percentage(snapshot.tasks, snapshot.max_tasks)
    age = snapshot.nats_age_seconds
    errors = list(_errors(snapshot))
    warnings = list(_warnings(snapshot, capacity=capacity, memory=memory, tasks=tasks))
    status = "unhealthy" if errors else "degraded" if warnings else "healthy"
    content = {
        "status": status,
        "healthy": not errors,
        "uptime": round(snapshot.uptime_seconds, 3),
        "errors": errors,
        "warnings": warnings,
        "checks": {
            "capacity": {
                "current": snapshot.connections,
                "max": snapshot.max_connections,
                "percentage": capacity,
                "healthy": capacity < 100,
            },
            "cpu": {
                "percentage": round(snapshot.cpu_percent, 2),
                "threshold": snapshot.cpu_reject_percent,
                "healthy": not snapshot.is_overloaded,
                "loop_busy_percentage": round(snapshot.loop_busy_percent, 2),
                "paused_percent": float(snapshot.paused_percent),
            },
            "memory": {
                "used_mb": round(snapshot.used_memory_bytes / _MEGABYTE, 2),
                "limit_mb": round(snapshot.memory_limit_bytes / _MEGABYTE, 2),
                "percentage": memory,
                "healthy": memory < _NEARLY_FULL_PERCENT and not snapshot.is_memory_short,
            },
            "goroutines": {
                "current": snapshot.tasks,
                "limit": snapshot.max_tasks,
                "percentage": tasks,
                "healthy": tasks < 100,
            },
            "nats": {
                "status": "connected" if snapshot.is_nats_connected else "disconnected",
                "healthy": snapshot.is_nats_connected,
                "mode": snapshot.nats_mode,
                "age_ms": None if age is None else round(age * 1000),
                "gaps": snapshot.ledger.publications.gaps.total(),
            },
            "limits": {
                "max_connections": snapshot.max_connections,
                "nats_rate": snapshot.max_nats_rate,
                "broadcast_rate": snapshot.max_broadcast_rate,
                "worker_pool_size": 0,  # there is none; the key is part of the shape
                "max_goroutines": snapshot.max_tasks,
                "cpu_threshold": snapshot.cpu_reject_percent,
                "memory_limit_mb": round(snapshot.memory_limit_bytes / _MEGABYTE, 2),
            },
        },
        "workers": {
            "configured": snapshot.workers.configured,
            "alive": snapshot.workers.alive,
            "restarts": snapshot.workers.restarts,
            "connections": list(snapshot.workers.connections),
        },
    }
    return HealthReport(503 if errors else 200, content)


def ready(snapshot: Snapshot) -> HealthReport:
    """Whether a load balancer should send clients here.

    Not before NATS was reached once, so that a new node which cannot do its job gets no clients. A
    later outage keeps it ready: it would hit every node alike, and a client that stays connected
    here gets events again as soon as they flow.
    """
    reasons = []
    if snapshot.is_draining:
        reasons.append("shutting down")
    if not snapshot.was_nats_connected:
        reasons.append("NATS was not reached yet")
    return HealthReport(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})


def _errors(snapshot: Snapshot) -> list[str]:
    errors = []
    if not snapshot.is_nats_connected:
        errors.append("NATS is disconnected")
    if snapshot.is_draining:
        errors.append("Server is shutting down")
    if snapshot.workers.missing_seconds > _WORKER_MISSING_SECONDS or not snapshot.workers.alive:
        errors.append(_workers_alive(snapshot))
    return errors


def _warnings(snapshot: Snapshot, *, capacity: float, memory: float, tasks: float) -> list[str]:
    warnings = []
    if 0 < snapshot.workers.missing_seconds <= _WORKER_MISSING_SECONDS and snapshot.workers.alive:
        warnings.append(_workers_alive(snapshot))
    if capacity >= _NEARLY_FULL_PERCENT:
        warnings.append(f"Connections at {capacity} % of the limit")
    if snapshot.is_overloaded:
        warnings.append(f"{_cpu(snapshot)}: new connections are refused")
    elif snapshot.cpu_pause_percent and snapshot.busiest_percent >= snapshot.cpu_pause_percent:
        warnings.append(_cpu(snapshot))
    if snapshot.is_memory_short:
        warnings.append(f"Memory at {memory} % of the limit: new connections are refused")
    elif memory >= _NEARLY_FULL_PERCENT:
        warnings.append(f"Memory at {memory} % of the limit")
    if snapshot.is_lagging:
        late = f"{snapshot.lag_seconds:.1f} s"
        warnings.append(f"The scheduler is late by {late}: new connections are refused")
    if snapshot.paused_percent:
        warnings.append(f"{snapshot.paused_percent:g} % of the events are shed")
    if tasks >= 100:
        warnings.append(f"Tasks at {tasks} % of the limit")
    return warnings


def _cpu(snapshot: Snapshot) -> str:
    if snapshot.loop_busy_percent > snapshot.cpu_percent:
        return f"CPU of one process at {snapshot.loop_busy_percent:.1f} % of a core"
    return f"CPU at {snapshot.cpu_percent:.1f} %"


def _workers_alive(snapshot: Snapshot) -> str:
    return f"{snapshot.workers.alive} of {snapshot.workers.configured} workers alive"


def _percentage(part: float, whole: float) -> float:
    """A JSON number with a fraction; without a limit nothing is ever full."""
    return round(part / whole * 100, 2) if whole else 0.0
