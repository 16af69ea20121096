"""What is drawn of a run: a row of panels for each stage, and cost against size over all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from trio_odin.lab.figures import count, figure
from trio_odin.lab.load.result import LoadResult, Sample
from trio_odin.lab.report.chart import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    SOFT,
    Band,
    Dot,
    Level,
    Line,
    Panel,
    Scatter,
)
from trio_odin.lab.report.summary import PLAN_CONNECTION_MIB, PLAN_WRITE_US
from trio_odin.lab.verdict import HostSample, LabResult, StageResult

_Read: TypeAlias = Callable[[Sample], float | None]
# What a process of the server can use: its Python code runs on one core at a time.
_ONE_CORE = Level(name="one core", value=1.0, colour=SOFT)
_MIB_PER = {"MiB": 1.0, "GiB": 1024.0}


@attrs.frozen
class Limits:
    """The server's, as numbers; None where the run does not say or says it in other words."""

    cores: float | None = None
    memory_mib: float | None = None

    @property
    def cpu_levels(self) -> list[Level]:
        """What is drawn of it, of all processes together."""
        return _limit(self.cores, "cores")

    @property
    def memory_levels(self) -> list[Level]:
        """What is drawn of it."""
        return _limit(self.memory_mib, "MiB")

    @classmethod
    def of(cls, limits: Mapping[str, str]) -> Limits:
        """Read "1.9 cores" and "7,168 MiB"."""
        cores, memory = (limits.get(name, "") for name in ("CPU", "memory"))
        found = re.match(r"([\d,]+(?:\.\d+)?) cores?\b", cores)
        size = re.match(r"([\d,]+(?:\.\d+)?) (MiB|GiB)\b", memory)
        return cls(
            _number(found[1]) if found else None,
            _number(size[1]) * _MIB_PER[size[2]] if size else None,
        )


def _limit(value: float | None, unit: str) -> list[Level]:
    return [] if value is None else [Level(name=f"limit {value:,g} {unit}", value=value)]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def phases(series: Sequence[Sample]) -> list[Band]:
    """The runs of samples of one phase; a sample tells of the time before it."""
    bands: list[Band] = []
    before = 0.0
    for sample in series:
        if bands and bands[-1].name == sample.phase:
            bands[-1] = attrs.evolve(bands[-1], end=sample.at)
        else:
            bands.append(Band(name=sample.phase, start=before, end=sample.at))
        before = sample.at
    return bands


def panels(stage: StageResult, limits: Limits) -> list[Panel]:
    """What the clients saw, then what it cost; nothing of what was not sampled at all."""
    drawn: list[Panel] = []
    if stage.load is not None and stage.load.series:
        drawn += _client_panels(stage.load.series)
        drawn += _server_panels(stage.load.series, limits)
    if stage.host:
        drawn += _host_panels(stage, limits)
    return drawn


def _line(series: Sequence[Sample], read: _Read, name: str, colour: str = BLUE) -> Line:
    return Line(name=name, points=[(s.at, read(s)) for s in series], colour=colour)


def _client_panels(series: Sequence[Sample]) -> Iterator[Panel]:
    bands = phases(series)
    yield Panel(
        title="Connections",
        unit="subscribed",
        lines=[_line(series, lambda s: s.connections, "connections")],
        bands=bands,
        is_whole=True,
    )
    yield Panel(
        title="Deliveries",
        unit="a second",
        lines=[_line(series, lambda s: s.received_per_second, "deliveries")],
        bands=bands,
        is_whole=True,
    )
    yield Panel(
        title="Latency",
        unit="ms, logarithmic",
        lines=[
            _line(series, lambda s: s.max_ms, "max", GREY),
            _line(series, lambda s: s.p99_ms, "p99", ORANGE),
            _line(series, lambda s: s.p50_ms, "p50"),
        ],
        bands=bands,
        is_log=True,
    )


def _server_panels(series: Sequence[Sample], limits: Limits) -> Iterator[Panel]:
    bands = phases(series)
    yield Panel(
        title="Clients' CPU",
        unit="cores",
        lines=[_line(series, lambda s: s.client_cores, "clients", PURPLE)],
        bands=bands,
    )
    yield Panel(
        title="Server CPU",
        unit="cores",
        lines=[_line(series, lambda s: s.server_cores, "server")],
        bands=bands,
        levels=[_ONE_CORE, *limits.cpu_levels],
    )
    yield Panel(
        title="Server memory",
        unit="MiB",
        lines=[_line(series, lambda s: s.server_mib, "server")],
        bands=bands,
        levels=limits.memory_levels,
    )


def _host_panels(stage: StageResult, limits: Limits) -> Iterator[Panel]:
    """Its samples are on the load's clock, and so are the phases."""
    bands = phases(stage.load.series) if stage.load else []

    def line(read: Callable[[HostSample], float]) -> list[Line]:
        return [Line(name="host", points=[(s.at, read(s)) for s in stage.host], colour=PURPLE)]

    yield Panel(
        title="Server's host, CPU",
        unit="cores",
        lines=line(lambda s: s.cores),
        bands=bands,
        levels=limits.cpu_levels,
    )
    yield Panel(
        title="Server's host, memory",
        unit="MiB",
        lines=line(lambda s: s.memory_mib),
        bands=bands,
        levels=limits.memory_levels,
    )


def overview(result: LabResult) -> list[Scatter]:
    """Memory by connections and CPU by deliveries: a dot a stage, the model's mark beside it."""
    limits = Limits.of(result.limits)
    memory = Scatter(
        title="Server memory",
        x_title="connections",
        unit="MiB",
        dots=list(_dots(result, "memory", "MiB", lambda x: (x.connected, x.server.held_mib))),
        slope=PLAN_CONNECTION_MIB,
        slope_label="the plan's Go server: 0.7 MB a connection",
        levels=limits.memory_levels,
    )
    cpu = Scatter(
        title="Server CPU",
        x_title="deliveries a second",
        unit="cores",
        dots=list(_dots(result, "CPU", "cores", lambda x: (x.received_per_second, x.server.cores))),
        slope=PLAN_WRITE_US / 1e6,
        slope_label="the plan's Go server: 36.5 µs a write",
        levels=[_ONE_CORE, *limits.cpu_levels],
    )
    return [scatter for scatter in (memory, cpu) if scatter.dots]


def _dots(
    result: LabResult,
    what: str,
    unit: str,
    place: Callable[[LoadResult], tuple[float, float | None]],
) -> Iterator[Dot]:
    for stage in result.stages:
        if stage.load is None:
            continue
        x, y = place(stage.load)
        if y is None:
            continue
        told = [p.predicted for p in stage.predictions if p.what.lower() == what.lower()]
        yield Dot(
            x=x,
            y=y,
            label=str(stage.number),
            hint=f"{stage.number} {stage.title}: {figure(y, unit)} at {count(x)}",
            is_met=stage.passed,
            predicted=told[0] if told else None,
        )
