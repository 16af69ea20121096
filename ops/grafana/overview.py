"""The overview: the page to open first."""

from __future__ import annotations

from collections.abc import Iterator

from limits import CPU_PAUSE, CPU_REJECT, MEMORY_PAUSE, MEMORY_REJECT, TARGET_P99_SECONDS
from panels import (
    GREEN,
    RED,
    YELLOW,
    Line,
    PanelBuilder,
    Section,
    alerts_panel,
    count_of_lines,
    graph,
    runbook,
    stat_panel,
    states,
)

_YES_OR_NO = [(GREEN, 0.0), (RED, 1.0)]
_OF_RANGE = "In the time range chosen above."
# Without events there is no quantile, and nothing to show.
P99 = (
    "histogram_quantile(0.99,"
    " sum by (le) (rate(ws_fan_out_seconds_bucket@[$__rate_interval]))) >= 0"
)


def overview() -> Iterator[Section]:
    """From faults, to load, to connections that were refused or closed."""
    yield Section(
        "Health",
        [
            stat_panel(
                "Servers",
                runbook(
                    "Servers that Prometheus cannot reach. Look at the machine and its log first.",
                    "ServerDown",
                ),
                "count(up@ == 0) or 0 * count(up@)",
                steps=_YES_OR_NO,
                texts={"0": ("all answer", GREEN)},
                empty="no target",
                width=3,
            ),
            stat_panel(
                "NATS",
                runbook(
                    "Servers without NATS: their clients stay and get nothing. Look at NATS.",
                    "NatsDisconnected",
                ),
                "sum(1 - ws_nats_connected@)",
                steps=_YES_OR_NO,
                texts={"0": ("connected", GREEN)},
                width=3,
            ),
            stat_panel(
                "Alerts firing",
                "The list below shows each one, with what to do about it.",
                'count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)',
                steps=_YES_OR_NO,
                texts={"0": ("none", GREEN)},
                width=3,
            ),
            stat_panel(
                "Errors in the logs",
                runbook(f"{_OF_RANGE} The page Logs shows the lines.", "ErrorsLogged"),
                count_of_lines('{job="odin", level="error"}'),
                steps=[(GREEN, 0), (YELLOW, 1)],
                texts={"0": ("none", GREEN)},
                of_logs=True,
                width=3,
            ),
            stat_panel(
                "Workers missing",
                runbook(
                    "Processes that should serve but do not. One that ended returns in a second.",
                    "WorkerMissing",
                ),
                "sum(ws_workers@ - ws_workers_alive@)",
                steps=_YES_OR_NO,
                texts={"0": ("none", GREEN)},
                width=3,
            ),
            stat_panel(
                "Draining",
                "Servers that drain their clients and then stop. If nobody deploys, find out who"
                " sent SIGTERM: the log shows when (`drain.started`).",
                "sum(ws_draining@)",
                steps=[(GREEN, 0), (YELLOW, 1)],
                texts={"0": ("no", GREEN)},
                width=3,
            ),
            stat_panel(
                "Unaccounted for",
                runbook(
                    "Events and deliveries that the counters do not explain. Must always be 0; any"
                    " other value is a bug in the server.",
                    "LedgerImbalance",
                ),
                "max(ws_ledger_imbalance@)",
                steps=_YES_OR_NO,
                texts={"0": ("nothing", GREEN)},
                width=3,
            ),
            stat_panel(
                "Since the last start",
                runbook("For the server that started last.", "ServerRestarts"),
                "min(ws_uptime_seconds@)",
                "s",
                steps=[(YELLOW, 0), (GREEN, 600)],
                width=3,
                decimals=0,
            ),
            stat_panel(
                "Connections",
                "Clients that are connected now, to all chosen servers.",
                "sum(ws_connections_current@)",
                line=True,
            ),
            stat_panel(
                "Of the limit",
                runbook(
                    "The fullest server's share of `WS_MAX_CONNECTIONS`. At 100 % it refuses"
                    " clients: add a server.",
                    "NearCapacity",
                ),
                "max(ws_connections_current@ / (ws_capacity_max_connections@ > 0))",
                "percentunit",
                steps=[(GREEN, 0), (YELLOW, 0.8), (RED, 0.9)],
                empty="no limit",
                decimals=1,
            ),
            stat_panel(
                "Deliveries a second",
                "Events written to clients.",
                "sum(rate(ws_messages_sent_total@[$__rate_interval]))",
                line=True,
            ),
            stat_panel(
                "Fan-out p99",
                "99 of 100 events were handed to all their clients within this time. Above"
                f" {TARGET_P99_SECONDS:g} s clients see old prices: see the page Fan-out.",
                P99,
                "s",
                steps=[(GREEN, 0), (YELLOW, TARGET_P99_SECONDS / 2), (RED, TARGET_P99_SECONDS)],
                empty="no events",
            ),
            stat_panel(
                "Events a second",
                runbook(
                    "From NATS, to the server that gets most. At 0 nobody publishes, or NATS does"
                    " not deliver.",
                    "NoPublications",
                ),
                "max(rate(ws_nats_messages_received_total@[$__rate_interval])"
                " / (ws_workers_alive@ > 0))",
                line=True,
                decimals=1,
            ),
            stat_panel(
                "Since NATS answered",
                runbook(
                    "The server asks NATS each second. If it is connected but does not answer, NATS"
                    " or the network hangs.",
                    "NatsSilent",
                ),
                "max(ws_nats_age_seconds@)",
                "s",
                steps=[(GREEN, 0), (YELLOW, 5), (RED, 15)],
                texts={"Infinity": ("never", RED)},
                decimals=1,
            ),
            *_suffered(),
            alerts_panel(
                "Alerts",
                "Firing and pending alerts. Open one for its description and its runbook.",
                width=8,
                height=9,
            ),
            states(
                "Times with faults",
                "Red while the fault lasts, on any of the chosen servers.",
                [
                    Line("max(1 - up@)", "does not answer"),
                    Line("max(1 - ws_nats_connected@)", "NATS is away"),
                    Line("max(ws_nats_age_seconds@ > bool 5)", "NATS is silent"),
                    Line("max(ws_paused_percent@ > bool 0)", "sheds events for its load"),
                    Line("max((ws_workers@ - ws_workers_alive@) > bool 0)", "a worker is missing"),
                    Line("max(ws_draining@)", "drains"),
                    Line(
                        'max by (alertname) (ALERTS{alertstate="firing", alertname!="Watchdog"})',
                        "alert {{alertname}}",
                    ),
                ],
                width=16,
                height=9,
                empty="no data",
            ),
        ],
    )
    yield Section(
        "Load",
        [
            graph(
                "Connections",
                "By server, with the limit of each. A sudden fall: a restart, or the network in"
                " front of it.",
                [
                    Line("ws_connections_current@", "{{instance}}"),
                    Line("ws_capacity_max_connections@ > 0", "limit of {{instance}}", dashed=True),
                ],
            ),
            graph(
                "Deliveries a second",
                "By server. If deliveries fall but clients stay, check NATS and the publisher.",
                [Line("rate(ws_messages_sent_total@[$__rate_interval])", "{{instance}}")],
                stacked=True,
            ),
            graph(
                "Deliveries a second for a client",
                "On average: the plan's broadcast efficiency. Without filtering it is the whole"
                " rate of the market.",
                [
                    Line(
                        "rate(ws_messages_sent_total@[$__rate_interval])"
                        " / (ws_connections_current@ > 0)",
                        "{{instance}}",
                    )
                ],
                empty="no clients",
            ),
            graph(
                "Fan-out",
                "From an event's arrival to the last write of its fan-out.",
                [
                    Line(P99, "p99"),
                    Line(P99.replace("0.99", "0.5"), "p50"),
                ],
                "s",
                steps=[(GREEN, 0), (RED, TARGET_P99_SECONDS)],
            ),
            cpu_of_the_limit(),
            graph(
                "Memory",
                runbook(
                    f"Relative to the limit. At {MEMORY_REJECT:g} % new clients are refused, at"
                    f" {MEMORY_PAUSE:g} % all events are shed.",
                    "HighMemoryUsage",
                ),
                [
                    Line(
                        "100 * ws_memory_usage_bytes@ / (ws_memory_limit_bytes@ > 0)",
                        "{{instance}}",
                    )
                ],
                "percent",
                steps=[(GREEN, 0), (YELLOW, MEMORY_REJECT), (RED, MEMORY_PAUSE)],
                most=100,
            ),
        ],
    )
    yield Section("Connections that were refused or closed", list(_comings_and_goings()))


