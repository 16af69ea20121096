"""Fan-out: how fast events reach clients, where they wait, and why some do not arrive."""

from __future__ import annotations

from collections.abc import Iterator

from limits import (
    CPU_PAUSE,
    DELIVERIES,
    LAG_REJECT_SECONDS,
    PEAK_DELIVERY_SECONDS,
    TARGET_P99_SECONDS,
)
from panels import GREEN, RED, YELLOW, Line, Section, graph, heat, runbook


def fanout() -> Iterator[Section]:
    """From what clients notice to its possible causes."""
    yield _latency()
    yield _flow()
    yield _queues()
    yield _losses()
    yield _loop()
    yield _clients()
    yield _traces()


def _quantiles(histogram: str) -> list[Line]:
    return [
        Line(
            f"histogram_quantile({share}, sum by (le)"
            f" (rate({histogram}_bucket@[$__rate_interval]))) >= 0",
            name,
        )
        for share, name in ((0.99, "p99"), (0.9, "p90"), (0.5, "p50"))
    ]


def _by_reason(metric: str, label: str = "reason", name: str = "") -> Line:
    query = f"60 * sum by ({label}) (rate({metric}@[$__rate_interval])) > 0"
    return Line(query, name or f"{{{{{label}}}}}")


def _latency() -> Section:
    return Section(
        "Latency",
        [
            heat(
                "Fan-out",
                "Events by the duration of their fan-out, from arrival from NATS to the last write."
                " A second band further up shows events with many subscribers.",
                "sum by (le) (increase(ws_fan_out_seconds_bucket@[$__rate_interval]))",
            ),
            graph(
                "Fan-out, quantiles",
                "It grows with the number of clients of an event. If it grows without more clients,"
                " look at the loop below, then at CPU.",
                _quantiles("ws_fan_out_seconds"),
                "s",
                steps=[(GREEN, 0), (RED, TARGET_P99_SECONDS)],
                width=12,
                empty="no events",
            ),
        ],
    )


def _flow() -> Section:
    return Section(
        "Flow",
        [
            graph(
                "Events from NATS a second",
                runbook(
                    "By outcome. `unmatched`: no client was subscribed. `shed`: dropped before the"
                    " fan-out. Each worker receives and counts every event.",
                    "EventsShed",
                ),
                [
                    Line(f"sum(rate({metric}@[$__rate_interval]))", name)
                    for metric, name in (
                        ("ws_publications_fanned_out_total", "fanned out"),
                        ("ws_publications_unmatched_total", "unmatched"),
                        ("ws_nats_messages_recalled_total", "from before the start"),
                        ("ws_nats_messages_dropped_total", "shed"),
                        ("ws_nats_messages_invalid_total", "invalid"),
                    )
                ],
                stacked=True,
            ),
            graph(
                "Deliveries a second",
                runbook(
                    "By outcome. `conflated`: replaced by a newer event, as the client reads too"
                    " slowly; `skipped`: as it has a rate. If all of them stay below addressed"
                    " for long, outboxes fill up.",
                    "DeliveriesDropped",
                ),
                [
                    Line(f"sum({DELIVERIES})", "written"),
                    Line(
                        "sum(rate(ws_deliveries_conflated_total@[$__rate_interval]))", "conflated"
                    ),
                    Line("sum(rate(ws_deliveries_skipped_total@[$__rate_interval]))", "skipped"),
                    Line("sum(rate(ws_deliveries_dropped_total@[$__rate_interval]))", "dropped"),
                    Line(
                        "sum(rate(ws_deliveries_matched_total@[$__rate_interval]))",
                        "addressed",
                        dashed=True,
                    ),
                ],
                stacked=True,
            ),
            graph(
                "Clients of an event",
                "Average over events with a subscriber. The duration of the fan-out grows with it.",
                [
                    Line(
                        "sum(rate(ws_deliveries_matched_total@[$__rate_interval]))"
                        " / (sum(rate(ws_publications_fanned_out_total@[$__rate_interval])) > 0)",
                        "clients",
                    )
                ],
                empty="no events",
            ),
            graph(
                "CPU of a delivery",
                "All CPU of the servers for each delivery. Under load writes are joined, so a"
                " delivery costs less; with few deliveries this is the CPU of idle processes.",
                [
                    Line(
                        "sum(rate(process_cpu_seconds_total@[$__rate_interval]))"
                        f" / (sum({DELIVERIES}) > 0)",
                        "measured",
                    ),
                    Line(f"vector({PEAK_DELIVERY_SECONDS:g})", "the lab at its peak", dashed=True),
                ],
                "s",
                empty="no events",
            ),
            graph(
                "To clients",
                "Bytes a second, without TCP and TLS.",
                [Line("rate(ws_bytes_sent_total@[$__rate_interval])", "{{instance}}")],
                "Bps",
                stacked=True,
            ),
            graph(
                "Bytes of a delivery",
                "Includes all else sent to clients. A jump: somebody publishes larger events.",
                [
                    Line(
                        "sum(rate(ws_bytes_sent_total@[$__rate_interval]))"
                        f" / (sum({DELIVERIES}) > 0)",
                        "bytes",
                    )
                ],
                "bytes",
                empty="no events",
            ),
        ],
    )


