"""The plots of a run: a row of panels for each stage, and cost against size over all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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

# The CPU that a server process can use: its Python code runs on one core at a time.
_ONE_CORE = Level(name="one core", value=1.0, colour=SOFT)
_MIB_PER = {"MiB": 1.0, "GiB": 1024.0}


@attrs.frozen
class Limits:
    """The server's limits as numbers; None if the run does not give them in the usual form."""

    cores: float | None = None
    memory_mib: float | None = None

    @property
    def cpu_levels(self) -> list[Level]:
        """The levels of CPU in a panel, for all processes together."""
        return _limit(self.cores, "cores")

    @property
    def memory_levels(self) -> list[Level]:
        """The levels of memory in a panel."""
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
    """The phases by runs of samples; a sample describes the time before it."""
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
    """Panels of the clients' figures, then of the costs; none for figures without a sample."""
    series = stage.load.series if stage.load else []
    # The samples of the host and the phases are on the load's clock.
    bands = phases(series)

    def panel(
        title: str,
        unit: str,
        samples: Sequence[Sample] | Sequence[HostSample],
        *lines: tuple[str, str, str],
        **more: Any,
    ) -> Panel:
        """Make a panel; each line is a name, the attribute of a sample, and a colour."""
        drawn = [
            Line(name=name, points=[(s.at, getattr(s, field)) for s in samples], colour=colour)
            for name, field, colour in lines
        ]
        return Panel(title=title, unit=unit, lines=drawn, bands=bands, **more)

    connections = ("connections", "connections", BLUE)
    deliveries = ("deliveries", "received_per_second", BLUE)
    latency = (("max", "max_ms", GREY), ("p99", "p99_ms", ORANGE), ("p50", "p50_ms", BLUE))
    cpu, memory = limits.cpu_levels, limits.memory_levels
    of_load = [
        panel("Connections", "subscribed", series, connections, is_whole=True),
        panel("Deliveries", "a second", series, deliveries, is_whole=True),
        panel("Latency", "ms, logarithmic", series, *latency, is_log=True),
        panel("Clients' CPU", "cores", series, ("clients", "client_cores", PURPLE)),
        panel(
            "Server CPU",
            "cores",
            series,
            ("server", "server_cores", BLUE),
            levels=[_ONE_CORE, *cpu],
        ),
        panel("Server memory", "MiB", series, ("server", "server_mib", BLUE), levels=memory),
    ]
    host = stage.host
    of_host = [
        panel("Server's host, CPU", "cores", host, ("host", "cores", PURPLE), levels=cpu),
        panel("Server's host, memory", "MiB", host, ("host", "memory_mib", PURPLE), levels=memory),
    ]
    return (of_load if series else []) + (of_host if host else [])


def overview(result: LabResult) -> list[Scatter]:
    """Memory by connections and CPU by deliveries: a dot per stage with the model's mark."""
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
