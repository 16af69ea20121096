from __future__ import annotations

import math
import re
from collections import Counter
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.telemetry.snapshots import snapshot
from trio_odin.ledger.counters import Deliveries, Ledger, Publications, TraceCounters, Traffic
from trio_odin.ledger.durations import Durations
from trio_odin.ledger.reasons import CloseReason, Dropped, GapReason, Invalid, Rejection, Shed
from trio_odin.ledger.snapshot import Build, Snapshot, Workers
from trio_odin.telemetry.exposition import CONTENT_TYPE, render
from trio_odin.telemetry.metrics import HISTOGRAMS, SERIES
from trio_odin.wire.commands import Command, ErrorCode

# wire_compatibility.md, metric names: the plan's and the running dashboard's.
PLAN = {
    "ws_connections_current": "gauge",
    "ws_cpu_usage_percent": "gauge",
    "ws_memory_usage_bytes": "gauge",
    "ws_messages_sent_total": "counter",
    "ws_connections_rejected_total": "counter",
    "ws_subscription_count_per_client": "summary",
}
DASHBOARD = {
    "ws_connections_active": "gauge",
    "ws_connections_total": "counter",
    "ws_messages_received_total": "counter",
    "ws_bytes_sent_total": "counter",
    "ws_bytes_received_total": "counter",
    "ws_memory_bytes": "gauge",
    "ws_memory_limit_bytes": "gauge",
    "ws_slow_clients_disconnected_total": "counter",
    "ws_rate_limited_messages_total": "counter",
    "ws_replay_requests_total": "counter",
    "ws_nats_connected": "gauge",
    "ws_nats_messages_received_total": "counter",
    "ws_nats_messages_dropped_total": "counter",
    "ws_capacity_max_connections": "gauge",
}
# The label of each labelled series, and the values that exist from the start.
LABELS = {
    "ws_connections_rejected_total": ("reason", {one.label for one in Rejection}),
    "ws_connections_by_encoding": ("encoding", {"plain", "z1", "deflate"}),
    "ws_connections_closed_total": ("reason", {one.label for one in CloseReason}),
    "ws_deliveries_dropped_total": ("reason", {one.value for one in Dropped}),
    "ws_nats_gaps_total": ("reason", {one.value for one in GapReason}),
    "ws_nats_messages_shed_total": ("reason", {one.value for one in Shed}),
    "ws_nats_messages_invalid_total": ("reason", {one.value for one in Invalid}),
    "ws_error_replies_total": ("code", {one.value for one in ErrorCode}),
    "ws_config_reloads_total": ("result", {"ok", "failed"}),
    "ws_commands_total": (
        "command",
        {kind.__name__.lower() for kind in Command.__args__},
    ),
    "ws_worker_connections": ("worker", {"1"}),
    "ws_spans_total": ("result", {"exported", "failed", "dropped"}),
}


def families(state: Snapshot) -> dict[str, Metric]:
    """The text as Prometheus parses it, by the name of the first sample's series."""
    text = render(state).decode()
    parsed = list(text_string_to_metric_families(text))
    by_name = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in parsed
    }
    assert len(by_name) == len(parsed), "no family is there twice"
    return by_name


