"""The figures that the pages compare with, and the limits at which a server is full.

All figures are read from the project: the lab's latest results, the defaults of the settings, the
machine of the plan. None is written here; run dashboards.py when they change.

Each query is for each of the chosen servers with all its workers.
"""

from __future__ import annotations

from pathlib import Path

from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.model.model import KIB, Costs
from trio_odin.lab.model.tables import read_costs, read_prices
from trio_odin.lab.report.folder import read_verdict
from trio_odin.overload.process import files_needed
from trio_odin.settings.reading import variables

_ROOT = Path(__file__).parents[2]
_PEAK_STAGE = 6
MIB = KIB * KIB


def _costs() -> Costs:
    costs = read_costs()
    assert costs is not None, "the project comes with measured costs"
    return costs


COSTS = _costs()
LAB = read_verdict(_ROOT / "docs" / "capacity")
SETTINGS = {variable.name: variable.default for variable in variables()}
MACHINE = read_prices().machines["e2-standard-2"]
TARGET_P99_SECONDS = 1.0
CPU_REJECT, CPU_PAUSE, MEMORY_REJECT, MEMORY_PAUSE = (
    float(SETTINGS[f"WS_{name}_THRESHOLD"])
    for name in ("CPU_REJECT", "CPU_PAUSE", "MEMORY_REJECT", "MEMORY_PAUSE")
)
LAG_REJECT_SECONDS = float(SETTINGS["WS_LAG_REJECT_MS"]) / 1000


def _peak() -> LoadResult:
    stage = LAB.stage(_PEAK_STAGE)
    assert stage is not None
    assert stage.load is not None, "the lab's peak is what the pages compare with"
    return stage.load


PEAK = _peak()
PEAK_DELIVERY_SECONDS = (PEAK.server.delivery_us or 0) / 1e6
CONNECTION_BYTES = COSTS.connection_kib * KIB

CONNECTIONS = "ws_connections_current@"
DELIVERIES = "rate(ws_messages_sent_total@[$__rate_interval])"
CPU = "rate(process_cpu_seconds_total@[$__rate_interval])"
MEMORY = "process_resident_memory_bytes@"
# With few users, CPU and p99 are those of the machine and predict nothing.
_ENOUGH = f"({CONNECTIONS} > 1000)"

# Users that one server can hold if each gets as much as now, by limit.
LIMITS = {
    "setting": "ws_capacity_max_connections@ > 0",
    "CPU": f"{_ENOUGH} * {CPU_REJECT / 100:g} * clamp_max(ws_workers@, $cores) / ({CPU} > 0)",
    "memory": (
        f"({MEMORY_REJECT / 100:g} * (ws_memory_limit_bytes@ > 0)"
        f" - {COSTS.base_mib * MIB:.0f} * ws_workers@) / {CONNECTION_BYTES:.0f}"
    ),
    # With several workers there is no such series: each worker has its own limit.
    "open files": f"process_max_fds@ - {files_needed(0, 1)}",
    "latency": (
        f"{_ENOUGH} * {TARGET_P99_SECONDS:g} / (histogram_quantile(0.99,"
        " sum by (job, instance, le) (rate(ws_fan_out_seconds_bucket@[$__rate_interval]))) > 0)"
    ),
}
ALL_LIMITS = " or ".join(
    f'label_replace({query}, "bound", "{bound}", "", "")' for bound, query in LIMITS.items()
)
