from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.snapshots import IDLE, snapshot
from trio_odin.ledger.counters import Ledger, Publications
from trio_odin.ledger.reasons import GapReason
from trio_odin.ledger.snapshot import Snapshot, Trouble, Workers
from trio_odin.net.http import Response
from trio_odin.telemetry.health import HealthReport, ready
from trio_odin.telemetry.health import health as health_at

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def health(one: Snapshot) -> HealthReport:
    return health_at(one, NOW)


# wire_compatibility.md, `/health`: the form of each number in the text of the JSON.
SHAPE = {
    "status": str,
    "healthy": bool,
    "uptime": float,
    "errors": list,
    "warnings": list,
    "checks": {
        "capacity": {"current": int, "max": int, "percentage": float, "healthy": bool},
        "cpu": {
            "percentage": float,
            "threshold": float,
            "healthy": bool,
            "loop_busy_percentage": float,
            "paused_percent": float,
        },
        "memory": {"used_mb": float, "limit_mb": float, "percentage": float, "healthy": bool},
        "goroutines": {"current": int, "limit": int, "percentage": float, "healthy": bool},
        "nats": {
            "status": str,
            "healthy": bool,
            "mode": str,
            "age_ms": int,
            "gaps": int,
            "trouble": type(None),
            "since_ms": type(None),
        },
        "limits": {
            "max_connections": int,
            "nats_rate": float,
            "broadcast_rate": float,
            "worker_pool_size": int,
            "max_goroutines": int,
            "cpu_threshold": float,
            "memory_limit_mb": float,
        },
        "snapshot": {"channels": int, "bytes": int, "healthy": bool},
    },
    "workers": {"configured": int, "alive": int, "restarts": int, "connections": list},
    "version": str,
    "dictionary": str,
}


def as_sent(report: HealthReport) -> str:
    return Response.json(report.status, report.content).body.decode()


def shape_of(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: shape_of(value) for key, value in content.items()}
    return type(content)


COUNTS = st.integers(0, 10**9)
PERCENTAGES = st.floats(0, 10_000)


@given(
    connections=COUNTS,
    max_connections=COUNTS,
    tasks=COUNTS,
    max_tasks=COUNTS,
    cpu_percent=PERCENTAGES,
    memory_bytes=st.integers(0, 10**13),
    memory_limit_bytes=st.integers(0, 10**13),
    uptime_seconds=st.floats(0, 1e9),
    is_connected=st.booleans(),
    is_draining=st.booleans(),
    is_overloaded=st.booleans(),
)
def test_the_shape_and_the_types_of_numbers_never_change(**changes: Any) -> None:
    content = json.loads(as_sent(health(snapshot(**changes))))
    assert shape_of(content) == SHAPE
    assert list(content) == list(SHAPE)
    assert content["checks"]["capacity"]["current"] == changes["connections"]
    assert all(isinstance(line, str) for line in content["errors"] + content["warnings"])


def test_at_zero_percentages_have_a_fraction_and_counts_do_not() -> None:
    text = as_sent(health(snapshot(max_connections=0, memory_limit_bytes=0)))
    assert re.findall(r'"percentage":([^,}]+)', text) == ["0.0"] * 4
    assert '"capacity":{"current":0,"max":0,' in text


