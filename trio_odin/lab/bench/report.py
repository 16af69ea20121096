"""What a bench found, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TypeAlias

import attrs
import msgspec
from rich.console import Console
from rich.table import Table

from trio_odin.lab.load.result import LoadResult
from trio_odin.lab.provenance import Provenance

KIB = 1024


@attrs.frozen(kw_only=True)
class Storm:
    """All connect as fast as the server lets them, 200 at a time.

    Connect, handshake, subscribe and acknowledgement. Times of one are from its own connect.
    """

    connected: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us_each: float | None
    failures: dict[str, int]


@attrs.frozen(kw_only=True)
class Stage:
    """Some seconds of publishing.

    Args:
        rate: publications a second.
        expected, received: deliveries; `lost` and `repeated` tell the difference apart.
        gaps: missing numbers of `seq`, where there is one.
        user_us, system_us: CPU of the subject per delivery; None if it runs elsewhere.
        cores: CPU of the subject by time.
        p50_ms, p99_ms, p999_ms: from the moment that was planned for the publication.
        frames_per_read: above 1 where the server joins frames.
        client_us: CPU of the clients per delivery.
        client_cores: CPU of the clients by time; `busiest_client_cores` of the busiest process.
        others_cores: CPU of the machine by time that neither the bench nor what it started used.
        published_late_ms: how late the latest publication was, which is in the latencies.
    """

    name: str
    rate: float
    seconds: float
    expected: int
    received: int
    lost: int
    repeated: int
    foreign: int
    gaps: int
    disconnects: int
    user_us: float | None
    system_us: float | None
    cores: float | None
    p50_ms: float
    p99_ms: float
    p999_ms: float
    frames_per_read: float
    client_us: float
    client_cores: float
    busiest_client_cores: float = 0.0
    others_cores: float | None = None
    published_late_ms: float = 0.0

    @classmethod
    def of(cls, name: str, load: LoadResult, published_late_ms: float) -> Stage:
        """What a load found in its hold."""
        server, latency = load.server, load.latency
        user_us, cpu_us = server.delivery_user_us, server.delivery_us
        return cls(
            name=name,
            rate=load.rate or 0.0,
            seconds=load.arrival_seconds,
            expected=load.expected,
            received=load.delivered,
            lost=load.lost,
            repeated=load.repeated,
            foreign=load.foreign,
            gaps=load.gaps,
            disconnects=sum(load.disconnects.values()),
            user_us=user_us,
            system_us=None if cpu_us is None or user_us is None else cpu_us - user_us,
            cores=server.cores,
            p50_ms=latency.p50_ms if latency else 0.0,
            p99_ms=latency.p99_ms if latency else 0.0,
            p999_ms=latency.p999_ms if latency else 0.0,
            frames_per_read=load.frames_per_read,
            client_us=1e6 * load.client_cores / (load.received_per_second or math.inf),
            client_cores=load.client_cores,
            busiest_client_cores=load.busiest_client_cores,
            others_cores=server.others_cores and max(0.0, server.others_cores),  # ticks of 10 ms
            published_late_ms=published_late_ms,
        )

    @property
    def cpu_us(self) -> float | None:
        """User and system CPU per delivery."""
        if self.user_us is None or self.system_us is None:
            return None
        return self.user_us + self.system_us

    @property
    def per_second(self) -> float:
        """Deliveries a second."""
        return self.received / self.seconds

    @property
    def per_core(self) -> float | None:
        """Deliveries a second that a full core would make at this price."""
        return 1e6 / self.cpu_us if self.cpu_us else None

    @property
    def is_complete(self) -> bool:
        """Whether every delivery was made, once."""
        return not (self.lost or self.repeated or self.foreign or self.gaps)


@attrs.frozen(kw_only=True)
class SubjectReport:
    """What was found of one subject; `failure` says why the rest is missing.

    `rss_base_bytes` is before the storm, `kib_connected` and `kib_loaded` are per connection after
    it and after workload W. `connections_by_worker` shows the spread.
    """

    name: str
    title: str
    is_ours: bool = False
    storm: Storm | None = None
    rss_base_bytes: int | None = None
    kib_connected: float | None = None
    kib_loaded: float | None = None
    idle_percent: float | None = None
    connections_by_worker: list[int] | None = None
    stages: list[Stage] = attrs.field(factory=list)
    failure: str | None = None

    def with_connections(self, load: LoadResult, spread: Sequence[int]) -> SubjectReport:
        """With what the first load found of connections and memory."""
        server, times = load.server, load.connect_ms
        base, connected = server.base_mib, server.connected_mib
        return attrs.evolve(
            self,
            storm=Storm(
                connected=load.connected,
                seconds=load.connect_seconds,
                p50_ms=times.p50_ms if times else 0.0,
                p99_ms=times.p99_ms if times else 0.0,
                cpu_us_each=server.connect_us,
                failures=why_not(load),
            ),
            rss_base_bytes=None if base is None else round(base * KIB * KIB),
            kib_connected=None
            if base is None or connected is None
            else (connected - base) * KIB / load.connected,
            kib_loaded=server.connection_kib,
            idle_percent=None if server.idle_cores is None else server.idle_cores * 100,
            connections_by_worker=list(spread) or None,
        )

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, the last one if there are several."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)

    @property
    def peak(self) -> Stage | None:
        """The step of the ramp that delivered most a second, of those that lost nothing."""
        ramp = [stage for stage in self.stages if stage.name == "ramp" and stage.is_complete]
        return max(ramp, key=lambda stage: stage.per_second, default=None)

    @property
    def steps(self) -> list[Stage]:
        """W, and the steps of the ramp above it."""
        return [stage for stage in self.stages if stage.name in {"W", "ramp"}]


@attrs.frozen(kw_only=True)
class BenchReport:
    """One run. `versions` are those of what was compared, and of what it is made of."""

    provenance: Provenance
    connections: int
    channels_per_connection: int
    tokens: int
    payload_bytes: int
    rate: float
    hold_seconds: float
    subjects: list[SubjectReport]
    seed: int = 0
    versions: dict[str, str] = attrs.field(factory=dict)

    @property
    def is_perfect(self) -> bool:
        """Whether trio-odin connected everybody, and lost and doubled nothing below the ramp.

        Others are not held to it: that they lose is a figure of theirs.
        """
        ours = [subject for subject in self.subjects if subject.is_ours]
        return all(
            subject.failure is None
            and subject.storm is not None
            and subject.storm.connected == self.connections
            and subject.stage("W") is not None
            and all(
                stage.is_complete and not stage.disconnects
                for stage in subject.stages
                if stage.name != "ramp"
            )
            for subject in ours
        )


def why_not(load: LoadResult) -> dict[str, int]:
    """How many connections did not come about, by reason."""
    return load.rejections | load.failures


def as_json(runs: Sequence[BenchReport]) -> bytes:
    """A list of the runs, indented, with the names of the attributes."""
    return msgspec.json.format(msgspec.json.encode(runs), indent=1)


def w_of(name: str, subjects: Sequence[SubjectReport]) -> Stage | None:
    """Workload W of the subject of that name."""
    return next((subject.stage("W") for subject in subjects if subject.name == name), None)


_NOTHING = "–"
_CLIENT_FULL_CORES = 0.9
_Row: TypeAlias = tuple[str, list[str]]


def rows(report: BenchReport) -> Iterator[_Row]:
    """The table: a label, and a cell for each subject."""
    subjects = report.subjects
    yield from _storm_rows(subjects)
    yield "memory a connection, connected", [_kib(s.kib_connected) for s in subjects]
    yield "  after W", [_kib(s.kib_loaded) for s in subjects]
    yield "idle, with keepalive", [_percent(s.idle_percent) for s in subjects]
    yield from _stage_rows("W", "W", subjects)
    yield from _ratio_rows(subjects)
    yield from _stage_rows("stalled", "W, 1 % never read", subjects)
    yield from _stage_rows("plan", "the plan's", subjects)
    yield from _peak_rows(subjects)


def _storm_rows(subjects: list[SubjectReport]) -> Iterator[_Row]:
    def row(label: str, cell: Callable[[Storm], str]) -> _Row:
        return label, [_NOTHING if s.storm is None else cell(s.storm) for s in subjects]

    yield row("connected and subscribed", lambda s: f"{s.connected:,}")
    yield row("  in", lambda s: f"{s.seconds:.2f} s")
    yield row("  p99 of one", lambda s: f"{s.p99_ms:.0f} ms")
    yield row("  CPU each", lambda s: _micros(s.cpu_us_each))
    spread = [s.connections_by_worker or [] for s in subjects]
    yield "  by worker", [" + ".join(map(str, parts)) or _NOTHING for parts in spread]


def _stage_rows(name: str, title: str, subjects: list[SubjectReport]) -> Iterator[_Row]:
    def row(label: str, cell: Callable[[Stage], str]) -> _Row:
        stages = [subject.stage(name) for subject in subjects]
        return label, [_NOTHING if stage is None else cell(stage) for stage in stages]

    yield row(f"{title}: CPU a delivery", lambda s: _micros(s.cpu_us))
    yield row("  user + system", _user_and_system)
    yield row("  cores", lambda s: _cores(s.cores))
    yield row("  p50 / p99 / p99.9 ms", _latencies)
    yield row("  lost / repeated", lambda s: f"{s.lost:,} / {s.repeated:,}")
    yield row("  of the clients, cores", lambda s: f"{s.client_cores:.2f}")
    yield row("  of others beside, cores", lambda s: _cores(s.others_cores))


def _ratio_rows(subjects: list[SubjectReport]) -> Iterator[_Row]:
    for name, title in (("nats", "nats-server"), ("floor", "the floor")):
        base = w_of(name, subjects)
        yield f"  CPU against {title}", [_ratio(s.stage("W"), base) for s in subjects]


def _peak_rows(subjects: list[SubjectReport]) -> Iterator[_Row]:
    def row(label: str, cell: Callable[[Stage], str]) -> _Row:
        return label, [_NOTHING if s.peak is None else cell(s.peak) for s in subjects]

    yield row("most deliveries a second", lambda s: f"{s.per_second:,.0f}")
    yield row("  of a full core", lambda s: f"{s.per_core:,.0f}" if s.per_core else _NOTHING)
    yield row("  p99", lambda s: f"{s.p99_ms:.0f} ms")
    yield row("  frames a read", lambda s: f"{s.frames_per_read:.1f}")


def _micros(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} µs"


def _cores(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _kib(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} KiB"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} %"


def _user_and_system(stage: Stage) -> str:
    if stage.user_us is None or stage.system_us is None:
        return _NOTHING
    return f"{stage.user_us:.1f} + {stage.system_us:.1f}"


def _latencies(stage: Stage) -> str:
    return f"{stage.p50_ms:.0f} / {stage.p99_ms:.0f} / {stage.p999_ms:.0f}"


def _ratio(stage: Stage | None, base: Stage | None) -> str:
    if stage is None or base is None or not base.cpu_us or not stage.cpu_us:
        return _NOTHING
    return f"{stage.cpu_us / base.cpu_us:.2f}"


SUMMARY_HEAD = ("CPU a delivery", "memory a connection", "p99", "at most, a full core")


def summary(runs: Sequence[BenchReport], name: str) -> tuple[str, ...]:
    """Of one subject: the figures of `SUMMARY_HEAD`, each the median of all runs.

    With several runs the lowest and the highest stand behind it, in parentheses: on a machine that
    others use too a single figure, of latency above all, says little. A run in which the subject
    failed is left out.
    """
    subjects = [one for run in runs for one in run.subjects if one.name == name]
    w = [stage for one in subjects if (stage := one.stage("W")) is not None]
    peaks = [one.peak.per_core for one in subjects if one.peak is not None]
    return (
        _spread([stage.cpu_us for stage in w], "{:.1f}", "µs"),
        _spread([one.kib_loaded for one in subjects], "{:.1f}", "KiB"),
        _spread([stage.p99_ms for stage in w], "{:,.0f}", "ms"),
        _spread(peaks, "{:,.0f}", "deliveries/s"),
    )


def _spread(values: Sequence[float | None], form: str, unit: str) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return _NOTHING
    middle, lowest, highest = map(form.format, (median(known), known[0], known[-1]))
    return f"{middle} {unit}" + (f" ({lowest}–{highest})" if lowest != highest else "")


def beside(runs: Sequence[BenchReport]) -> str:
    """What else the machine did, as a sentence; nothing if no run has recorded it."""
    loads = [run.provenance.load_average for run in runs]
    others = [
        stage.others_cores
        for run in runs
        for subject in run.subjects
        if (stage := subject.stage("W")) is not None and stage.others_cores is not None
    ]
    if loads[0] is None or not others:
        return ""
    cores = runs[0].provenance.machine.cores
    return (
        f"The load average was {loads[0]:.2f} before the first run; other programs used "
        f"{min(others):.2f} to {max(others):.2f} of the {cores} cores meanwhile."
    )


def render(report: BenchReport, console: Console) -> None:
    """Print the table and what is amiss."""
    table = Table(title=f"{report.connections:,} connections, {report.rate:g} events a second")
    table.add_column("", no_wrap=True)
    for subject in report.subjects:
        table.add_column(subject.title, justify="right")
    for label, cells in rows(report):
        table.add_row(label, *cells)
    console.print(table)
    for subject in report.subjects:
        for sentence in amiss(subject):
            console.print(f"{subject.title}: {sentence}", style="red")


def render_summary(runs: Sequence[BenchReport], console: Console) -> None:
    """Print the medians of several runs with their spread, and what ran beside."""
    table = Table(title=f"Median (lowest–highest) of {len(runs)} runs")
    for column in ("", *SUMMARY_HEAD):
        table.add_column(column, justify="right" if column else "left")
    for subject in runs[0].subjects:
        table.add_row(subject.title, *summary(runs, subject.name))
    console.print(table)
    console.print(beside(runs))


def amiss(subject: SubjectReport) -> Iterator[str]:
    """What went wrong, a sentence each."""
    if subject.failure:
        yield subject.failure
    if subject.storm is not None:
        for why, count in subject.storm.failures.items():
            yield f"{count:,} not connected: {why}"
    for stage in subject.stages:
        where = f"in {stage.name} at {stage.rate:g} events a second"
        if stage.disconnects:
            yield f"{stage.disconnects:,} cut off {where}"
        if not stage.is_complete:
            counts = ("lost", "repeated", "foreign", "gaps")
            told = ", ".join(f"{name} {getattr(stage, name):,}" for name in counts)
            yield f"not complete {where}: {told}"
        if stage.busiest_client_cores > _CLIENT_FULL_CORES:
            yield f"the clients were full {where}: the figures are theirs as well"
        if stage.published_late_ms > max(10.0, stage.p99_ms / 10):
            yield f"the publisher was up to {stage.published_late_ms:.0f} ms late {where}"
