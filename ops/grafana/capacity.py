"""Capacity: what the servers use, beside what the model says that they should, and what is left."""

from __future__ import annotations

from collections.abc import Iterator

from model import (
    ALL_LIMITS,
    CONNECTIONS,
    COSTS,
    CPU,
    CPU_REJECT,
    LAB,
    MACHINE,
    MEMORY,
    MEMORY_REJECT,
    MIB,
    PARTS,
    PREDICTED_CPU,
    PREDICTED_MEMORY,
    TARGET_P99_SECONDS,
    lab_error,
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
_MEASURED = f"costs measured by {COSTS.source}"
# Less than a user an hour is no growth.
_GROWTH = "(deriv(ws_connections_current@[1h]) > 1 / 3600)"
# The model is right if it is off by no more than in the lab, and some.
_OFF = 2 * max(lab_error("CPU"), lab_error("memory"))
_AS_THE_MODEL = [(YELLOW, 0), (GREEN, 1 - _OFF), (YELLOW, 1 + _OFF), (RED, 2)]


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
                "CPU, of the model's",
                "Measured ÷ predicted. In the lab the model was off by"
                f" {lab_error('CPU'):.0%} at most. Well above 1: a slower machine, or one that is"
                " shared. Well below: writes are joined.",
                f"sum({CPU}) / sum({PREDICTED_CPU})",
                "percentunit",
                steps=_AS_THE_MODEL,
            ),
            stat_panel(
                "Memory, of the model's",
                "Measured ÷ predicted. In the lab the model was off by"
                f" {lab_error('memory'):.0%} at most. Above 1 and growing: outboxes are full, or a"
                " leak.",
                f"sum({MEMORY}) / sum({PREDICTED_MEMORY})",
                "percentunit",
                steps=_AS_THE_MODEL,
            ),
            bars(
                "Users that fit, by what would end first",
                "All chosen servers together, if each user gets as much as now. CPU as `trio-odin"
                f" plan` computes it, {CPU_REJECT:g} % of what the workers can use; memory"
                f" {MEMORY_REJECT:g} % of the limit; latency taken to grow with the users, from"
                " 1,000 on. Files: of one process only.",
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


def _cpu() -> Section:
    return Section(
        f"CPU, beside the model ({_MEASURED})",
        [
            graph(
                "Cores",
                "If measured is far above the model at a steady load, look at what else the machine"
                " does, and whether Python or the machine is another than the lab's.",
                [
                    Line(f"sum({CPU})", "measured"),
                    Line(f"sum({PREDICTED_CPU})", "the model", True),
                    Line("sum(clamp_max(ws_workers@, $cores))", "can be used", True),
                ],
            ),
            graph(
                "What the cores are for, by the model",
                "What grows here is what to do something about: deliveries by fewer channels,"
                " connects by slower reconnects.",
                [Line(f"sum({query})", name) for name, query in PARTS.items()],
                stacked=True,
            ),
            cpu_of_the_limit(),
        ],
    )


def _memory() -> Section:
    above = f"sum({MEMORY}) - sum({COSTS.base_mib * MIB:.0f} * ws_workers@)"
    each = f"({above}) / (sum({CONNECTIONS}) > 0)"
    return Section(
        f"Memory, beside the model ({_MEASURED})",
        [
            graph(
                "Memory",
                runbook(
                    "Resident, of all processes. Freed memory is kept for a while, so after a peak"
                    " it stays above the model.",
                    "HighMemoryUsage",
                ),
                [
                    Line(f"sum({MEMORY})", "measured"),
                    Line(f"sum({PREDICTED_MEMORY})", "the model", True),
                ],
                "bytes",
            ),
            graph(
                "Memory of a connection",
                "Without what a process needs for itself. With few connections it says little.",
                [
                    Line(each, "measured"),
                    Line(f"vector({COSTS.connection_kib * 1024:.0f})", "the model", True),
                ],
                "bytes",
                empty="nobody is here",
            ),
            graph(
                "What waits in outboxes",
                "Slow clients cost memory that the model does not know.",
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
