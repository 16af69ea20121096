"""Readings as an admin API gives them."""

from __future__ import annotations

from typing import Any

from tests.telemetry.snapshots import snapshot
from trio_odin.admin.overview import overview
from trio_odin.top.source import Reading


def connection(number: int, **figures: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "worker": 0,
        "connection": number,
        "address": f"10.0.0.{number}",
        "subject": None,
        "user_agent": "bot/1",
        "age_seconds": 60.0,
        "silent_seconds": 1.0,
        "channels": 2,
        "encoding": "plain",
        "state": "idle",
        "seq": 100,
        "queued": 0,
        "queued_bytes": 0,
        "skipped": 0,
        "dropped": 0,
        "bytes": 5000,
        "is_lagging": False,
    } | figures


def channel(name: str, **figures: Any) -> dict[str, Any]:
    return {
        "name": name,
        "subscribers": 3,
        "at_a_rate": 1,
        "events_per_second": 12.0,
        "bytes_per_second": 2400.0,
        "deliveries_per_second": 24.0,
        "last_offset": 7,
        "last_age_seconds": 0.1,
    } | figures


def reading(at: float, *connections: dict[str, Any], **counters: int) -> Reading:
    """A reading; `counters` are those of overview that count deliveries."""
    shown = overview(snapshot(connections=len(connections)))
    shown["deliveries"].update(counters)
    listed = {
        "total": len(connections),
        "matching": len(connections),
        "next": None,
        "silent_workers": [],
        "connections": list(connections),
    }
    channels = {
        "total": 1,
        "seconds": 1.0,
        "silent_workers": [],
        "channels": [channel("BTC.trade")],
    }
    return Reading(at, shown, listed, channels)


def detail(number: int, **figures: Any) -> dict[str, Any]:
    return (
        connection(number)
        | {
            "subscriptions": [
                {"name": "BTC.trade", "every_ms": 0, "events_per_second": 12.0, "last_offset": 7},
                {"name": "ETH.*", "every_ms": 1000, "events_per_second": None, "last_offset": None},
                {"name": "SOL.*", "every_ms": None, "events_per_second": None, "last_offset": None},
            ],
            "outbox": {
                "messages": 0,
                "bytes": 0,
                "messages_limit": 512,
                "bytes_limit": 1048576,
                "policy": "evict",
            },
            "transport": None,
            "token_expires_at": None,
            "has_notices": False,
            "last_events": ["0.010s subscribe"],
        }
        | figures
    )