def test_a_healthy_server_word_for_word() -> None:
    report = health(
        snapshot(
            connections=25,
            cpu_percent=12.345,
            loop_busy_percent=9.876,
            max_tasks=1000,
            tasks=80,
            max_nats_rate=20.0,
            max_broadcast_rate=30.5,
        )
    )
    assert report.status == 200
    assert json.loads(as_sent(report)) == {
        "status": "healthy",
        "healthy": True,
        "uptime": 12.346,
        "errors": [],
        "warnings": [],
        "checks": {
            "capacity": {"current": 25, "max": 100, "percentage": 25.0, "healthy": True},
            "cpu": {"percentage": pytest.approx(12.345, abs=0.01), "threshold": 75.0,
                    "healthy": True, "loop_busy_percentage": 9.88, "paused_percent": 0.0},
            "memory": {"used_mb": 64.0, "limit_mb": 1024.0, "percentage": 6.25, "healthy": True},
            "goroutines": {"current": 80, "limit": 1000, "percentage": 8.0, "healthy": True},
            "nats": {"status": "connected", "healthy": True, "mode": "jetstream", "age_ms": 250,
                     "gaps": 0, "trouble": None, "since_ms": None},
            "limits": {
                "max_connections": 100,
                "nats_rate": 20.0,
                "broadcast_rate": 30.5,
                "worker_pool_size": 0,
                "max_goroutines": 1000,
                "cpu_threshold": 75.0,
                "memory_limit_mb": 1024.0,
            },
            "snapshot": {"channels": 200, "bytes": 50_000, "healthy": True},
        },
        "workers": {"configured": 1, "alive": 1, "restarts": 0, "connections": [0]},
        "version": "1.2.3",
        "dictionary": "ca4a8ef0f4b3ba4a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"connections": 89}, "healthy", None),
        ({"connections": 90}, "degraded", "Connections"),
        ({"connections": 100}, "degraded", "Connections"),
        ({"connections": 10**6, "max_connections": 0}, "healthy", None),
        ({"cpu_percent": 79.9}, "healthy", None),
        ({"cpu_percent": 80.0}, "degraded", "CPU"),
        ({"cpu_percent": 100.0, "cpu_pause_percent": 0.0}, "healthy", None),
        ({"cpu_percent": 70.0, "is_overloaded": True}, "degraded", "CPU"),
        ({"loop_busy_percent": 79.9}, "healthy", None),
        ({"loop_busy_percent": 80.0}, "degraded", "CPU of one process at 80.0 % of a core"),
        ({"loop_busy_percent": 70.0, "is_overloaded": True}, "degraded", "refused"),
        (
            {"memory_bytes": 860, "memory_limit_bytes": 1000, "is_memory_short": True},
            "degraded",
            "Memory at 86.0 % of the limit: new connections are refused",
        ),
        ({"group_memory_bytes": 950, "memory_limit_bytes": 1000}, "degraded", "Memory at 95.0 %"),
        ({"is_lagging": True, "lag_seconds": 1.25}, "degraded", "late by 1.2 s"),
        ({"paused_percent": 30}, "degraded", "30 % of the events are shed"),
        (
            {"paused_percent": 90, "paused_seconds": 61.0},
            "degraded",
            "90 % of the events are shed since 2027-01-15T07:58:59Z",
        ),
        (
            {"paused_percent": 100, "paused_seconds": 61.0},
            "unhealthy",
            "All events are shed for lack of CPU or memory since 2027-01-15T07:58:59Z",
        ),
        ({"paused_percent": 100}, "unhealthy", "All events are shed for lack of CPU or memory:"),
        (
            {"is_overloaded": True, "cpu_percent": 80.0, "refusing_seconds": 3.0},
            "degraded",
            "CPU at 80.0 %: new connections are refused since 2027-01-15T07:59:57Z",
        ),
        ({"is_out_of_files": True}, "degraded", "Open files are used up"),
        ({"inbound_waiting": 89, "inbound_capacity": 100}, "healthy", None),
        ({"inbound_waiting": 90, "inbound_capacity": 100}, "degraded", "90 events wait"),
        ({"age_seconds": 4.9}, "healthy", None),
        ({"age_seconds": 5.0}, "degraded", "from NATS since 2027-01-15T07:59:55Z"),
        (
            {"age_seconds": 10.0},
            "unhealthy",
            "NATS is connected, but nothing has come from it since 2027-01-15T07:59:50Z",
        ),
        (
            {
                "is_connected": False,
                "age_seconds": 12.0,
                "trouble": Trouble(
                    "NoServersError: nats: no servers available for connection", 12.0
                ),
            },
            "unhealthy",
            "NATS is disconnected since 2027-01-15T07:59:48Z: NoServersError: nats: no servers",
        ),
        (
            {"trouble": Trouble("Permissions Violation for Subscription", 2.0)},
            "unhealthy",
            "NATS is connected, but no events can come since 2027-01-15T07:59:58Z: Permissions",
        ),
        (
            {"is_draining": True, "draining_seconds": 1.0},
            "unhealthy",
            "Server is shutting down since 2027-01-15T07:59:59Z",
        ),
        ({"memory_bytes": 899, "memory_limit_bytes": 1000}, "healthy", None),
        ({"memory_bytes": 900, "memory_limit_bytes": 1000}, "degraded", "Memory"),
        ({"memory_bytes": 10**12, "memory_limit_bytes": 0}, "healthy", None),
        ({"tasks": 99, "max_tasks": 100}, "healthy", None),
        ({"tasks": 100, "max_tasks": 100}, "degraded", "Tasks"),
        ({"tasks": 10**6, "max_tasks": 0}, "healthy", None),
        ({"is_connected": False}, "unhealthy", "NATS"),
        ({"is_draining": True}, "unhealthy", "shutting down"),
        ({"is_connected": False, "connections": 100}, "unhealthy", "NATS"),
        ({"workers": Workers(2, 1, 0, [0, 0], missing_seconds=4.9)}, "degraded", "1 of 2 workers"),
        (
            {"workers": Workers(2, 1, 9, [0, 0], missing_seconds=60.0)},
            "unhealthy",
            "1 of 2 workers alive since 2027-01-15T07:59:00Z",
        ),
        ({"workers": Workers(2, 0, 0, [0, 0], missing_seconds=0.1)}, "unhealthy", "0 of 2 workers"),
        ({"workers": Workers(2, 2, 9, [0, 0])}, "healthy", None),
        (
            {"workers": Workers(2, 1, 0, [0, 0], missing_seconds=60.0, trouble="no room")},
            "unhealthy",
            "1 of 2 workers alive since 2027-01-15T07:59:00Z: no room",
        ),
        (
            {"workers": Workers(3, 1, 0, [7], is_whole=False)},
            "unhealthy",
            "The parent of the workers does not answer: these are the figures of one worker",
        ),
    ],
)
def test_each_condition_has_its_status_its_code_and_a_sentence(
    changes: dict[str, Any], status: str, word: str | None
) -> None:
    report = health(snapshot(**changes))
    content = report.content
    assert content["status"] == status
    assert report.status == (503 if status == "unhealthy" else 200)
    assert content["healthy"] == (status != "unhealthy")
    assert bool(content["errors"]) == (status == "unhealthy")
    if status == "degraded":
        assert len(content["warnings"]) == 1
    sentences = content["errors"] + content["warnings"]
    assert bool(sentences) == (word is not None)
    assert word is None or word in sentences[0]


