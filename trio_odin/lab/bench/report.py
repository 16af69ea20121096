"""What a bench found, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
import msgspec
from rich.console import Console
from rich.table import Table

from trio_odin.lab.machine import Machine

_TENTHS_PER_MS = 10
KIB = 1024


@attrs.frozen(kw_only=True)
class Storm:
    """All connections at once: connect, handshake, subscribe, acknowledgement."""

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
        client_cores: CPU of the clients by time.
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

    @property
    def cpu_us(self) -> float | None:
        """User and system CPU per delivery."""
        if self.user_us is None or self.system_us is None:
            return None
        return self.user_us + self.system_us

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
    storm: Storm | None = None
    rss_base_bytes: int | None = None
    kib_connected: float | None = None
    kib_loaded: float | None = None
    idle_percent: float | None = None
    connections_by_worker: list[int] | None = None
    stages: list[Stage] = attrs.field(factory=list)
    failure: str | None = None

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, the last one if there are several."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)

    @property
    def peak(self) -> Stage | None:
        """The stage that delivered most a second."""
        return max(self.stages, key=lambda stage: stage.received / stage.seconds, default=None)


@attrs.frozen(kw_only=True)
class BenchReport:
    """All of it."""

    date: str
    machine: Machine
    connections: int
    channels_per_connection: int
    tokens: int
    payload_bytes: int
    rate: float
    hold_seconds: float
    subjects: list[SubjectReport]

    @property
    def is_perfect(self) -> bool:
        """Whether no subject failed and none lost or doubled anything in the stages below the ramp.

        Peers are not held to it: that they lose is a figure of theirs.
        """
        ours = [subject for subject in self.subjects if subject.name.startswith("odin")]
        return all(
            subject.failure is None
            and all(stage.is_complete for stage in subject.stages if stage.name != "ramp")
            for subject in ours
        )

    def as_json(self) -> bytes:
        """Indented, with the names of the attributes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def percentile(buckets: Mapping[int, int], fraction: float) -> float:
    """The smallest latency in ms that at least `fraction` of all do not exceed; 0 if there is none.

    `buckets` are tenths of a millisecond with their counts.
    """
    rank = fraction * sum(buckets.values())
    seen = 0
    for tenths in sorted(buckets):
        seen += buckets[tenths]
        if seen >= rank:
            return tenths / _TENTHS_PER_MS
    return 0.0


def ranked(values: Sequence[float], fraction: float) -> float:
    """The same of a sequence of values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else 0.0


def rows(report: BenchReport) -> Iterator[tuple[str, list[str]]]:
    """The table: a label and a cell for each subject."""
    subjects = report.subjects
    floor = next((s.stage("W") for s in subjects if s.name == "floor"), None)
    nats = next((s.stage("W") for s in subjects if s.name == "nats"), None)

    def stage_row(label: str, stage: str, cell):  # type: ignore[no-untyped-def]
        found = [subject.stage(stage) for subject in subjects]
        return label, ["–" if one is None else cell(one) for one in found]

    def storm_row(label: str, cell):  # type: ignore[no-untyped-def]
        return label, ["–" if s.storm is None else cell(s.storm) for s in subjects]

    yield storm_row("connected and subscribed", lambda s: f"{s.connected:,}")
    yield storm_row("in", lambda s: f"{s.seconds:.2f} s")
    yield storm_row("  p99 of one", lambda s: f"{s.p99_ms:.0f} ms")
    yield storm_row("  CPU each", lambda s: _micros(s.cpu_us_each))
    yield "memory a connection, connected", [_kib(s.kib_connected) for s in subjects]
    yield "  after W", [_kib(s.kib_loaded) for s in subjects]
    yield "idle, with keepalive", [_percent(s.idle_percent) for s in subjects]
    for name in ("W", "plan", "stalled"):
        yield from _stage_rows(name, stage_row, nats, floor)
    yield "most deliveries a second", [_peak(s, lambda p: p.received / p.seconds) for s in subjects]
    yield "  deliveries a second and core", [_peak(s, lambda p: p.per_core) for s in subjects]
    yield "  with p99", [f"{s.peak.p99_ms:.0f} ms" if s.peak else "–" for s in subjects]
    yield "  frames a write", [f"{s.peak.frames_per_read:.1f}" if s.peak else "–" for s in subjects]


def _stage_rows(name, stage_row, nats, floor):  # type: ignore[no-untyped-def]
    yield stage_row(f"{name}: CPU a delivery", name, lambda s: _micros(s.cpu_us))
    yield stage_row("  user + system", name, _user_and_system)
    if name == "W":
        yield stage_row("  against nats-server", name, lambda s: _ratio(s, nats))
        yield stage_row("  against the floor", name, lambda s: _ratio(s, floor))
    yield stage_row("  cores", name, lambda s: "–" if s.cores is None else f"{s.cores:.2f}")
    yield stage_row(
        "  p50 / p99 / p99.9 ms",
        name,
        lambda s: f"{s.p50_ms:.0f} / {s.p99_ms:.0f} / {s.p999_ms:.0f}",
    )
    yield stage_row("  lost / repeated", name, lambda s: f"{s.lost:,} / {s.repeated:,}")


def _micros(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} µs"


def _kib(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} KiB"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _user_and_system(stage: Stage) -> str:
    if stage.user_us is None:
        return "–"
    return f"{stage.user_us:.1f} + {stage.system_us:.1f}"


def _ratio(stage: Stage, base: Stage | None) -> str:
    if base is None or not base.cpu_us or not stage.cpu_us:
        return "–"
    return f"{stage.cpu_us / base.cpu_us:.2f}"


def _peak(subject: SubjectReport, figure) -> str:  # type: ignore[no-untyped-def]
    value = figure(subject.peak) if subject.peak else None
    return "–" if value is None else f"{value:,.0f}"


def render(report: BenchReport, console: Console) -> None:
    """Print the table and what is amiss."""
    table = Table(title=f"{report.connections:,} connections, {report.rate:g} events a second")
    table.add_column("")
    for subject in report.subjects:
        table.add_column(subject.title, justify="right")
    for label, cells in rows(report):
        table.add_row(label, *cells)
    console.print(table)
    for subject in report.subjects:
        if subject.failure:
            console.print(f"{subject.title}: {subject.failure}", style="red")
