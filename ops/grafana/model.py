"""The capacity model in PromQL: what `trio-odin plan` computes, from what a server reports.

All figures are the project's own: the costs that the lab measured last, the defaults of the
settings, the machine of the plan. Nothing is typed here; run dashboards.py when they change.

A query is about each of the chosen servers with all its workers. Each worker takes every event and
counts it, so the rate of events needs no factor for them.
"""

from __future__ import annotations

import math
from pathlib import Path

from trio_odin.config import variables
from trio_odin.lab.model.fit import predictions
from trio_odin.lab.model.model import JOINED_MAX_RATE, KIB, TARGET_P99_MS, Costs
from trio_odin.lab.model.tables import read_costs, read_prices
from trio_odin.lab.report.folder import read_verdict
from trio_odin.telemetry.process import files_needed

_ROOT = Path(__file__).parents[2]
MIB = KIB * KIB


def _costs() -> Costs:
    costs = read_costs()
    assert costs is not None, "the project comes with measured costs"
    return costs


COSTS = _costs()
LAB = read_verdict(_ROOT / "docs" / "capacity")
SETTINGS = {variable.name: variable.default for variable in variables()}
MACHINE = read_prices().machines["e2-standard-2"]
TARGET_P99_SECONDS = TARGET_P99_MS / 1000
CPU_REJECT, CPU_PAUSE, MEMORY_REJECT, MEMORY_PAUSE = (
    float(SETTINGS[f"WS_{name}_THRESHOLD"])
    for name in ("CPU_REJECT", "CPU_PAUSE", "MEMORY_REJECT", "MEMORY_PAUSE")
)
LAG_REJECT_SECONDS = float(SETTINGS["WS_LAG_REJECT_MS"]) / 1000


def lab_error(what: str) -> float:
    """The worst error of the model in the lab, of `CPU` or `memory`, as a share."""
    return max(
        abs(found.error)
        for stage in predictions(LAB).values()
        for found in stage
        if found.what == what
    )


CONNECTIONS = "ws_connections_current@"
EVENTS = "rate(ws_nats_messages_received_total@[$__rate_interval])"
DELIVERIES = "rate(ws_messages_sent_total@[$__rate_interval])"
CONNECTS = "rate(ws_connections_total@[$__rate_interval])"
CPU = "rate(process_cpu_seconds_total@[$__rate_interval])"
MEMORY = "process_resident_memory_bytes@"


def delivery_us(connections: str) -> str:
    """CPU of one delivery among so many connections."""
    doublings = f"log2(clamp_min({connections} / 1000, 1))"
    return f"({COSTS.delivery_us:g} + {COSTS.doubling_us:g} * {doublings})"


# How much of the price of an event is saved where several come together; see Costs.event_us.
_JOINED = (
    f"clamp_max({EVENTS} / ws_workers@, {JOINED_MAX_RATE:g}) / {COSTS.joined_rate or math.inf:g}"
)
_EVENT_US = f"({COSTS.joined_us:g} + {COSTS.publication_us:g} / (1 + {_JOINED}))"
# Cores, by what they are for.
PARTS = {
    "processes": f"{COSTS.base_cores:g} * ws_workers@",
    "connections": f"{CONNECTIONS} * {COSTS.connection_us_per_second:g} / 1e6",
    "events": f"{EVENTS} * {_EVENT_US} / 1e6",
    "deliveries": f"{DELIVERIES} * {delivery_us(CONNECTIONS)} / 1e6",
    "connects": f"{CONNECTS} * {COSTS.connect_us or 0:g} / 1e6",
}
PREDICTED_CPU = " + ".join(PARTS.values())
_EACH_BYTES = (COSTS.connection_kib + COSTS.kernel_kib) * KIB
PREDICTED_MEMORY = f"{COSTS.base_mib * MIB:.0f} * ws_workers@ + {CONNECTIONS} * {_EACH_BYTES:.0f}"


def _most_by_cpu() -> str:
    """Users until the CPU is at its threshold, if each gets as much as now.

    A delivery costs more among more connections, so the answer is on both sides. Where it is put in
    moves it by an eighth of the error, so two rounds from what the lab held are close enough.
    """
    usable = "clamp_max(ws_workers@, $cores)"
    left = f"({CPU_REJECT / 100:g} * {usable} - ({PARTS['processes']} + {PARTS['events']}))"
    each = f"({DELIVERIES} / ({CONNECTIONS} > 0))"
    delivery = f"{COSTS.delivery_us_among(COSTS.max_connections or 1):g}"
    for _ in range(2):
        found = f"({left} * 1e6 / ({COSTS.connection_us_per_second:g} + {each} * {delivery}))"
        delivery = delivery_us(found)
    return f"clamp_min({found}, 0)"


# Users that one server can hold, by what would end first.
LIMITS = {
    "setting": "ws_capacity_max_connections@ > 0",
    "CPU": _most_by_cpu(),
    "memory": (
        f"({MEMORY_REJECT / 100:g} * (ws_memory_limit_bytes@ > 0)"
        f" - {COSTS.base_mib * MIB:.0f} * ws_workers@) / {_EACH_BYTES:.0f}"
    ),
    # With several workers there is no such series: each has a limit of its own.
    "open files": f"process_max_fds@ - {files_needed(0, 1)}",
    # With few users p99 is that of the machine, and says nothing about more of them.
    "latency": (
        f"({CONNECTIONS} > 1000) * {TARGET_P99_SECONDS:g} / (histogram_quantile(0.99,"
        " sum by (job, instance, le) (rate(ws_fan_out_seconds_bucket@[$__rate_interval]))) > 0)"
    ),
}
ALL_LIMITS = " or ".join(
    f'label_replace({query}, "bound", "{bound}", "", "")' for bound, query in LIMITS.items()
)
