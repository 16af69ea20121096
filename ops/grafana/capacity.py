"""Capacity: the room left, the use of the servers, and the lab's figures for comparison."""

from __future__ import annotations

from collections.abc import Iterator

from limits import (
    ALL_LIMITS,
    CONNECTION_BYTES,
    CONNECTIONS,
    COSTS,
    CPU,
    CPU_REJECT,
    DELIVERIES,
    LAB,
    MACHINE,
    MEMORY,
    MEMORY_REJECT,
    MIB,
    PEAK,
    PEAK_DELIVERY_SECONDS,
    TARGET_P99_SECONDS,
)
from overview import cpu_of_the_limit
from panels import (
    GREEN,
    RED,
    YELLOW,
    Line,
    Section,
    bars,
    graph,
    runbook,
    stat_panel,
    words_panel,
)

from trio_odin.lab.figures import figure

_LOWEST = f"min by (job, instance) ({ALL_LIMITS})"
_DELIVERY = f"sum({CPU}) / (sum({DELIVERIES}) > 0)"
_CONNECTION = (
    f"(sum({MEMORY}) - sum({COSTS.base_mib * MIB:.0f} * ws_workers@)) / (sum({CONNECTIONS}) > 0)"
)
# Less than a user an hour is no growth.
_GROWTH = "(deriv(ws_connections_current@[1h]) > 1 / 3600)"


def capacity() -> Iterator[Section]:
    """From the room left, to its causes, to the lab's figures."""
    yield _room()
    yield _cpu()
    yield _memory()
    yield Section(
        "Comparison",
        [
            words_panel(
                "Measured in the lab",
                "One server of one process with the plan's limits; docs/capacity.md has the rest.",
                _lab_table(),
                width=24,
                height=12,
            )
        ],
    )


def _room() -> Section:
    return Section(
        "Room up to the limit",
        [
            stat_panel(
                "Users", "Connections now, to all chosen servers.", f"sum({CONNECTIONS})", line=True
            ),
            stat_panel(
                "Room for",
                runbook(
                    "More users like those connected, until the first server reaches the limit"
                    " named to the right. Add a server before it is 0.",
                    "NearCapacity",
                ),
                f"sum({_LOWEST} - {CONNECTIONS})",
                steps=[(RED, 0), (YELLOW, 500), (GREEN, 2000)],
                empty="no users",
                decimals=0,
            ),
            stat_panel(
                "First limit",
                "setting: `WS_MAX_CONNECTIONS`. CPU, memory: the thresholds at which the server"
                " refuses clients. latency: a fan-out p99 of"
                f" {TARGET_P99_SECONDS:g} s.",
                f"bottomk(1, sum by (bound) ({ALL_LIMITS}))",
                name="{{bound}}",
                empty="no users",
            ),
            stat_panel(
                "Full in",
                "If connections keep growing as in the last hour; for the first server to be full.",
                f"min(({_LOWEST} - {CONNECTIONS}) / {_GROWTH})",
                "s",
                steps=[(RED, 0), (YELLOW, 3600), (GREEN, 86_400)],
                empty="not growing",
                decimals=0,
            ),
            stat_panel(
                "CPU of a delivery",
                f"The lab: {PEAK_DELIVERY_SECONDS * 1e6:.1f} µs with {PEAK.connected:,} users at"
                f" {PEAK.rate:g} events a second. If it is well above at such a load, the machine"
                " is slower or shared. With few deliveries it means little.",
                _DELIVERY,
                "s",
                steps=_times(PEAK_DELIVERY_SECONDS),
                empty="no deliveries",
            ),
            stat_panel(
                "Memory of a connection",
                f"The lab: {COSTS.connection_kib:.1f} KiB. With few users it means little. If it is"
                " above and growing, outboxes are full, or memory leaks.",
                _CONNECTION,
                "bytes",
                steps=_times(CONNECTION_BYTES),
                empty="no users",
            ),
            bars(
                "Users that fit, by limit",
                "All chosen servers together, if each user gets as much as now. CPU:"
                f" {CPU_REJECT:g} % of what the workers can use, in proportion to now, although"
                " with ten times the users a delivery takes up to half as much again. Memory:"
                f" {MEMORY_REJECT:g} % of the limit, at {COSTS.connection_kib:.1f} KiB a user."
                " Latency: in proportion too. CPU and latency need 1,000 users. Files: of one"
                " process only. `trio-odin plan` computes this for other kinds of users.",
                f"sum by (bound) ({ALL_LIMITS})",
                "{{bound}}",
                width=12,
                # The lab's maximum: a value beyond it is enough, but not measured.
                most=COSTS.max_connections or 0,
                steps=[(RED, 0), (YELLOW, 1000), (GREEN, 5000)],
            ),
            graph(
                "Users and their limit",
                "The forecast continues the last hour for one more hour.",
                [
                    Line(f"sum({CONNECTIONS})", "users"),
                    Line(
                        "sum(predict_linear(ws_connections_current@[1h], 3600))", "in an hour", True
                    ),
                    Line(f"sum({_LOWEST})", "limit", True),
                ],
                width=12,
            ),
        ],
    )