def _queues() -> Section:
    return Section(
        "Where events wait",
        [
            graph(
                "Between NATS and the fan-out",
                runbook(
                    "Fill of the inbound queue, which holds `WS_WORKER_QUEUE_SIZE` events. If it is"
                    " full, events are shed (`feed_full`): the loop does not keep up.",
                    "EventsShed",
                ),
                [Line("ws_feed_waiting@ / ws_feed_capacity@", "{{instance}}")],
                "percentunit",
                steps=[(GREEN, 0), (RED, 1)],
                most=1,
            ),
            graph(
                "In all outboxes",
                runbook(
                    "Share of `WS_TOTAL_OUTBOX_BYTES` in use. It grows while many clients read too"
                    " slowly. At 100 % clients with events waiting lose some.",
                    "OutboxNearLimit",
                ),
                [Line("ws_outbox_bytes@ / (ws_outbox_bytes_limit@ > 0)", "{{instance}}")],
                "percentunit",
                steps=[(GREEN, 0), (YELLOW, 0.8), (RED, 1)],
                most=1,
            ),
            graph(
                "Deliveries waiting",
                "They wait for their socket. A few are normal; many for long mean slow clients.",
                [Line("ws_deliveries_queued@", "{{instance}}")],
            ),
        ],
    )


def _losses() -> Section:
    return Section(
        "Events that did not arrive",
        [
            graph(
                "Events shed a minute",
                runbook(
                    "By reason. `paused`: CPU or memory. `feed_full`: the loop. `nats_client`: the"
                    " connection to NATS overflowed. `…_rate`: a limit that you set.",
                    "EventsShed",
                ),
                [_by_reason("ws_nats_messages_shed_total")],
                stacked=True,
                bars=True,
                empty="none",
            ),
            graph(
                "Gaps a minute",
                runbook(
                    "Seconds in which events were lost before the fan-out, by reason. `window`:"
                    " NATS was away for longer than the stream keeps events. `stream`: the stream"
                    " lost them. `core`: there is no JetStream. `shed`: see the panel on the left.",
                    "EventsLost",
                ),
                [
                    _by_reason("ws_nats_gaps_total"),
                    Line(
                        "60 * sum(rate(ws_nats_messages_missed_total@[$__rate_interval])) > 0",
                        "events in them",
                    ),
                    Line(
                        "60 * sum(rate(ws_nats_reconnects_total@[$__rate_interval])) > 0",
                        "reconnects to NATS",
                    ),
                ],
                bars=True,
                empty="none",
            ),
            graph(
                "Deliveries dropped a minute",
                runbook(
                    "By reason. `outbox_full`, `outbox_bytes`: one client reads too slowly."
                    " `total_outbox_bytes`: too many do. `closing`: the client was leaving anyway."
                    " `worker_lost`: a process ended.",
                    "DeliveriesDropped",
                ),
                [
                    _by_reason("ws_deliveries_dropped_total"),
                    Line(
                        "60 * sum(rate(ws_deliveries_conflated_total@[$__rate_interval])) > 0",
                        "conflated",
                    ),
                ],
                stacked=True,
                bars=True,
                empty="none",
            ),
            graph(
                "Evicted a minute",
                runbook(
                    "Connections that the server closed, by reason. `outbox_full`,"
                    " `write_deadline`: the client is too slow. `keepalive_timeout`: it is silent."
                    " `token_…`: it is no longer authorized. `internal_error`: see the log.",
                    "SlowConsumers",
                ),
                [
                    Line(
                        "60 * sum by (reason) (rate(ws_connections_closed_total@{"
                        'reason!~"peer_closed|peer_gone|draining|stopped"}[$__rate_interval])) > 0',
                        "{{reason}}",
                    )
                ],
                stacked=True,
                bars=True,
                empty="none",
            ),
            graph(
                "Resumed and replayed a second",
                "Events that clients got later: by resuming after a reconnect, or by a replay that"
                " they asked for.",
                [
                    Line(
                        "sum(rate(ws_resumed_messages_total@[$__rate_interval]))",
                        "resumed",
                    ),
                    Line("sum(rate(ws_replayed_messages_total@[$__rate_interval]))", "replayed"),
                    Line(
                        "sum(rate(ws_nats_messages_repeated_total@[$__rate_interval]))",
                        "repeated by NATS (ignored)",
                    ),
                ],
            ),
            graph(
                "Since NATS answered",
                runbook(
                    "The server asks NATS each second. No line: NATS has never answered.",
                    "NatsSilent",
                ),
                [
                    Line("ws_nats_age_seconds@ < Inf", "{{instance}}"),
                ],
                "s",
            ),
        ],
    )


