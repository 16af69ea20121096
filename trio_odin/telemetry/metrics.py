"""The series of `/metrics`: one table of their names, meanings and values.

docs/metrics.md is generated from it. Where the plan and the running dashboards have two names for
one thing, the plan's is the series and the other one is its alias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import attrs

from trio_odin.ledger.counters import Ledger
from trio_odin.ledger.durations import Durations
from trio_odin.ledger.reasons import CloseReason, Dropped, GapReason, Invalid, Rejection, Shed
from trio_odin.ledger.snapshot import Snapshot
from trio_odin.wire.commands import ErrorCode
from trio_odin.wire.compression import Z1, Deflate, Plain

_Value: TypeAlias = float | Mapping[Any, int]


@attrs.frozen
class Series:
    """One series: its name, its meaning, and where its value is in a snapshot.

    For a labelled series `value` returns a mapping from label value to number. `values` are the
    label values that are always shown, so that a rate starts from 0 and not from nothing.
    """

    name: str
    help: str
    value: Callable[[Snapshot], _Value]
    alias: str | None = None
    label: str | None = None
    values: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """The type in Prometheus, by whose naming rule a counter ends in `_total`."""
        return "counter" if self.name.endswith("_total") else "gauge"


def _labels(reasons: type[Enum]) -> Sequence[str]:
    return [label_of(reason) for reason in reasons]


def label_of(reason: Any) -> str:
    """Return an enum member as a label value: its `label` if it has one, else its value."""
    if isinstance(reason, Enum):
        return str(getattr(reason, "label", reason.value))
    return str(reason)


SERIES = (
    Series(
        "ws_connections_current",
        "Connections open now",
        lambda s: s.fan_out.connections,
        alias="ws_connections_active",
    ),
    Series(
        "ws_connections_by_encoding",
        "Connections open now, by how their events are encoded",
        lambda s: s.fan_out.encodings,
        label="encoding",
        values=[encoding.label for encoding in (Plain, Z1, Deflate)],
    ),
    Series("ws_connections_total", "Connections opened", lambda s: s.ledger.traffic.accepted),
    Series(
        "ws_connections_rejected_total",
        "Connections refused before the upgrade",
        lambda s: s.ledger.traffic.rejected,
        label="reason",
        values=_labels(Rejection),
    ),
    Series(
        "ws_connections_closed_total",
        "Connections closed",
        lambda s: s.ledger.traffic.closed,
        label="reason",
        values=_labels(CloseReason),
    ),
    Series(
        "ws_slow_clients_disconnected_total",
        "Connections evicted because the client read too slowly",
        lambda s: (
            s.ledger.traffic.closed[CloseReason.OUTBOX_FULL.label]
            + s.ledger.traffic.closed[CloseReason.WRITE_DEADLINE.label]
        ),
    ),
    Series(
        "ws_half_open_current",
        "Sockets whose request is not complete yet, or whose page is being sent, now",
        lambda s: s.listener.pending_handshakes,
    ),
    Series(
        "ws_tls_certificate_seconds_left",
        "How long the certificate of WS_TLS_CERT is valid; +Inf: the port does not speak TLS",
        lambda s: (
            math.inf
            if s.listener.certificate_seconds_left is None
            else s.listener.certificate_seconds_left
        ),
    ),
    Series("ws_accept_errors_total", "Failed accepts", lambda s: s.ledger.traffic.accept_errors),
    Series(
        "ws_accepts_paced_total",
        "Pauses in accepting, because the loop had no time for more or WS_ACCEPT_RATE was reached",
        lambda s: s.ledger.traffic.accepts_paced,
    ),
    Series(
        "ws_capacity_max_connections",
        "Limit of connections; 0 means no limit",
        lambda s: s.limits.max_connections,
    ),
    Series(
        "ws_channels_current",
        "Channels that have a subscriber; with several workers, of the worker that has the most",
        lambda s: s.fan_out.channels,
    ),
    Series(
        "ws_messages_sent_total",
        "Events written to sockets, replayed and resumed ones included; a batch has several",
        lambda s: s.ledger.deliveries.written,
    ),
    Series(
        "ws_deliveries_matched_total",
        "Events addressed to connections, replayed and resumed ones included",
        lambda s: s.ledger.deliveries.matched,
    ),
    Series(
        "ws_deliveries_queued",
        "Events waiting for their socket now",
        lambda s: s.ledger.deliveries.queued,
    ),
    Series(
        "ws_deliveries_conflated_total",
        "Events replaced by a newer one of their channel before a slow client took them",
        lambda s: s.ledger.deliveries.conflated,
    ),
    Series(
        "ws_deliveries_skipped_total",
        "Events left out in favour of a newer one of their channel, as the client has a rate",
        lambda s: s.ledger.deliveries.skipped,
    ),
    Series(
        "ws_batches_sent_total",
        "Messages of clients that have a rate, with the newest event of each channel that changed",
        lambda s: s.ledger.deliveries.batches,
    ),
    Series(
        "ws_deliveries_dropped_total",
        "Events dropped before they were written",
        lambda s: s.ledger.deliveries.dropped,
        label="reason",
        values=_labels(Dropped),
    ),
    Series(
        "ws_ledger_imbalance",
        "Publications and deliveries that are unaccounted for; always 0",
        lambda s: s.imbalance,
    ),
    Series(
        "ws_messages_received_total",
        "Messages from clients",
        lambda s: s.ledger.traffic.messages_received,
    ),
    Series(
        "ws_binary_messages_ignored_total",
        "Binary messages from clients, which are ignored",
        lambda s: s.ledger.traffic.binary_ignored,
    ),
    Series(
        "ws_commands_total",
        "Commands from clients",
        lambda s: s.ledger.traffic.commands,
        label="command",
        values=[
            "subscribe",
            "unsubscribe",
            "replay",
            "heartbeat",
            "channels",
            "token",
            "unknown",
            "malformed",
        ],
    ),
    Series(
        "ws_error_replies_total",
        "Error replies to clients",
        lambda s: s.ledger.traffic.errors,
        label="code",
        values=_labels(ErrorCode),
    ),
    Series(
        "ws_rate_limited_messages_total",
        "Messages from clients that exceeded their rate limit",
        lambda s: s.ledger.traffic.rate_limited,
    ),
    Series(
        "ws_replay_requests_total",
        "Replays requested",
        lambda s: s.ledger.traffic.commands["replay"],
    ),
    Series("ws_replayed_messages_total", "Messages replayed", lambda s: s.ledger.traffic.replayed),
    Series(
        "ws_resumed_messages_total",
        "Missed messages sent to clients that resumed",
        lambda s: s.ledger.traffic.resumed,
    ),
    Series(
        "ws_resumes_incomplete_total",
        "Resumes that could not send everything that was missed",
        lambda s: s.ledger.traffic.resumed_incompletely,
    ),
    Series(
        "ws_snapshot_messages_total",
        "Newest events sent to clients that subscribed with a snapshot",
        lambda s: s.ledger.traffic.snapshots,
    ),
    Series("ws_bytes_sent_total", "Bytes to clients", lambda s: s.ledger.traffic.bytes_sent),
    Series(
        "ws_bytes_received_total", "Bytes from clients", lambda s: s.ledger.traffic.bytes_received
    ),
    Series("ws_nats_connected", "1 while connected to NATS", lambda s: s.nats.is_connected),
    Series(
        "ws_nats_reconnects_total", "NATS connections after the first", lambda s: s.nats.reconnects
    ),
    Series(
        "ws_nats_age_seconds",
        "Time since NATS last sent anything (it is pinged every second); +Inf until it first does",
        lambda s: math.inf if s.nats.age_seconds is None else s.nats.age_seconds,
    ),
    Series(
        "ws_nats_gaps_total",
        "Seconds in which events were lost before the fan-out; each worker counts its own",
        lambda s: s.ledger.publications.gaps,
        label="reason",
        values=_labels(GapReason),
    ),
    Series(
        "ws_nats_messages_missed_total",
        "Messages lost in those gaps, as far as they can be counted; includes shed messages",
        lambda s: s.ledger.publications.missed,
    ),
    Series(
        "ws_nats_messages_received_total",
        "Messages received from NATS; every worker receives and counts each one",
        lambda s: s.ledger.publications.received,
    ),
    Series(
        "ws_nats_messages_repeated_total",
        "Messages that NATS sent a second time, which are ignored",
        lambda s: s.ledger.publications.repeated,
    ),
    Series(
        "ws_nats_messages_recalled_total",
        "Messages published before the start, fetched for clients that resume",
        lambda s: s.ledger.publications.backfilled,
    ),
    Series(
        "ws_nats_messages_dropped_total",
        "Messages from NATS shed before the fan-out",
        lambda s: s.ledger.publications.shed.total(),
    ),
    Series(
        "ws_nats_messages_shed_total",
        "Messages from NATS shed before the fan-out, by reason",
        lambda s: s.ledger.publications.shed,
        label="reason",
        values=_labels(Shed),
    ),
    Series(
        "ws_nats_messages_invalid_total",
        "Messages from NATS that are not valid events",
        lambda s: s.ledger.publications.invalid,
        label="reason",
        values=_labels(Invalid),
    ),
    Series(
        "ws_publications_fanned_out_total",
        "Messages from NATS delivered to at least one connection",
        lambda s: s.ledger.publications.fanned_out,
    ),
    Series(
        "ws_publications_unmatched_total",
        "Messages from NATS whose channel had no subscriber",
        lambda s: s.ledger.publications.unmatched,
    ),
    Series(
        "ws_feed_waiting",
        "Messages in the inbound queue, between bridge and hub, now",
        lambda s: s.fan_out.inbound_waiting,
    ),
    Series("ws_feed_capacity", "Limit of ws_feed_waiting", lambda s: s.fan_out.inbound_capacity),
    Series(
        "ws_outbox_bytes",
        "Bytes waiting for their socket now, in all outboxes",
        lambda s: s.fan_out.outbox_bytes,
    ),
    Series(
        "ws_outbox_bytes_limit", "Limit of ws_outbox_bytes", lambda s: s.fan_out.outbox_bytes_limit
    ),
    Series(
        "ws_replay_bytes",
        "Bytes of events kept for replay now, shared by the connections that keep them",
        lambda s: s.fan_out.replay_bytes,
    ),
    Series(
        "ws_replay_bytes_limit", "Limit of ws_replay_bytes", lambda s: s.fan_out.replay_bytes_limit
    ),
    Series(
        "ws_snapshot_channels",
        "Channels whose newest event is kept for snapshots",
        lambda s: s.fan_out.snapshot_channels,
    ),
    Series(
        "ws_snapshot_bytes",
        "Payload bytes of the events kept for snapshots, in one worker",
        lambda s: s.fan_out.snapshot_bytes,
    ),
    Series(
        "ws_traced_events_total",
        "Events with a sampled traceparent that were traced; each worker traces its own",
        lambda s: s.ledger.traces.events,
    ),
    Series(
        "ws_traced_events_over_limit_total",
        "Events with a sampled traceparent that were not, because of WS_TRACES_PER_SECOND",
        lambda s: s.ledger.traces.over_limit,
    ),
    Series(
        "ws_spans_total",
        "Spans that the collector took, that it did not take, or that had no room to wait for it",
        lambda s: {
            "exported": s.ledger.traces.spans_exported,
            "failed": s.ledger.traces.spans_failed,
            "dropped": s.ledger.traces.spans_dropped,
        },
        label="result",
        values=["exported", "failed", "dropped"],
    ),
    Series("ws_tasks", "Trio tasks", lambda s: s.load.tasks),
    Series(
        "ws_cpu_usage_percent",
        "CPU used, in percent of the limit; with a quota, everything that runs under it counts",
        lambda s: s.load.cpu_percent,
    ),
    Series(
        "ws_loop_busy_percent",
        "CPU used by the process, in percent of one core; with several workers, by the busiest",
        lambda s: s.load.loop_busy_percent,
    ),
    Series(
        "ws_loop_turnover_percent",
        "Part of ws_loop_busy_percent that serves clients that come or go; never closes admission",
        lambda s: s.load.turnover_percent,
    ),
    Series(
        "ws_loop_lag_max_seconds",
        "How late the scheduler was, at worst, in the last second",
        lambda s: s.load.lag_seconds,
    ),
    Series(
        "ws_paused_percent",
        "Share of the messages from NATS that is shed because of CPU or memory",
        lambda s: s.load.paused_percent,
    ),
    Series(
        "ws_memory_usage_bytes",
        "Memory used: by the container if its limit applies, else resident",
        lambda s: s.used_memory_bytes,
        alias="ws_memory_bytes",
    ),
    Series(
        "ws_memory_limit_bytes",
        "Limit of ws_memory_usage_bytes",
        lambda s: s.load.memory_limit_bytes,
    ),
    Series("ws_draining", "1 while draining", lambda s: s.is_draining),
    Series(
        "ws_log_lines_dropped_total",
        "Log lines dropped because nobody read them or they could not be written",
        lambda s: s.process.log_lines_dropped,
    ),
    Series("ws_uptime_seconds", "Time since the server started", lambda s: s.uptime_seconds),
    Series("ws_workers", "Processes that should be serving", lambda s: s.workers.configured),
    Series(
        "ws_workers_alive", "Processes that are serving and responding", lambda s: s.workers.alive
    ),
    Series(
        "ws_worker_connections",
        "Connections open now, by worker",
        lambda s: dict(enumerate(s.workers.connections, start=1)),
        label="worker",
        values=["1"],
    ),
    Series(
        "ws_worker_restarts_total",
        "Workers restarted after they ended",
        lambda s: s.workers.restarts,
    ),
    Series(
        "ws_worker_rollings_total",
        "Workers replaced by a successor on SIGUSR2",
        lambda s: s.workers.rollings,
    ),
    Series(
        "ws_config_reloads_total",
        "Reloads of the settings on SIGHUP; each worker counts its own",
        lambda s: s.ledger.traffic.reloads,
        label="result",
        values=["ok", "failed"],
    ),
)


# The series that shows each outcome of the ledger.
_OUTCOMES = {
    "fanned_out": "ws_publications_fanned_out_total",
    "unmatched": "ws_publications_unmatched_total",
    "recalled": "ws_nats_messages_recalled_total",
    "invalid": "ws_nats_messages_invalid_total",
    "shed": "ws_nats_messages_shed_total",
    "waiting": "ws_feed_waiting",
    "written": "ws_messages_sent_total",
    "queued": "ws_deliveries_queued",
    "conflated": "ws_deliveries_conflated_total",
    "skipped": "ws_deliveries_skipped_total",
    "dropped": "ws_deliveries_dropped_total",
}


def balances() -> dict[str, list[Series]]:
    """Return the two balances of the ledger as series: each total with its parts."""
    ledger = Ledger()
    outcomes = {
        "ws_nats_messages_received_total": ledger.publications.outcomes(0),
        "ws_deliveries_matched_total": ledger.deliveries.outcomes(),
    }
    series = {one.name: one for one in SERIES}
    return {total: [series[_OUTCOMES[part]] for part in parts] for total, parts in outcomes.items()}


@attrs.frozen
class Histogram:
    """One histogram of durations in seconds."""

    name: str
    help: str
    durations: Callable[[Ledger], Durations]


HISTOGRAMS = (
    Histogram(
        "ws_fan_out_seconds",
        "Time from the arrival of a message from NATS to the last write of its fan-out",
        lambda ledger: ledger.fan_out,
    ),
    Histogram(
        "ws_loop_lag_seconds",
        "How late the scheduler runs a task that is due",
        lambda ledger: ledger.lag,
    ),
)

BUILD_NAME = "ws_build_info"
BUILD_HELP = (
    "Always 1; the labels name the running code. Several series while one version replaces another"
)
BUILD_LABELS = ("version", "python", "revision")

SUBSCRIPTIONS_NAME = "ws_subscription_count_per_client"
SUBSCRIPTIONS_HELP = "Subscriptions per client, over the clients that have any"