@pytest.mark.parametrize(
    ("changes", "unhealthy"),
    [
        ({"connections": 99}, set()),
        ({"connections": 100}, {"capacity"}),
        ({"cpu_percent": 99.0}, set()),
        ({"is_overloaded": True}, {"cpu"}),
        ({"memory_bytes": 90, "memory_limit_bytes": 100}, {"memory"}),
        ({"is_memory_short": True}, {"memory"}),
        ({"tasks": 100, "max_tasks": 100}, {"goroutines"}),
        ({"is_connected": False}, {"nats"}),
        ({"trouble": Trouble("Permissions Violation", 1.0)}, {"nats"}),
        ({"age_seconds": 10.0}, {"nats"}),
        ({"paused_percent": 100}, set()),
    ],
)
def test_each_check_covers_its_own_condition(changes: dict[str, Any], unhealthy: set[str]) -> None:
    checks = health(snapshot(**changes)).content["checks"]
    assert {name for name, check in checks.items() if not check.get("healthy", True)} == unhealthy


def test_a_lost_nats_is_disconnected() -> None:
    content = health(snapshot(is_connected=False)).content
    check = content["checks"]["nats"]
    assert (check["status"], check["healthy"]) == ("disconnected", False)


def test_the_sentence_of_nats_is_in_its_check_with_its_time() -> None:
    trouble = "nats: 'Authorization Violation'"
    check = health(snapshot(is_connected=False, trouble=Trouble(trouble, 1.2345))).content[
        "checks"
    ]["nats"]
    assert (check["trouble"], check["since_ms"]) == (trouble, 1234)


def test_the_age_of_an_event_that_never_came_is_null() -> None:
    assert health(snapshot(age_seconds=None)).content["checks"]["nats"]["age_ms"] is None


def test_gaps_of_all_reasons_are_counted() -> None:
    counters = Ledger(Publications(gaps=Counter({GapReason.WINDOW: 2, GapReason.SHED: 1})))
    assert health(snapshot(ledger=counters)).content["checks"]["nats"]["gaps"] == 3


def test_both_errors_are_shown() -> None:
    content = health(snapshot(is_connected=False, is_draining=True)).content
    assert len(content["errors"]) == 2


def test_an_overload_is_shown_once_with_its_consequence() -> None:
    content = health(snapshot(is_overloaded=True, cpu_percent=91.26)).content
    assert content["warnings"] == ["CPU at 91.3 %: new connections are refused"]


def test_the_shed_share_is_in_the_check_and_a_full_share_is_an_error() -> None:
    """At 100 % nobody gets anything, even if everything else is in order."""
    for percent, status in ((0, 200), (10, 200), (90, 200), (100, 503)):
        report = health(snapshot(paused_percent=percent))
        assert report.status == status
        assert report.content["checks"]["cpu"]["paused_percent"] == float(percent)
        assert len(report.content["errors"] + report.content["warnings"]) == (percent > 0)


@pytest.mark.parametrize(
    ("changes", "status", "reasons"),
    [
        ({}, 200, []),
        ({"is_connected": False}, 200, []),
        ({"is_connected": False, "was_connected": False}, 503, ["NATS"]),
        ({"is_open": False}, 503, ["no connections are accepted"]),
        # They are late with their reports, which may come from the load of all nodes.
        ({"workers": attrs.evolve(IDLE.workers, alive=0)}, 200, []),
        ({"is_open": False, "is_draining": True}, 503, ["shutting down"]),
        ({"is_draining": True}, 503, ["shutting down"]),
        ({"is_draining": True, "was_connected": False}, 503, ["shutting down", "NATS"]),
        ({"is_overloaded": True, "connections": 100}, 200, []),
        ({"paused_percent": 90}, 200, []),
        ({"paused_percent": 100}, 503, ["all events are shed"]),
        (
            {"is_connected": False, "was_connected": False, "trouble": Trouble("no route", 1.0)},
            503,
            ["NATS has not been reached yet: no route"],
        ),
    ],
)
def test_it_is_ready_once_nats_was_reached_and_until_it_leaves(
    changes: dict[str, Any], status: int, reasons: list[str]
) -> None:
    report = ready(snapshot(**changes))
    assert report.status == status
    assert report.content["ready"] == (status == 200)
    assert len(report.content["reasons"]) == len(reasons)
    for sentence, word in zip(report.content["reasons"], reasons, strict=True):
        assert word in sentence
