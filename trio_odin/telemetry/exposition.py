"""`/metrics`: a snapshot in the Prometheus text format."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from trio_odin.ledger.snapshot import Snapshot
from trio_odin.overload.process import open_files
from trio_odin.telemetry.metrics import (
    BUILD_HELP,
    BUILD_LABELS,
    BUILD_NAME,
    HISTOGRAMS,
    SERIES,
    SUBSCRIPTIONS_HELP,
    SUBSCRIPTIONS_NAME,
    Series,
    label_of,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUANTILES = (0.5, 0.9, 0.99, 1.0)


def render(snapshot: Snapshot) -> bytes:
    """Return the text for a scrape: a snapshot, and metrics of the processes (`process_…`)."""
    registry = CollectorRegistry()
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        # An empty description keeps the registry from collecting once just to learn the names.
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        for series in SERIES:
            yield _family(series, series.name, snapshot)
            if series.alias:
                yield _family(series, series.alias, snapshot)
        yield _builds(snapshot)
        yield _subscriptions(snapshot)
        for histogram in HISTOGRAMS:
            durations = histogram.durations(snapshot.ledger)
            yield HistogramMetricFamily(
                histogram.name,
                histogram.help,
                buckets=list(durations.cumulative()),
                sum_value=durations.total_seconds,
            )
        yield from _processes(snapshot)
        if snapshot.workers.configured == 1:
            yield from _files()


def _files() -> Iterator[Metric]:
    # As in prometheus_client's own collector, which would list all files at each scrape.
    if (files := open_files()) is not None:
        yield GaugeMetricFamily("process_open_fds", "Open files", value=files)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield GaugeMetricFamily("process_max_fds", "Limit of open files", value=most)


def _processes(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield all processes of a server as one, since each scrape may reach another worker."""
    yield CounterMetricFamily(
        "process_cpu_seconds_total", "CPU used by all processes", value=snapshot.process.cpu_seconds
    )
    yield GaugeMetricFamily(
        "process_resident_memory_bytes",
        "Resident memory of all processes",
        value=snapshot.process.memory_bytes,
    )
    yield GaugeMetricFamily(
        "process_start_time_seconds",
        "Start of the server, in seconds since 1970",
        value=round(time.time() - snapshot.uptime_seconds),
    )


def _family(series: Series, name: str, snapshot: Snapshot) -> Metric:
    family = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
    value = series.value(snapshot)
    if not isinstance(value, Mapping):
        return family(name, series.help, value=float(value))
    by_label = dict.fromkeys(series.values, 0) | {label_of(k): n for k, n in value.items()}
    metric = family(name, series.help, labels=[series.label or ""])
    for label, number in by_label.items():
        metric.add_metric([label], number)
    return metric


def _builds(snapshot: Snapshot) -> Metric:
    metric = GaugeMetricFamily(BUILD_NAME, BUILD_HELP, labels=BUILD_LABELS)
    for build in snapshot.process.builds:
        metric.add_metric([build.version, build.python, build.revision], 1)
    return metric


def _subscriptions(snapshot: Snapshot) -> Metric:
    """Return a summary with exact quantiles, sorted only for a scrape."""
    counts = sorted(snapshot.fan_out.subscription_counts)
    metric = SummaryMetricFamily(
        SUBSCRIPTIONS_NAME, SUBSCRIPTIONS_HELP, count_value=len(counts), sum_value=sum(counts)
    )
    for quantile in _QUANTILES:
        value = counts[min(int(quantile * len(counts)), len(counts) - 1)] if counts else 0
        metric.add_sample(SUBSCRIPTIONS_NAME, {"quantile": str(quantile)}, value)
    return metric
