"""Capacity: what is left, what the servers use, and what the lab measured to compare with."""

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
    """From what is left, to why, to what to compare it with."""
    yield _room()
    yield _cpu()
    yield _memory()
    yield Section(
        "To compare with",
        [
            words_panel(
                "What the lab measured",
                "One server of one process with the plan's limits; docs/capacity.md has all of it.",
                _lab_table(),
                width=24,
                height=12,
            )
        ],
    )


def _room() -> Section:
    return Section(
        "How far it is to the limit",
        [
            stat_panel(
                "Users", "Connections now, of all chosen servers.", f"sum({CONNECTIONS})", line=True
            ),
            stat_panel(
                "Room for",
                runbook(
                    "More users of the kind that is connected, until the first server is full by"
                    " what is named to the right. Add a server before it is 0.",
                    "NearCapacity",
                ),
                f"sum({_LOWEST} - {CONNECTIONS})",
                steps=[(RED, 0), (YELLOW, 500), (GREEN, 2000)],
                empty="nobody is here",
                decimals=0,
            ),
            stat_panel(
                "What ends first",
                "setting: `WS_MAX_CONNECTIONS`. CPU, memory: the thresholds at which the server"
                " refuses clients. latency: a fan-out p99 of"
                f" {TARGET_P99_SECONDS:g} s.",
                f"bottomk(1, sum by (bound) ({ALL_LIMITS}))",
                name="{{bound}}",
                empty="nobody is here",
            ),
            stat_panel(
                "Full in",
                "If connections go on growing as in the last hour. The soonest server.",
                f"min(({_LOWEST} - {CONNECTIONS}) / {_GROWTH})",
                "s",
                steps=[(RED, 0), (YELLOW, 3600), (GREEN, 86_400)],
                empty="not growing",
                decimals=0,
            ),
            stat_panel(
                "CPU of a delivery",
                f"The lab: {PEAK_DELIVERY_SECONDS * 1e6:.1f} µs with {PEAK.connected:,} users at"
                f" {PEAK.rate:g} events a second. Well above at such a load: a slower machine, or"
                " one that is shared. With few deliveries it says little.",
                _DELIVERY,
                "s",
                steps=_times(PEAK_DELIVERY_SECONDS),
                empty="nothing is sent",
            ),
            stat_panel(
                "Memory of a connection",
                f"The lab: {COSTS.connection_kib:.1f} KiB. With few users it says little. Above and"
                " growing: outboxes are full, or a leak.",
                _CONNECTION,
                "bytes",
                steps=_times(CONNECTION_BYTES),
                empty="nobody is here",
            ),
            bars(
                "Users that fit, by what would end first",
                "All chosen servers together, if each user gets as much as now. CPU:"
                f" {CPU_REJECT:g} % of what the workers can use, in proportion to now, though among"
                " ten times the users a delivery takes up to half as much again; memory"
                f" {MEMORY_REJECT:g} % of the limit, at {COSTS.connection_kib:.1f} KiB a user;"
                " latency in proportion too; both from 1,000 users on. Files: of one process only."
                " `trio-odin plan` computes it for users of another kind.",
                f"sum by (bound) ({ALL_LIMITS})",
                "{{bound}}",
                width=12,
                # What the lab held: beyond it all are enough, and none is sure.
                most=COSTS.max_connections or 0,
                steps=[(RED, 0), (YELLOW, 1000), (GREEN, 5000)],
            ),
            graph(
                "Users, and where they end",
                "The forecast goes on as the last hour did, for one hour.",
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
    """About as the lab had it; more; much more."""
    return [(GREEN, 0), (YELLOW, figure * 1.5), (RED, figure * 3)]


def _cpu() -> Section:
    return Section(
        "CPU",
        [
            graph(
                "Cores",
                "What grows without more users or events is to be looked at: connects, or what else"
                " the machine does.",
                [
                    Line(f"sum({CPU})", "measured"),
                    Line("sum(clamp_max(ws_workers@, $cores))", "can be used", True),
                ],
            ),
            graph(
                "CPU of a delivery",
                "All CPU of the servers by all they deliver. In a storm of connects it is theirs.",
                [
                    Line(_DELIVERY, "measured"),
                    Line(f"vector({PEAK_DELIVERY_SECONDS:g})", "the lab at its peak", True),
                ],
                "s",
                empty="nothing is sent",
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
                    "Resident, of all processes. Freed memory is kept for a while, so after a peak"
                    " it stays where it was.",
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
                "Without what a process needs for itself. With few connections it says little.",
                [
                    Line(_CONNECTION, "measured"),
                    Line(f"vector({CONNECTION_BYTES:.0f})", "the lab", True),
                ],
                "bytes",
                empty="nobody is here",
            ),
            graph(
                "What waits in outboxes",
                "Slow clients cost memory beside that of their connection.",
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
