"""The results of a bench, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

from rich.console import Console
from rich.table import Table

from trio_odin.lab.bench.record import BenchReport, Stage, Storm, TargetReport, w_of
from trio_odin.lab.figures import NOTHING

_CLIENT_FULL_CORES = 0.9


def rows(report: BenchReport) -> Iterator[tuple[str, list[str]]]:
    """The rows of the table: a label, and a cell for each target."""
    for label, cell in _rows(report):
        yield label, [cell(target) or NOTHING for target in report.targets]


# The cell of a target; None where there is no figure.
_Cell = Callable[[TargetReport], str | None]


def _rows(report: BenchReport) -> Iterator[tuple[str, _Cell]]:
    yield "connected and subscribed", _storm(lambda s: f"{s.connected:,}")
    yield "  in", _storm(lambda s: f"{s.seconds:.2f} s")
    yield "  p99 of one", _storm(lambda s: f"{s.p99_ms:.0f} ms")
    yield "  CPU each", _storm(lambda s: _figure(s.cpu_us_each, "{:.1f} µs"))
    yield "  by worker", lambda s: " + ".join(map(str, s.connections_by_worker or []))
    yield "memory per connection, connected", lambda s: _figure(s.kib_connected, "{:.1f} KiB")
    yield "  after W", lambda s: _figure(s.kib_loaded, "{:.1f} KiB")
    yield "idle, with keepalive", lambda s: _figure(s.idle_percent, "{:.1f} %")
    yield from _stage_rows(report, "W", "W")
    for name, title in (("nats", "nats-server"), ("floor", "the floor")):
        if (base := w_of(name, report.targets)) is not None:
            yield f"  CPU against {title}", _stage("W", partial(_ratio, base))
    yield from _stage_rows(report, "stalled", "W, 1 % never read")
    yield from _stage_rows(report, "plan", "the plan's")
    for rate in sorted({step.rate for target in report.targets for step in target.steps}):
        yield f"{rate:g} events a second: p50 / p99 ms", partial(_latency_at, rate)
    if any(target.peak for target in report.targets):
        yield "most deliveries a second", _peak(lambda s: f"{s.per_second:,.0f}")
        yield "  of a full core", _peak(lambda s: _figure(s.per_core, "{:,.0f}"))
        yield "  p99", _peak(lambda s: f"{s.p99_ms:.0f} ms")
        yield "  frames a read", _peak(lambda s: f"{s.frames_per_read:.1f}")


def _stage_rows(report: BenchReport, name: str, title: str) -> Iterator[tuple[str, _Cell]]:
    if not any(target.stage(name) for target in report.targets):
        return
    yield f"{title}: CPU per delivery", _stage(name, lambda s: _figure(s.cpu_us, "{:.1f} µs"))
    yield "  user + system", _stage(name, _user_and_system)
    yield "  cores", _stage(name, lambda s: _figure(s.cores, "{:.2f}"))
    latencies = "{0.p50_ms:.0f} / {0.p99_ms:.0f} / {0.p999_ms:.0f}"
    yield "  p50 / p99 / p99.9 ms", _stage(name, latencies.format)
    alike = "{0.median_p99_ms:.0f} / {0.worst_p99_ms:.0f}"
    yield "  p99 of the median connection / worst 100", _stage(name, alike.format)
    yield "  lost / repeated", _stage(name, "{0.lost:,} / {0.repeated:,}".format)
    yield "  of the clients, cores", _stage(name, "{0.client_cores:.2f}".format)
    yield "  of others beside, cores", _stage(name, lambda s: _figure(s.others_cores, "{:.2f}"))


def _storm(cell: Callable[[Storm], str | None]) -> _Cell:
    return lambda target: None if target.storm is None else cell(target.storm)


def _stage(name: str, cell: Callable[[Stage], str | None]) -> _Cell:
    return lambda target: None if (stage := target.stage(name)) is None else cell(stage)


def _peak(cell: Callable[[Stage], str | None]) -> _Cell:
    return lambda target: None if (peak := target.peak) is None else cell(peak)


def _latency_at(rate: float, target: TargetReport) -> str | None:
    step = next((step for step in target.steps if step.rate == rate), None)
    return None if step is None else f"{step.p50_ms:,.0f} / {step.p99_ms:,.0f}"


def _figure(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _user_and_system(stage: Stage) -> str | None:
    if stage.user_us is None or stage.system_us is None:
        return None
    return f"{stage.user_us:.1f} + {stage.system_us:.1f}"


def _ratio(base: Stage | None, stage: Stage) -> str | None:
    if base is None or not base.cpu_us or not stage.cpu_us:
        return None
    return f"{stage.cpu_us / base.cpu_us:.2f}"


RATES_HEAD = (
    *("server", "users", "an update", "events a second", "CPU", "writes a second"),
    *("deliveries a second", "bytes a delivery", "p50 / p99", "skipped", "unexplained"),
)
COMPRESSION_HEAD = (
    *("server", "users", "an update", "events a second", "encoding", "bytes a delivery"),
    "of a plain event",
    *("CPU a delivery", "CPU of plain", "memory a connection", "over plain", "unexplained"),
)
TLS_HEAD = (
    *("server", "connections", "bytes a delivery", "CPU a delivery", "of plain"),
    *("CPU a connect", "memory a connection", "over plain", "p50 / p99", "unexplained"),
)
USERS = {
    "mix": "80 % home page, 20 % one token",
    "home": "home page",
    "W": "random channels (W)",
}
"""Names of the workloads, for people."""


def rates_rows(report: BenchReport) -> Iterator[tuple[str, ...]]:
    """A row of the columns `RATES_HEAD` for each load of the stage of rates."""
    for target in report.targets:
        for stage in target.named("rates"):
            yield (
                *(target.title, USERS[stage.users], _update(stage), f"{stage.rate:,g}"),
                _figure(stage.cores, "{:.2f} cores") or NOTHING,
                *(f"{stage.frames_per_second:,.0f}", f"{stage.per_second:,.0f}"),
                *(f"{stage.delivery_wire_bytes:,.0f}", _latency(stage), f"{stage.skipped:,}"),
                f"{unexplained(stage):,}",
            )


def tls_rows(report: BenchReport) -> Iterator[tuple[str, ...]]:
    """A row of the columns `TLS_HEAD` for each load of the stage of TLS, which begins without."""
    for target in report.targets:
        plain: Stage | None = None
        for stage in target.named("tls"):
            plain = plain if stage.is_tls else stage
            yield (
                *(target.title, "TLS" if stage.is_tls else "plain", f"{stage.bytes_on_wire:,.0f}"),
                _figure(stage.cpu_us, "{:.1f} µs") or NOTHING,
                _times(stage, plain, lambda s: s.cpu_us),
                _figure(stage.connect_us, "{:,.0f} µs") or NOTHING,
                _figure(stage.connection_kib, "{:.1f} KiB") or NOTHING,
                *(_added_kib(stage, plain), _latency(stage), f"{unexplained(stage):,}"),
            )


def compression_rows(report: BenchReport) -> Iterator[tuple[str, ...]]:
    """A row of the columns `COMPRESSION_HEAD` for each load of the stage of compression.

    Bytes are compared with those of single events in plain text, as batches save some themselves;
    CPU and memory with plain text of the same users.
    """
    for target in report.targets:
        plain: Stage | None = None
        single: Stage | None = None
        for stage in target.named("compression"):
            if stage.encoding == "plain":
                plain = stage
                single = stage if not stage.every_ms else single
            yield (
                *(target.title, USERS[stage.users], _update(stage), f"{stage.rate:,g}"),
                stage.encoding,
                f"{stage.delivery_wire_bytes:,.0f}",
                _times(stage, single, lambda s: s.delivery_wire_bytes),
                _figure(stage.cpu_us, "{:.1f} µs") or NOTHING,
                _times(stage, plain, lambda s: s.cpu_us),
                _figure(stage.connection_kib, "{:.1f} KiB") or NOTHING,
                _added_kib(stage, plain),
                f"{unexplained(stage):,}",
            )


def unexplained(stage: Stage) -> int:
    """Deliveries and numbers that are missing without a word, or came twice."""
    return stage.lost + stage.gaps + stage.unexplained + stage.repeated + stage.foreign


def _update(stage: Stage) -> str:
    return f"every {stage.every_ms:,} ms" if stage.every_ms else "of every event"


def _latency(stage: Stage) -> str:
    return f"{stage.p50_ms:,.0f} / {stage.p99_ms:,.0f} ms"


def _times(stage: Stage, plain: Stage | None, read: Callable[[Stage], float | None]) -> str:
    value, base = read(stage), None if plain is None else read(plain)
    return NOTHING if value is None or not base else f"{value / base:.2f} ×"


def _added_kib(stage: Stage, plain: Stage | None) -> str:
    if plain is None or plain.connection_kib is None or stage.connection_kib is None:
        return NOTHING
    return f"{stage.connection_kib - plain.connection_kib:+.2f} KiB"


SUMMARY_HEAD = ("CPU per delivery", "memory per connection", "p99", "peak of a full core")


def summary(runs: Sequence[BenchReport], name: str) -> tuple[str, ...]:
    """The figures of `SUMMARY_HEAD` for one target, each the median of all runs.

    With several runs the lowest and the highest follow in parentheses: on a shared machine a
    single figure, of latency above all, says little. Runs in which the target failed are left out.
    """
    targets = [one for run in runs for one in run.targets if one.name == name]
    w = [stage for one in targets if (stage := one.stage("W")) is not None]
    peaks = [one.peak.per_core for one in targets if one.peak is not None]
    return (
        _spread([stage.cpu_us for stage in w], "{:.1f}", "µs"),
        _spread([one.kib_loaded for one in targets], "{:.1f}", "KiB"),
        _spread([stage.p99_ms for stage in w], "{:,.0f}", "ms"),
        _spread(peaks, "{:,.0f}", "deliveries/s"),
    )


def _spread(values: Sequence[float | None], form: str, unit: str) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return NOTHING
    middle, lowest, highest = map(form.format, (median(known), known[0], known[-1]))
    return f"{middle} {unit}" + (f" ({lowest}–{highest})" if lowest != highest else "")


def latencies_by_rate(runs: Sequence[BenchReport]) -> list[tuple[float, list[str]]]:
    """For each rate of W and of the ramp: p50 / p99 in ms of each target, run by run."""
    every = [step for run in runs for target in run.targets for step in target.steps]
    return [
        (rate, [", ".join(_latencies(runs, one.name, rate)) or NOTHING for one in runs[0].targets])
        for rate in sorted({step.rate for step in every})
    ]


def _latencies(runs: Sequence[BenchReport], name: str, rate: float) -> Iterator[str]:
    for target in (one for run in runs for one in run.targets if one.name == name):
        for step in target.steps:
            if step.rate == rate:
                yield f"{step.p50_ms:,.0f} / {step.p99_ms:,.0f}"


def beside(runs: Sequence[BenchReport]) -> str:
    """A sentence about the machine's other work; empty if no run has recorded it."""
    loads = [run.provenance.load_average for run in runs]
    others = [
        stage.others_cores
        for run in runs
        for target in run.targets
        if (stage := target.stage("W")) is not None and stage.others_cores is not None
    ]
    if loads[0] is None or not others:
        return ""
    cores = runs[0].provenance.machine.cores
    return (
        f"The load average was {loads[0]:.2f} before the first run; other programs used "
        f"{min(others):.2f} to {max(others):.2f} of the {cores} cores meanwhile."
    )


