"""`/health` and `/ready`: the exact shape that the load scripts and dashboards read.

The sentences are for a person on call: what is wrong, since when, and what NATS reports about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import attrs

from trio_odin.ledger.snapshot import Snapshot

_NEARLY_FULL_PERCENT = 90.0
_ALL_PERCENT = 100
_MEGABYTE = 1024 * 1024
# A worker that has ended is restarted within a second, unless it ends again and again.
_WORKER_MISSING_SECONDS = 5.0
# NATS is asked for a sign of life each second, so that its loss should be known within ten.
_NATS_SILENT_SECONDS = 5.0
_NATS_LOST_SECONDS = 10.0


@attrs.frozen
class HealthReport:
    """The HTTP status and the JSON content of an answer."""

    status: int
    content: dict[str, Any]


def health(snapshot: Snapshot, unix_time: float) -> HealthReport:
    """Judge a snapshot: unhealthy (503) if the server fails its job, degraded (200) if it may soon.

    `unix_time`, in seconds, is the time of the snapshot.
    """
    capacity = _percentage(snapshot.fan_out.connections, snapshot.limits.max_connections)
    memory = _percentage(snapshot.used_memory_bytes, snapshot.load.memory_limit_bytes)
    tasks = _percentage(snapshot.load.tasks, snapshot.limits.max_tasks)
    nats_errors = list(_nats_errors(snapshot, unix_time))
    errors = nats_errors + list(_errors(snapshot, unix_time))
    warnings = list(_warnings(snapshot, unix_time, capacity=capacity, memory=memory, tasks=tasks))
    status = "unhealthy" if errors else "degraded" if warnings else "healthy"
    content = {
        "status": status,
        "healthy": not errors,
        "uptime": round(snapshot.uptime_seconds, 3),
        "errors": errors,
        "warnings": warnings,
        "checks": {
            "capacity": _capacity_check(snapshot, capacity),
            "cpu": _cpu_check(snapshot),
            "memory": _memory_check(snapshot, memory),
            "goroutines": _tasks_check(snapshot, tasks),
            "nats": _nats_check(snapshot, is_healthy=not nats_errors),
            "limits": _limits_check(snapshot),
            "snapshot": {
                "channels": snapshot.fan_out.snapshot_channels,
                "bytes": snapshot.fan_out.snapshot_bytes,
                "healthy": True,
            },
        },
        "workers": {
            "configured": snapshot.workers.configured,
            "alive": snapshot.workers.alive,
            "restarts": snapshot.workers.restarts,
            "connections": list(snapshot.workers.connections),
        },
        "version": ", ".join(sorted({build.version for build in snapshot.process.builds})),
        "dictionary": ", ".join(sorted(snapshot.process.dictionaries)),
    }
    return HealthReport(503 if errors else 200, content)


def _capacity_check(snapshot: Snapshot, percentage: float) -> dict[str, Any]:
    return {
        "current": snapshot.fan_out.connections,
        "max": snapshot.limits.max_connections,
        "percentage": percentage,
        "healthy": percentage < 100,
    }


def _cpu_check(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "percentage": round(snapshot.load.cpu_percent, 2),
        "threshold": snapshot.limits.cpu_reject_percent,
        "healthy": not snapshot.load.is_overloaded,
        "loop_busy_percentage": round(snapshot.load.loop_busy_percent, 2),
        "paused_percent": float(snapshot.load.paused_percent),
    }


def _memory_check(snapshot: Snapshot, percentage: float) -> dict[str, Any]:
    return {
        "used_mb": round(snapshot.used_memory_bytes / _MEGABYTE, 2),
        "limit_mb": round(snapshot.load.memory_limit_bytes / _MEGABYTE, 2),
        "percentage": percentage,
        "healthy": percentage < _NEARLY_FULL_PERCENT and not snapshot.load.is_memory_short,
    }


def _tasks_check(snapshot: Snapshot, percentage: float) -> dict[str, Any]:
    return {
        "current": snapshot.load.tasks,
        "limit": snapshot.limits.max_tasks,
        "percentage": percentage,
        "healthy": percentage < 100,
    }


def _nats_check(snapshot: Snapshot, *, is_healthy: bool) -> dict[str, Any]:
    nats = snapshot.nats
    age, trouble = nats.age_seconds, nats.trouble
    return {
        "status": "connected" if nats.is_connected else "disconnected",
        "healthy": is_healthy,
        "mode": nats.mode,
        "age_ms": None if age is None else round(age * 1000),
        "gaps": snapshot.ledger.publications.gaps.total(),
        "trouble": trouble.sentence if trouble else None,
        "since_ms": round(trouble.seconds * 1000) if trouble else None,
    }


def _limits_check(snapshot: Snapshot) -> dict[str, Any]:
    limits = snapshot.limits
    return {
        "max_connections": limits.max_connections,
        "nats_rate": limits.max_nats_rate,
        "broadcast_rate": limits.max_broadcast_rate,
        "worker_pool_size": 0,  # there is no pool; the key is part of the shape
        "max_goroutines": limits.max_tasks,
        "cpu_threshold": limits.cpu_reject_percent,
        "memory_limit_mb": round(snapshot.load.memory_limit_bytes / _MEGABYTE, 2),
    }


def ready(snapshot: Snapshot) -> HealthReport:
    """Whether a load balancer should send clients here.

    It is not ready before it has reached NATS once, so a new node that cannot do its job gets
    no clients, nor while no process of it accepts any. It stays ready in a later outage of
    NATS: that hits every node alike, and clients that stay connected get events as soon as they
    flow again. It is not ready while every event is shed, since only this node lacks CPU or
    memory.
    """
    reasons = []
    if snapshot.is_draining:
        reasons.append("shutting down")
    elif not snapshot.is_open:
        reasons.append("no connections are accepted")
    if not snapshot.nats.was_connected:
        reasons.append(_with_trouble("NATS has not been reached yet", snapshot))
    if snapshot.load.paused_percent >= _ALL_PERCENT:
        reasons.append("all events are shed")
    return HealthReport(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})


def _nats_errors(snapshot: Snapshot, unix_time: float) -> Iterator[str]:
    """Yield why no event can come, in at most one sentence."""
    trouble = snapshot.nats.trouble
    since = _since(trouble.seconds if trouble else None, unix_time)
    age = snapshot.nats.age_seconds
    if not snapshot.nats.is_connected:
        yield _with_trouble(f"NATS is disconnected{since}", snapshot)
    elif trouble is not None:
        yield _with_trouble(f"NATS is connected, but no events can come{since}", snapshot)
    elif age is not None and age >= _NATS_LOST_SECONDS:
        yield f"NATS is connected, but nothing has come from it{_since(age, unix_time)}"


def _errors(snapshot: Snapshot, unix_time: float) -> Iterator[str]:
    if snapshot.is_draining:
        yield f"Server is shutting down{_since(snapshot.draining_seconds, unix_time)}"
    if not snapshot.workers.is_whole:
        yield "The parent of the workers does not answer: these are the figures of one worker"
    elif snapshot.workers.missing_seconds > _WORKER_MISSING_SECONDS or not snapshot.workers.alive:
        yield _workers_alive(snapshot, unix_time)
    if snapshot.load.paused_percent >= _ALL_PERCENT:
        since = _since(snapshot.load.paused_seconds, unix_time)
        yield f"All events are shed for lack of CPU or memory{since}: no client gets any"


def _warnings(
    snapshot: Snapshot, unix_time: float, *, capacity: float, memory: float, tasks: float
) -> Iterator[str]:
    if 0 < snapshot.workers.missing_seconds <= _WORKER_MISSING_SECONDS and snapshot.workers.alive:
        yield _workers_alive(snapshot, unix_time)
    age = snapshot.nats.age_seconds or 0.0
    if snapshot.nats.is_connected and _NATS_SILENT_SECONDS <= age < _NATS_LOST_SECONDS:
        yield f"Nothing has come from NATS{_since(age, unix_time)}"
    if capacity >= _NEARLY_FULL_PERCENT:
        yield f"Connections at {capacity} % of the limit"
    if snapshot.listener.is_out_of_files:
        yield "Open files are used up: new connections are refused"
    yield from _load_warnings(snapshot, unix_time, memory)
    fan_out = snapshot.fan_out
    waiting = _percentage(fan_out.inbound_waiting, fan_out.inbound_capacity)
    if waiting >= _NEARLY_FULL_PERCENT:
        yield f"{fan_out.inbound_waiting} events wait for their fan-out, {waiting} % of the limit"
    if tasks >= 100:
        yield f"Tasks at {tasks} % of the limit"


def _load_warnings(snapshot: Snapshot, unix_time: float, memory: float) -> Iterator[str]:
    refused = f": new connections are refused{_since(snapshot.load.refusing_seconds, unix_time)}"
    if snapshot.load.is_overloaded:
        yield f"{_cpu(snapshot)}{refused}"
    elif (
        snapshot.limits.cpu_pause_percent
        and snapshot.load.busiest_percent >= snapshot.limits.cpu_pause_percent
    ):
        yield _cpu(snapshot)
    if snapshot.load.is_memory_short:
        yield f"Memory at {memory} % of the limit{refused}"
    elif memory >= _NEARLY_FULL_PERCENT:
        yield f"Memory at {memory} % of the limit"
    if snapshot.load.is_lagging:
        yield f"The scheduler is late by {snapshot.load.lag_seconds:.1f} s{refused}"
    if 0 < snapshot.load.paused_percent < _ALL_PERCENT:
        since = _since(snapshot.load.paused_seconds, unix_time)
        yield f"{snapshot.load.paused_percent:g} % of the events are shed{since}"


def _since(seconds: float | None, unix_time: float) -> str:
    """Return ` since 2027-01-02T03:04:05Z` for a state that began `seconds` ago, or nothing."""
    if seconds is None:
        return ""
    began = datetime.fromtimestamp(round(unix_time - seconds), UTC)
    return f" since {began:%Y-%m-%dT%H:%M:%SZ}"


def _with_trouble(sentence: str, snapshot: Snapshot) -> str:
    """Return `sentence`, with what NATS reports about it, if it reports anything."""
    trouble = snapshot.nats.trouble
    return f"{sentence}: {trouble.sentence}" if trouble and trouble.sentence else sentence


def _cpu(snapshot: Snapshot) -> str:
    if snapshot.load.loop_busy_percent > snapshot.load.cpu_percent:
        return f"CPU of one process at {snapshot.load.loop_busy_percent:.1f} % of a core"
    return f"CPU at {snapshot.load.cpu_percent:.1f} %"


def _workers_alive(snapshot: Snapshot, unix_time: float) -> str:
    since = _since(snapshot.workers.missing_seconds, unix_time)
    sentence = f"{snapshot.workers.alive} of {snapshot.workers.configured} workers alive{since}"
    trouble = snapshot.workers.trouble
    return f"{sentence}: {trouble}" if trouble else sentence


def _percentage(part: float, whole: float) -> float:
    """Return a percentage as a JSON number with a fraction; 0 if there is no limit."""
    return round(part / whole * 100, 2) if whole else 0.0