def _times(figure: float) -> list[tuple[str, float]]:
    """About the lab's figure; more; much more."""
    return [(GREEN, 0), (YELLOW, figure * 1.5), (RED, figure * 3)]


def _cpu() -> Section:
    return Section(
        "CPU",
        [
            graph(
                "Cores",
                "If it grows without more users or events, look at connects and at other programs"
                " on the machine.",
                [
                    Line(f"sum({CPU})", "measured"),
                    Line("sum(clamp_max(ws_workers@, $cores))", "can be used", True),
                ],
            ),
            graph(
                "CPU of a delivery",
                "All CPU of the servers for each delivery. A storm of connects raises it.",
                [
                    Line(_DELIVERY, "measured"),
                    Line(f"vector({PEAK_DELIVERY_SECONDS:g})", "the lab at its peak", True),
                ],
                "s",
                empty="no deliveries",
            ),
            cpu_of_the_limit(),
        ],
    )


def _memory() -> Section:
    return Section(
        "Memory",
        [
            graph(
                "Memory",
                runbook(
                    "Resident memory of all processes. A process keeps freed memory for a while, so"
                    " it stays high after a peak.",
                    "HighMemoryUsage",
                ),
                [
                    Line(f"sum({MEMORY})", "measured"),
                    Line("sum(ws_memory_limit_bytes@)", "limit", True),
                ],
                "bytes",
            ),
            graph(
                "Memory of a connection",
                "Without the base of each process. With few connections it means little.",
                [
                    Line(_CONNECTION, "measured"),
                    Line(f"vector({CONNECTION_BYTES:.0f})", "the lab", True),
                ],
                "bytes",
                empty="no users",
            ),
            graph(
                "Bytes waiting in outboxes",
                "Slow clients take memory in addition to that of their connection.",
                [
                    Line("sum(ws_outbox_bytes@)", "outboxes"),
                    Line("sum(ws_outbox_bytes_limit@)", "limit", True),
                ],
                "bytes",
            ),
        ],
    )


def _lab_table() -> str:
    """The stages of the lab's last run that held connections."""
    rows = [
        "| stage | users | deliveries a second | cores | memory | p99 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage in LAB.stages:
        if (load := stage.load) is None:
            continue
        p99_ms = load.latency.p99_ms if load.latency else None
        rows.append(
            f"| {stage.title} | {load.connected:,} | {load.received_per_second or 0:,.0f}"
            f" | {figure(load.server.cores, '')} | {figure(load.server.held_mib, 'MiB')}"
            f" | {figure(p99_ms, 'ms')} |"
        )
    limits = ", ".join(f"{name} {limit}" for name, limit in LAB.limits.items())
    rows += ["", f"{LAB.provenance.day}, limits: {limits}. The machine of the plan:"]
    rows.append(
        f"{MACHINE.name}, {MACHINE.cpu_limit:g} cores and {MACHINE.memory_limit_mib:,.0f} MiB."
    )
    return "\n".join(rows)