def _loop() -> Section:
    return Section(
        "The loop: each process has one, for all its work",
        [
            heat(
                "Lateness",
                "How late the scheduler runs due tasks. This delay affects every client of the"
                " process.",
                "sum by (le) (increase(ws_loop_lag_seconds_bucket@[$__rate_interval]))",
            ),
            graph(
                "Lateness, quantiles and worst",
                runbook(
                    f"At {LAG_REJECT_SECONDS:g} s new clients are refused. If it is late without"
                    " load, something else uses the machine.",
                    "LoopLag",
                ),
                [
                    *_quantiles("ws_loop_lag_seconds"),
                    Line("max(ws_loop_lag_max_seconds@)", "worst"),
                ],
                "s",
                steps=[(GREEN, 0), (RED, LAG_REJECT_SECONDS)],
                width=12,
            ),
            graph(
                "Busy",
                runbook(
                    "CPU of the busiest process, relative to the one core that it can use. At 100 %"
                    " clients wait: add workers, or a server.",
                    "LoopBusy",
                ),
                [Line("ws_loop_busy_percent@", "{{instance}}")],
                "percent",
                steps=[(GREEN, 0), (YELLOW, 70), (RED, 90)],
                most=100,
            ),
            graph(
                "Shed for CPU or memory",
                f"Share of the events that is shed, from {CPU_PAUSE:g} % CPU on.",
                [Line("ws_paused_percent@", "{{instance}}")],
                "percent",
                most=100,
            ),
            graph(
                "Tasks",
                "Each connection has a few. If tasks grow but connections do not, tasks leak.",
                [Line("ws_tasks@", "{{instance}}")],
            ),
        ],
    )


def _clients() -> Section:
    return Section(
        "Clients",
        [
            graph(
                "Commands a second",
                "Many `subscribe` with a steady number of clients: clients keep reconnecting.",
                [
                    Line(
                        "sum by (command) (rate(ws_commands_total@[$__rate_interval]))",
                        "{{command}}",
                    )
                ],
                stacked=True,
            ),
            graph(
                "Error replies a minute",
                "By code. Often a new client version with a bug. `RATE_LIMIT_EXCEEDED`: a client"
                " that floods.",
                [_by_reason("ws_error_replies_total", "code")],
                stacked=True,
                bars=True,
                empty="none",
            ),
            graph(
                "Channels of a client",
                "Of clients with a subscription. Deliveries are clients × channels × events a"
                " channel.",
                [
                    Line(
                        "max by (quantile) (ws_subscription_count_per_client@)",
                        "quantile {{quantile}}",
                    ),
                    Line("max(ws_channels_current@)", "channels in total", dashed=True),
                ],
            ),
            graph(
                "Accepting",
                "Pending handshakes, and pauses in accepting. Many for long: an attack, or a proxy"
                " that opens connections in advance.",
                [
                    Line("sum(ws_half_open_current@)", "pending handshakes"),
                    Line("sum(rate(ws_accepts_paced_total@[$__rate_interval]))", "pauses a second"),
                    Line("max(ws_loop_turnover_percent@)", "% of a core for connects and closes"),
                    Line(
                        "sum(rate(ws_accept_errors_total@[$__rate_interval]))",
                        "failed accepts a second",
                    ),
                ],
                width=6,
            ),
            graph(
                "Certificate",
                "Days until the certificate of the port expires. Nothing where a proxy speaks TLS.",
                [
                    Line(
                        "min by (instance) (ws_tls_certificate_seconds_left@ < Inf) / 86400",
                        "{{instance}}",
                    )
                ],
                empty="a proxy speaks TLS",
                width=6,
            ),
            graph(
                "Connections by worker",
                "The kernel spreads them unevenly. A worker far below the others has just started.",
                [Line("ws_worker_connections@", "{{instance}}, worker {{worker}}")],
                stacked=True,
                width=6,
            ),
            graph(
                "Open files",
                "Of one process, with its limit. There is no such figure with several workers.",
                [
                    Line("process_open_fds@", "{{instance}}"),
                    Line("process_max_fds@", "limit of {{instance}}", dashed=True),
                ],
                empty="several workers",
                width=6,
            ),
        ],
    )


def _traces() -> Section:
    return Section(
        "Traces",
        [
            graph(
                "Spans a minute",
                runbook(
                    "`exported`: the collector took them. `failed`: it did not. `dropped`: it takes"
                    " them too slowly, so there was no room.",
                    "SpansLost",
                ),
                [_by_reason("ws_spans_total", "result")],
                stacked=True,
                bars=True,
                empty="none",
                width=12,
            ),
            graph(
                "Traced events a minute",
                "Events whose publisher sampled them; those over the limit have no spans here.",
                [
                    Line("60 * sum(rate(ws_traced_events_total@[$__rate_interval])) > 0", "traced"),
                    Line(
                        "60 * sum(rate(ws_traced_events_over_limit_total@[$__rate_interval])) > 0",
                        "over WS_TRACES_PER_SECOND",
                    ),
                ],
                stacked=True,
                bars=True,
                empty="none",
                width=12,
            ),
        ],
    )