def value(state: Snapshot, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in families(state).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


@pytest.mark.parametrize(("name", "kind"), [*PLAN.items(), *DASHBOARD.items()])
def test_every_dashboard_metric_exists_with_its_type(name: str, kind: str) -> None:
    family = families(snapshot())[name]
    assert family.type == kind
    assert family.samples


def test_every_series_exists_with_help_and_the_type_of_its_name() -> None:
    by_name = families(snapshot())
    for series in SERIES:
        for name in filter(None, (series.name, series.alias)):
            assert by_name[name].type == series.kind
            assert by_name[name].documentation == series.help
            assert re.fullmatch(r"ws_[a-z]+(_[a-z]+)*", name)
    names = [name for series in SERIES for name in (series.name, series.alias) if name]
    assert names
    assert len(names) == len(set(names))


def test_only_the_prefixes_ws_and_process_are_used() -> None:
    assert {name.split("_")[0] for name in families(snapshot())} == {"ws", "process"}


def test_the_type_of_the_page_is_that_of_the_text_format() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


LEDGER = Ledger(
    publications=Publications(
        received=1001,
        fanned_out=1002,
        unmatched=1003,
        invalid=Counter({Invalid.SUBJECT: 1004, Invalid.PAYLOAD: 1005}),
        shed=Counter({Shed.FEED_FULL: 1006, Shed.NATS_RATE: 1007}),
        backfilled=1011,
        gaps=Counter({GapReason.WINDOW: 1008, GapReason.SHED: 1009}),
        missed=1010,
    ),
    deliveries=Deliveries(
        matched=2001,
        written=2002,
        queued=2003,
        conflated=2005,
        skipped=2006,
        batches=2007,
        dropped=Counter({Dropped.OUTBOX_FULL: 2004}),
    ),
    traffic=Traffic(
        accepted=3001,
        rejected=Counter({"at_capacity": 3002, "something_new": 3003}),
        closed=Counter({"outbox_full": 3004, "write_deadline": 3005, "peer_gone": 3006}),
        accept_errors=3007,
        accepts_paced=3017,
        messages_received=3008,
        binary_ignored=3009,
        commands=Counter({"replay": 3010, "subscribe": 3011}),
        errors=Counter({"INVALID_JSON": 3012}),
        rate_limited=3013,
        reloads=Counter({"ok": 3017, "failed": 3018}),
        replayed=3014,
        resumed=3021,
        resumed_incompletely=3022,
        snapshots=3023,
        bytes_received=3015,
        bytes_sent=3016,
    ),
    traces=TraceCounters(
        events=6001, over_limit=6002, spans_exported=6003, spans_failed=6004, spans_dropped=6005
    ),
)
BUSY = snapshot(
    ledger=LEDGER,
    uptime_seconds=4001.5,
    log_lines_dropped=4002,
    connections=4002,
    encodings={"plain": 4201, "z1": 4202},
    max_connections=4003,
    channels=4004,
    reconnects=4005,
    age_seconds=40.055,
    inbound_waiting=4006,
    inbound_capacity=4007,
    outbox_bytes=4101,
    outbox_bytes_limit=4102,
    replay_bytes=4103,
    replay_bytes_limit=4104,
    snapshot_channels=4105,
    snapshot_bytes=4106,
    tasks=4008,
    cpu_percent=40.09,
    loop_busy_percent=40.12,
    turnover_percent=31.5,
    lag_seconds=0.75,
    paused_percent=30,
    pending_handshakes=4013,
    certificate_seconds_left=4014.5,
    memory_bytes=4009,
    group_memory_bytes=4010,
    memory_limit_bytes=4011,
    workers=Workers(
        configured=5001, alive=5002, restarts=5003, connections=[5004, 5005], rollings=5006
    ),
)
EXPECTED: list[tuple[str, dict[str, str], float]] = [
    ("ws_connections_current", {}, 4002),
    ("ws_connections_active", {}, 4002),
    ("ws_connections_by_encoding", {"encoding": "plain"}, 4201),
    ("ws_connections_by_encoding", {"encoding": "z1"}, 4202),
    ("ws_connections_by_encoding", {"encoding": "deflate"}, 0),
    ("ws_connections_total", {}, 3001),
    ("ws_connections_rejected_total", {"reason": "at_capacity"}, 3002),
    ("ws_connections_rejected_total", {"reason": "something_new"}, 3003),
    ("ws_connections_closed_total", {"reason": "outbox_full"}, 3004),
    ("ws_connections_closed_total", {"reason": "peer_gone"}, 3006),
    ("ws_slow_clients_disconnected_total", {}, 3004 + 3005),
    ("ws_accept_errors_total", {}, 3007),
    ("ws_accepts_paced_total", {}, 3017),
    ("ws_half_open_current", {}, 4013),
    ("ws_tls_certificate_seconds_left", {}, 4014.5),
    ("ws_capacity_max_connections", {}, 4003),
    ("ws_channels_current", {}, 4004),
    ("ws_messages_sent_total", {}, 2002),
    ("ws_deliveries_matched_total", {}, 2001),
    ("ws_deliveries_queued", {}, 2003),
    ("ws_deliveries_conflated_total", {}, 2005),
    ("ws_deliveries_skipped_total", {}, 2006),
    ("ws_batches_sent_total", {}, 2007),
    ("ws_deliveries_dropped_total", {"reason": "outbox_full"}, 2004),
    ("ws_messages_received_total", {}, 3008),
    ("ws_binary_messages_ignored_total", {}, 3009),
    ("ws_commands_total", {"command": "subscribe"}, 3011),
    ("ws_error_replies_total", {"code": "INVALID_JSON"}, 3012),
    ("ws_rate_limited_messages_total", {}, 3013),
    ("ws_replay_requests_total", {}, 3010),
    ("ws_replayed_messages_total", {}, 3014),
    ("ws_resumed_messages_total", {}, 3021),
    ("ws_snapshot_messages_total", {}, 3023),
    ("ws_resumes_incomplete_total", {}, 3022),
    ("ws_bytes_sent_total", {}, 3016),
    ("ws_bytes_received_total", {}, 3015),
    ("ws_nats_connected", {}, 1),
    ("ws_nats_reconnects_total", {}, 4005),
    ("ws_nats_age_seconds", {}, 40.055),
    ("ws_nats_gaps_total", {"reason": "window"}, 1008),
    ("ws_nats_gaps_total", {"reason": "shed"}, 1009),
    ("ws_nats_gaps_total", {"reason": "core"}, 0),
    ("ws_nats_messages_missed_total", {}, 1010),
    ("ws_nats_messages_received_total", {}, 1001),
    ("ws_nats_messages_repeated_total", {}, 0),
    ("ws_nats_messages_recalled_total", {}, 1011),
    ("ws_nats_messages_dropped_total", {}, 1006 + 1007),
    ("ws_nats_messages_shed_total", {"reason": "feed_full"}, 1006),
    ("ws_nats_messages_shed_total", {"reason": "nats_rate"}, 1007),
    ("ws_nats_messages_invalid_total", {"reason": "subject"}, 1004),
    ("ws_nats_messages_invalid_total", {"reason": "payload"}, 1005),
    ("ws_publications_fanned_out_total", {}, 1002),
    ("ws_publications_unmatched_total", {}, 1003),
    ("ws_feed_waiting", {}, 4006),
    ("ws_feed_capacity", {}, 4007),
    ("ws_outbox_bytes", {}, 4101),
    ("ws_outbox_bytes_limit", {}, 4102),
    ("ws_replay_bytes", {}, 4103),
    ("ws_replay_bytes_limit", {}, 4104),
    ("ws_snapshot_channels", {}, 4105),
    ("ws_snapshot_bytes", {}, 4106),
    ("ws_traced_events_total", {}, 6001),
    ("ws_traced_events_over_limit_total", {}, 6002),
    ("ws_spans_total", {"result": "exported"}, 6003),
    ("ws_spans_total", {"result": "failed"}, 6004),
    ("ws_spans_total", {"result": "dropped"}, 6005),
    ("ws_tasks", {}, 4008),
    ("ws_cpu_usage_percent", {}, 40.09),
    ("ws_loop_busy_percent", {}, 40.12),
    ("ws_loop_turnover_percent", {}, 31.5),
    ("ws_loop_lag_max_seconds", {}, 0.75),
    ("ws_paused_percent", {}, 30),
    ("process_resident_memory_bytes", {}, 4009),
    ("ws_memory_usage_bytes", {}, 4010),
    ("ws_memory_bytes", {}, 4010),
    ("ws_memory_limit_bytes", {}, 4011),
    ("ws_draining", {}, 0),
    ("ws_log_lines_dropped_total", {}, 4002),
    ("ws_uptime_seconds", {}, 4001.5),
    ("ws_workers", {}, 5001),
    ("ws_workers_alive", {}, 5002),
    ("ws_worker_restarts_total", {}, 5003),
    ("ws_worker_rollings_total", {}, 5006),
    ("ws_config_reloads_total", {"result": "ok"}, 3017),
    ("ws_config_reloads_total", {"result": "failed"}, 3018),
    ("ws_worker_connections", {"worker": "1"}, 5004),
    ("ws_worker_connections", {"worker": "2"}, 5005),
]


@pytest.mark.parametrize(("name", "labels", "number"), EXPECTED)
def test_every_series_shows_its_own_figure(
    name: str, labels: dict[str, str], number: float
) -> None:
    assert value(BUSY, name, **labels) == number


def test_the_figures_above_are_those_of_every_series() -> None:
    checked = {name for name, _, _ in EXPECTED} | {"ws_ledger_imbalance"}
    assert {series.name for series in SERIES} <= checked


@pytest.mark.parametrize(
    ("name", "field"), [("ws_nats_connected", "is_connected"), ("ws_draining", "is_draining")]
)
def test_a_boolean_is_1_or_0(name: str, field: str) -> None:
    assert value(snapshot(**{field: True}), name) == 1
    assert value(snapshot(**{field: False}), name) == 0


def test_the_age_of_an_event_that_never_came_exceeds_all_thresholds() -> None:
    assert value(snapshot(age_seconds=None), "ws_nats_age_seconds") == math.inf


def test_an_alias_has_the_same_figure() -> None:
    by_name = families(BUSY)
    pairs = [(series.name, series.alias) for series in SERIES if series.alias]
    assert len(pairs) >= 2
    for name, alias in pairs:
        first, second = by_name[name], by_name[alias]
        assert [(s.labels, s.value) for s in first.samples] == [
            (s.labels, s.value) for s in second.samples
        ]


@pytest.mark.parametrize("name", LABELS)
def test_a_labelled_series_starts_at_0_for_every_value(name: str) -> None:
    label, values = LABELS[name]
    samples = families(snapshot())[name].samples
    assert {sample.value for sample in samples} == {0}
    assert all(sample.labels.keys() == {label} for sample in samples)
    shown = [sample.labels[label] for sample in samples]
    assert len(shown) == len(set(shown))
    assert values <= set(shown)


def test_the_labelled_series_are_those_checked_here() -> None:
    assert {series.name for series in SERIES if series.label} == LABELS.keys()


@pytest.mark.parametrize("kind", [Dropped, Shed, Invalid])
def test_counting_does_not_show_a_label_twice(kind: type[Enum]) -> None:
    counted: Counter[Any] = Counter(kind)
    ledger = Ledger(
        publications=Publications(
            invalid=counted if kind is Invalid else Counter(),
            shed=counted if kind is Shed else Counter(),
        ),
        deliveries=Deliveries(dropped=counted if kind is Dropped else Counter()),
    )
    by_name = families(snapshot(ledger=ledger))
    (name,) = [n for n, (_, v) in LABELS.items() if v == {one.value for one in kind}]
    assert [sample.value for sample in by_name[name].samples] == [1] * len(kind)


def test_reading_the_metrics_changes_no_counter() -> None:
    ledger = Ledger()
    families(snapshot(ledger=ledger))
    assert ledger == Ledger()
    assert not ledger.traffic.closed.keys()


def test_imbalances_do_not_cancel_each_other_out() -> None:
    def imbalance(**changes: Any) -> float:
        return value(snapshot(**changes), "ws_ledger_imbalance")

    assert imbalance() == 0
    lost = Ledger(publications=Publications(received=3), deliveries=Deliveries(written=2))
    assert imbalance(ledger=lost) == 5
    assert imbalance(ledger=lost, inbound_waiting=3) == 2


def test_each_scrape_has_its_own_snapshot() -> None:
    for connections in (1, 2):
        page = render(snapshot(connections=connections))
        assert f"\nws_connections_current {connections}.0\n".encode() in page


# --- workers


def test_a_server_without_workers_is_shown_as_one_worker() -> None:
    state = snapshot(workers=Workers.alone(7))
    assert value(state, "ws_workers") == value(state, "ws_workers_alive") == 1
    assert value(state, "ws_worker_connections", worker="1") == 7
    assert value(state, "ws_worker_restarts_total") == 0
    assert "process_open_fds" in families(state)


def test_workers_are_shown_singly_and_their_processes_as_one() -> None:
    workers = Workers(configured=3, alive=2, restarts=5, connections=[4, 0, 6])
    state = snapshot(workers=workers, cpu_seconds=12.5, memory_bytes=1000)
    held = families(state)["ws_worker_connections"].samples
    assert {sample.labels["worker"]: sample.value for sample in held} == {"1": 4, "2": 0, "3": 6}
    assert (value(state, "ws_workers"), value(state, "ws_workers_alive")) == (3, 2)
    assert value(state, "ws_worker_restarts_total") == 5
    assert value(state, "process_cpu_seconds_total") == 12.5
    assert value(state, "process_resident_memory_bytes") == 1000
    assert "process_open_fds" not in families(state)


# --- subscriptions per client


def subscriptions(counts: list[int]) -> dict[str, float]:
    family = families(snapshot(subscription_counts=counts))["ws_subscription_count_per_client"]
    assert family.type == "summary"
    return {sample.labels.get("quantile", sample.name): sample.value for sample in family.samples}


def test_without_clients_the_summary_is_empty_not_absent() -> None:
    assert subscriptions([]) == {
        "ws_subscription_count_per_client_count": 0,
        "ws_subscription_count_per_client_sum": 0,
        "0.5": 0,
        "0.9": 0,
        "0.99": 0,
        "1.0": 0,
    }


@given(st.lists(st.integers(1, 256), min_size=1, max_size=250))
def test_a_quantile_has_at_least_its_share_of_clients_on_either_side(counts: list[int]) -> None:
    summary = subscriptions(counts)
    assert summary["ws_subscription_count_per_client_count"] == len(counts)
    assert summary["ws_subscription_count_per_client_sum"] == sum(counts)
    assert summary["1.0"] == max(counts)
    for text, percent in (("0.5", 50), ("0.9", 90), ("0.99", 99)):
        quantile = summary[text]
        assert quantile in counts
        assert sum(count <= quantile for count in counts) * 100 >= len(counts) * percent
        assert sum(count >= quantile for count in counts) * 100 >= len(counts) * (100 - percent)


def test_quantiles_of_known_counts() -> None:
    summary = subscriptions([*range(1, 102)])
    assert [summary[q] for q in ("0.5", "0.9", "0.99", "1.0")] == [51, 91, 100, 101]
    assert [subscriptions([7])[q] for q in ("0.5", "0.9", "0.99", "1.0")] == [7] * 4


# --- histograms


def test_a_histogram_has_its_buckets_its_count_and_its_sum() -> None:
    ledger = Ledger()
    for seconds in (0.0005, 0.001, 0.002, 0.3, 7.0):
        ledger.fan_out.add(seconds)
    ledger.lag.add(0.25)
    by_name = families(snapshot(ledger=ledger))
    assert [histogram.name for histogram in HISTOGRAMS] == [
        "ws_fan_out_seconds",
        "ws_loop_lag_seconds",
    ]
    counts = {
        "ws_fan_out_seconds": [2, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5],
        "ws_loop_lag_seconds": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    }
    sums = {"ws_fan_out_seconds": 7.3035, "ws_loop_lag_seconds": 0.25}
    for histogram in HISTOGRAMS:
        name = histogram.name
        family = by_name[name]
        assert (family.type, family.documentation) == ("histogram", histogram.help)
        buckets = {
            float(sample.labels["le"]): sample.value
            for sample in family.samples
            if sample.name == f"{name}_bucket"
        }
        assert list(buckets) == [*Durations.BOUNDS, float("inf")]
        assert list(buckets.values()) == counts[name]
        plain = {s.name: s.value for s in family.samples if not s.labels}
        assert plain == {
            f"{name}_count": counts[name][-1],
            f"{name}_sum": pytest.approx(sums[name]),
        }


def test_the_running_version_is_a_series_that_is_always_1() -> None:
    old, new = Build("0.1.0", "3.11.7", "abc"), Build("0.2.0", "3.12.1", "")
    text = render(snapshot(builds=[old, new])).decode()
    lines = [line for line in text.splitlines() if line.startswith("ws_build_info{")]
    assert lines == [
        'ws_build_info{python="3.11.7",revision="abc",version="0.1.0"} 1.0',
        'ws_build_info{python="3.12.1",revision="",version="0.2.0"} 1.0',
    ]
