"""Possible results of a bench."""

from __future__ import annotations

import attrs

from tests.lab.origin import ORIGIN
from trio_odin.lab.bench.record import BenchReport, Stage, Storm, TargetReport

STORM = Storm(
    connected=10_000, seconds=4.321, p50_ms=5.0, p99_ms=87.6, cpu_us_each=310.04, failures={}
)
W = Stage(
    name="W",
    rate=100.0,
    seconds=20.0,
    expected=1_000_000,
    received=1_000_000,
    lost=0,
    repeated=0,
    foreign=0,
    gaps=0,
    disconnects=0,
    user_us=2.0,
    system_us=4.0,
    cores=0.456,
    p50_ms=3.0,
    p99_ms=25.0,
    p999_ms=31.4,
    median_p99_ms=24.0,
    worst_p99_ms=28.6,
    frames_per_read=1.5,
    client_us=1.0,
    client_cores=0.5,
)
RATES = [
    attrs.evolve(
        W,
        name="rates",
        users=users,
        every_ms=every_ms,
        rate=rate,
        cores=cores,
        skipped=skipped,
        frames_per_second=9_000.0,
        delivery_wire_bytes=330.4,
    )
    for users, every_ms, rate, cores, skipped in [
        ("mix", 0, 30.0, 0.44, 0),
        ("mix", 1000, 30.0, 0.11, 5),
        ("mix", 1000, 3000.0, 0.31, 5_000),
        ("W", 1000, 30.0, 0.7, 6),
    ]
]
COMPRESSION = [
    attrs.evolve(
        W,
        name="compression",
        users=users,
        every_ms=every_ms,
        encoding=encoding,
        delivery_wire_bytes=wire_bytes,
        connection_kib=kib,
    )
    for users, every_ms, encoding, wire_bytes, kib in [
        ("W", 0, "plain", 400.0, 10.0),
        ("W", 0, "z1", 140.0, 10.25),
        ("home", 1000, "plain", 300.0, 12.0),
        ("home", 1000, "z1", 90.0, None),
    ]
]


def report_of(*targets: TargetReport) -> BenchReport:
    return BenchReport(
        provenance=ORIGIN,
        connections=10_000,
        channels_per_connection=20,
        tokens=50,
        payload_bytes=300,
        rate=100.0,
        hold_seconds=20.0,
        targets=list(targets),
    )