def cpu_of_the_limit() -> PanelBuilder:
    """CPU relative to the limit, for this page and the capacity page."""
    return graph(
        "CPU of the limit",
        runbook(
            f"At {CPU_REJECT:g} % new clients are refused, from {CPU_PAUSE:g} % a growing share of"
            " events is shed. One process cannot use more than one core.",
            "HighCPUUsage",
        ),
        [
            Line("ws_cpu_usage_percent@", "{{instance}}"),
            Line("ws_loop_busy_percent@", "busiest process of {{instance}}, of a core"),
        ],
        "percent",
        steps=[(GREEN, 0), (YELLOW, CPU_REJECT), (RED, CPU_PAUSE)],
        most=100,
    )


def _suffered() -> Iterator[PanelBuilder]:
    """Effects on clients, in whole numbers: one lost event is one too many."""
    for title, about, alert, query in (
        (
            "Events lost",
            "Lost before the fan-out, so no client got them; clients were notified (`gap`).",
            "EventsLost",
            "ws_nats_messages_missed_total@",
        ),
        (
            "Deliveries dropped",
            "Events that single clients missed because they read too slowly.",
            "DeliveriesDropped",
            'ws_deliveries_dropped_total@{reason=~"outbox_full|outbox_bytes|total_outbox_bytes"}',
        ),
        (
            "Slow clients evicted",
            "Clients that read too slowly for too long. They reconnect. Many at once: the network.",
            "SlowConsumers",
            "ws_slow_clients_disconnected_total@",
        ),
        (
            "Connections refused",
            "For lack of room. The reasons are at the bottom of this page.",
            "ConnectionRejections",
            'ws_connections_rejected_total@{reason=~"at_capacity|files|memory|overloaded|lag"}',
        ),
        (
            "Came back too late",
            "Clients that resumed but could not get all that they had missed.",
            "EventsLost",
            "ws_resumes_incomplete_total@",
        ),
        (
            "Log lines lost",
            "Lines that could not be written, so the logs have holes.",
            "LogLinesDropped",
            "ws_log_lines_dropped_total@",
        ),
    ):
        yield stat_panel(
            title,
            runbook(f"{about} {_OF_RANGE}", alert),
            f"round(sum(increase({query}[$__range])))",
            steps=[(GREEN, 0), (YELLOW, 1)],
        )


