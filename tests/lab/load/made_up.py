"""Made-up results and plans."""

from __future__ import annotations

from typing import Any

from trio_odin.lab.fleet.latency import durations
from trio_odin.lab.fleet.workload import Workload
from trio_odin.lab.load.plan import LoadPlan
from trio_odin.lab.load.result import LoadResult, Reconnects, Sample, ServerFigures
from trio_odin.lab.machine import Machine

MACHINE = Machine("Example CPU", 4, 15.6, "Linux 6.8.0", "CPython 3.13.1", is_python_optimised=True)
WORKLOAD = Workload(channels=["BTC.trade", "ETH.trade", "SOL.trade"], channels_per_connection=2)


def load_plan(**changes: Any) -> LoadPlan:
    """A plan that can be carried out."""
    given: dict[str, Any] = {"connections": 10, "workload": WORKLOAD, "hold_seconds": 5.0}
    return LoadPlan(**given | changes)


def load_result(**changes: Any) -> LoadResult:
    """A load without any breach, with all figures known."""
    given: dict[str, Any] = {
        "url": "ws://127.0.0.1:3002/ws",
        "workload": WORKLOAD,
        "machine": MACHINE,
        "date": "2026-01-01T00:00:00.000+00:00",
        "connections": 100,
        "connected": 100,
        "hold_seconds": 30.0,
        "publications": 300,
        "received": 3600,
        "published": 360,
        "unseen": 0,
        "expected": 20_000,
        "delivered": 20_000,
        "latency": durations({10: 98, 400: 2}),
        "reconnects": Reconnects(lost=100, back=75, seconds=2.5, ms=None),
        "server": ServerFigures(percent=25.0, held_mib=64.0, imbalance=0.0),
        "series": held(*[100.0] * 20),
    }
    return LoadResult(**given | changes)


def held(*mib: float | None, phase: str = "hold") -> list[Sample]:
    """Samples with the server's memory."""
    return [
        Sample(at=float(at), phase=phase, connections=100, received_per_second=0.0, server_mib=one)
        for at, one in enumerate(mib)
    ]