def render(report: BenchReport, console: Console) -> None:
    """Print the table and the problems."""
    load = f"{report.connections:,} connections, {report.rate:g} events a second"
    table = Table(title=f"{load}; network: {report.network}")
    table.add_column("", no_wrap=True)
    for target in report.targets:
        table.add_column(target.title, justify="right")
    for label, cells in rows(report):
        table.add_row(label, *cells)
    if not report.targets or any(target.is_held for target in report.targets):
        console.print(table)
    _render_rows("Rates", RATES_HEAD, list(rates_rows(report)), console)
    _render_rows("Compression", COMPRESSION_HEAD, list(compression_rows(report)), console)
    _render_rows("TLS", TLS_HEAD, list(tls_rows(report)), console)
    for target in report.targets:
        for sentence in amiss(target):
            console.print(f"{target.title}: {sentence}", style="red")


def _render_rows(
    title: str, head: Sequence[str], cells: Sequence[Sequence[str]], console: Console
) -> None:
    if not cells:
        return
    table = Table(title=title)
    for column in head:
        table.add_column(column, justify="right")
    for row in cells:
        table.add_row(*row)
    console.print(table)


def render_summary(runs: Sequence[BenchReport], console: Console) -> None:
    """Print the medians of several runs with their spread, and the machine's other work."""
    table = Table(title=f"Median (lowest–highest) of {len(runs)} runs")
    for column in ("", *SUMMARY_HEAD):
        table.add_column(column, justify="right" if column else "left")
    for target in runs[0].targets:
        table.add_row(target.title, *summary(runs, target.name))
    console.print(table)
    console.print(beside(runs))


def amiss(target: TargetReport) -> Iterator[str]:
    """The problems, a sentence each."""
    if target.failure:
        yield target.failure
    if target.storm is not None:
        for why, count in target.storm.failures.items():
            yield f"{count:,} not connected: {why}"
    for stage in target.stages:
        where = f"in {stage.title} at {stage.rate:g} events a second"
        if stage.disconnects:
            yield f"{stage.disconnects:,} cut off {where}"
        if not stage.is_complete:
            counts = ("lost", "repeated", "foreign", "gaps", "unexplained")
            told = ", ".join(f"{name} {getattr(stage, name):,}" for name in counts)
            yield f"not complete {where}: {told}"
        if stage.busiest_client_cores > _CLIENT_FULL_CORES:
            yield f"the clients were full {where}: the figures are theirs as well"
        if stage.published_late_ms > max(10.0, stage.p99_ms / 10):
            yield f"the publisher was up to {stage.published_late_ms:.0f} ms late {where}"
