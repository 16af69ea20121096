"""Snapshots of a server for tests."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
from hypothesis import strategies as st

from trio_odin.ledger.counters import Deliveries, Ledger, Publications, TraceCounters, Traffic
from trio_odin.ledger.reasons import Dropped, GapReason, Invalid, Shed
from trio_odin.ledger.snapshot import (
    Build,
    FanOutStats,
    Limits,
    ListenerStats,
    LoadStats,
    NatsStats,
    ProcessStats,
    Snapshot,
    Workers,
)

IDLE = Snapshot(
    ledger=Ledger(),
    nats=NatsStats(
        is_connected=True,
        was_connected=True,
        mode="jetstream",
        reconnects=0,
        age_seconds=0.25,
        trouble=None,
    ),
    fan_out=FanOutStats(
        connections=0,
        encodings={},
        subscription_counts=[],
        channels=0,
        inbound_waiting=0,
        inbound_capacity=8192,
        outbox_bytes=0,
        outbox_bytes_limit=256 * 1024 * 1024,
        replay_bytes=0,
        replay_bytes_limit=128 * 1024 * 1024,
        snapshot_channels=200,
        snapshot_bytes=50_000,
    ),
    load=LoadStats(
        cpu_percent=0.0,
        loop_busy_percent=0.0,
        turnover_percent=0.0,
        lag_seconds=0.0,
        is_overloaded=False,
        is_memory_short=False,
        is_lagging=False,
        refusing_seconds=None,
        paused_percent=0,
        paused_seconds=None,
        tasks=10,
        group_memory_bytes=0,
        memory_limit_bytes=1024 * 1024 * 1024,
    ),
    listener=ListenerStats(
        pending_handshakes=0, is_out_of_files=False, certificate_seconds_left=None
    ),
    process=ProcessStats(
        memory_bytes=64 * 1024 * 1024,
        cpu_seconds=1.5,
        log_lines_dropped=0,
        builds=[Build("1.2.3", "3.12.1", "abcdef")],
        dictionaries=["ca4a8ef0f4b3ba4a"],
    ),
    limits=Limits(
        max_connections=100,
        max_tasks=0,
        cpu_reject_percent=75.0,
        cpu_pause_percent=80.0,
        max_nats_rate=0.0,
        max_broadcast_rate=0.0,
    ),
    workers=Workers.alone(0),
    uptime_seconds=12.3456,
    is_draining=False,
    draining_seconds=None,
    is_open=True,
)


def snapshot(**changes: Any) -> Snapshot:
    """A healthy, idle server with limits, except for `changes`."""
    # Each test has its own ledger.
    return changed(IDLE, **{"ledger": Ledger(), **changes})


def changed(state: Snapshot, **changes: Any) -> Snapshot:
    """`state` with `changes`: fields of it, or of the part that has such a field."""
    for name, value in changes.items():
        if hasattr(state, name):
            state = attrs.evolve(state, **{name: value})
        else:
            (part,) = (part for part in PARTS if hasattr(getattr(state, part), name))
            within = attrs.evolve(getattr(state, part), **{name: value})
            state = attrs.evolve(state, **{part: within})
    return state


PARTS = ("nats", "fan_out", "load", "listener", "process", "limits")


AMOUNTS = st.integers(0, 10**9)
NAMES = st.sampled_from(["one", "two", "three"])


def counters(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Counter[Any]]:
    return st.dictionaries(keys, AMOUNTS).map(Counter)


@st.composite
def balanced(draw: st.DrawFn) -> Snapshot:
    """A worker whose events are all accounted for."""
    way_in = Publications(
        fanned_out=draw(AMOUNTS),
        unmatched=draw(AMOUNTS),
        invalid=draw(counters(st.sampled_from(Invalid))),
        shed=draw(counters(st.sampled_from(Shed))),
        repeated=draw(AMOUNTS),
        backfilled=draw(AMOUNTS),
        gaps=draw(counters(st.sampled_from(GapReason))),
        missed=draw(AMOUNTS),
    )
    inbound_waiting = draw(st.integers(0, 8192))
    way_in.received = -way_in.imbalance(inbound_waiting)
    way_out = Deliveries(
        written=draw(AMOUNTS),
        queued=draw(AMOUNTS),
        conflated=draw(AMOUNTS),
        skipped=draw(AMOUNTS),
        batches=draw(AMOUNTS),
        dropped=draw(counters(st.sampled_from(Dropped))),
    )
    way_out.matched = -way_out.imbalance()
    connections = draw(st.integers(0, 10_000))
    closed = draw(counters(NAMES))
    traffic = Traffic(accepted=connections + closed.total(), closed=closed)
    for name in ("rejected", "commands", "errors"):
        setattr(traffic, name, draw(counters(NAMES)))
    for name in (
        "accept_errors",
        "accepts_paced",
        "messages_received",
        "rate_limited",
        "replayed",
        "bytes_sent",
    ):
        setattr(traffic, name, draw(AMOUNTS))
    traces = TraceCounters(events=draw(AMOUNTS), spans_exported=draw(AMOUNTS))
    return snapshot(
        ledger=Ledger(way_in, way_out, traffic, traces),
        connections=connections,
        subscription_counts=draw(st.lists(st.integers(1, 256), max_size=5)),
        channels=draw(AMOUNTS),
        inbound_waiting=inbound_waiting,
        reconnects=draw(AMOUNTS),
        age_seconds=draw(st.none() | st.integers(0, 10**6)),
        cpu_seconds=draw(st.integers(0, 10**6)),
        log_lines_dropped=draw(AMOUNTS),
        is_connected=draw(st.booleans()),
        is_overloaded=draw(st.booleans()),
        workers=Workers.alone(connections),
    )