def _comings_and_goings() -> Iterator[PanelBuilder]:
    yield graph(
        "Refused a minute",
        runbook(
            "By reason. `at_capacity`, `files`, `memory`, `overloaded`, `lag`: the server is full."
            " `per_address`, `origin`, `unauthorized` and the others: the client is at fault.",
            "ConnectionRejections",
        ),
        [
            Line(
                "60 * sum by (reason) (rate(ws_connections_rejected_total@[$__rate_interval])) > 0",
                "{{reason}}",
            )
        ],
        stacked=True,
        bars=True,
        empty="none refused",
    )
    yield graph(
        "Closed a minute",
        runbook(
            "By reason. `peer_closed`, `peer_gone`: the client left. `outbox_full`,"
            " `write_deadline`: it read too slowly. `keepalive_timeout`: it fell silent.",
            "SlowConsumers",
        ),
        [
            Line(
                "60 * sum by (reason) (rate(ws_connections_closed_total@[$__rate_interval])) > 0",
                "{{reason}}",
            )
        ],
        stacked=True,
        bars=True,
        empty="none closed",
    )
    yield graph(
        "Opened and closed a second",
        "Both high for long: clients that reconnect immediately, again and again.",
        [
            Line("sum(rate(ws_connections_total@[$__rate_interval]))", "opened"),
            Line("sum(rate(ws_connections_closed_total@[$__rate_interval]))", "closed"),
        ],
    )
